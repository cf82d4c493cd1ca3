"""What happens if the command line is interrupted while the package, and PyTorch with it, are still being imported."""

from __future__ import annotations

import signal
import sys
from pathlib import Path


def end_if_command() -> None:
    """Ends the process with one line and exit code 130 if it is the command line, and else does nothing.

    The package is imported before anything of the command line runs, so that this cannot be done there.
    """
    started = sys.orig_argv[1:3] == ["-m", "jkoflow"] or Path(sys.argv[0]).name in ("jkoflow", "jkoflow.exe")
    if started:
        print("error: interrupted", file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGINT)
