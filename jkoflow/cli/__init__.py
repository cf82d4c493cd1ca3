"""The entry point of ``jkoflow`` and ``python -m jkoflow``."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; if typer is missing, says how to install it and exits with 2."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        print('error: the command line needs typer; install it with: pip install "jkoflow[cli]"', file=sys.stderr)
        raise SystemExit(2) from None
    from jkoflow.cli.commands import app

    app(prog_name="jkoflow")
