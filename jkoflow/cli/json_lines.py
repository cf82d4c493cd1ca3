"""The output of a command for programs: JSON lines on stdout, and nothing else there (docs/logging.md).

A command prints for people, and tells here what a program is to know. Without ``--json`` nothing is told; with it,
nothing is printed: this module decides, and no command has to.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import torch.distributed as dist
import typer

from jkoflow.checkpoint import finite

FLAG = "--json"

Json = Annotated[bool, typer.Option(FLAG, help="Write JSON lines to stdout: all events, at last the result.")]
"""The option, which every command has for its help; `asked` looks for it before the command line is parsed."""

_stream: TextIO | None = None


def asked(arguments: Sequence[str]) -> bool:
    """Tells whether a command line asks for JSON lines, even one that cannot be parsed; its help is for people."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return FLAG in options and "--help" not in options


@contextmanager
def on_stdout() -> Iterator[None]:
    """Keeps stdout for JSON lines inside a ``with`` statement: what is printed goes nowhere.

    Of the processes that torchrun has started, the first alone writes.
    """
    global _stream
    before, _stream = _stream, sys.stdout if _is_first() else None
    try:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        _stream = before


def is_on() -> bool:
    """Tells whether events are written."""
    return _stream is not None


def tell(event: str, **fields: Any) -> None:
    """Writes an event and what there is to know about it; does nothing unless JSON lines were asked for.

    Arguments:
        event: Kind of the event.
        fields: Values that JSON can hold, of numpy, or paths; what is not finite becomes null.

    Raises:
        OSError: If stdout cannot be written, or nobody reads it any more.
    """
    record({"event": event, **fields})


def record(event: Mapping[str, Any]) -> None:
    """Writes an event as `tell` does, given all of its fields in one: a callback of `jkoflow.train`."""
    global _stream
    if _stream is None:
        return
    line = json.dumps(finite(event), allow_nan=False, default=_plain)
    try:
        _stream.write(line + "\n")
        _stream.flush()
    except OSError:
        # what is left in the buffer would be an error again at the end of the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), _stream.fileno())
        _stream = None  # the error is told on stderr
        raise


def result(command: str, **fields: Any) -> None:
    """Writes the result of a command, which ends its output."""
    tell("result", command=command, **fields)


def _is_first() -> bool:
    """Tells whether this process is the first of those that torchrun has started, or the only one."""
    return not dist.is_torchelastic_launched() or os.environ["RANK"] == "0"


def _plain(value: Any) -> Any:
    """Returns a value that is none of JSON's as one that is."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # of numpy
        return finite(value.tolist())
    raise TypeError(f"an event must hold what JSON can, got a {type(value).__name__}")
