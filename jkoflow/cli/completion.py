"""What a shell offers to complete the arguments of the command line.

Where nothing of what is offered fits, bash and zsh fall back to all files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import typer

from jkoflow import experiments
from jkoflow.data import BUILT_IN
from jkoflow.data.readers import READERS, suffix_of
from jkoflow.training.run_directory import RunDirectory

DEPTH = 2
"""Number of folders, one in the other, in which runs are looked for."""

MOST_ENTRIES = 1000
"""Number of entries of a folder that are looked at: a shell waits for the answer."""

Offer = Callable[[str], list[str]]


def data(context: typer.Context, incomplete: str) -> list[str]:
    """Offers built-in data and files of tables; for ``train --resume``, runs."""
    if context.params.get("resume"):
        return runs(incomplete)
    return [*_starting(BUILT_IN, incomplete), *tables(incomplete)]


def tables(incomplete: str) -> list[str]:
    """Offers files of tables."""
    return _found(incomplete, 1, lambda path: suffix_of(path) in READERS and path.is_file())


def settings(incomplete: str) -> list[str]:
    """Offers TOML files."""
    return _found(incomplete, 1, lambda path: path.suffix == ".toml" and path.is_file())


def runs(incomplete: str) -> list[str]:
    """Offers directories of runs."""
    return _found(incomplete, DEPTH, lambda path: path.is_dir() and RunDirectory(path).holds_run())


def names_of_experiments(incomplete: str) -> list[str]:
    """Offers the experiments of ``reproduce``."""
    return _starting(experiments.names(), incomplete)


def one_of(*values: str) -> Offer:
    """Returns what offers some values."""

    def offer(incomplete: str) -> list[str]:
        return _starting(values, incomplete)

    return offer


def _starting(values: tuple[str, ...] | list[str], incomplete: str) -> list[str]:
    return [value for value in values if value.startswith(incomplete)]


def _found(incomplete: str, depth: int, fits: Callable[[Path], bool]) -> list[str]:
    """Returns what fits of the entries that begin with a text, and of those in folders among them, to some depth."""
    folder, slash, begun = incomplete.rpartition("/")
    top = Path(f"{folder}{slash}") if slash else Path()
    prefix = f"{folder}{slash}"

    def look(inside: Path, name: str, left: int) -> Iterator[str]:
        for path in _entries(inside):
            hidden = path.name.startswith(".") and not begun.startswith(".")
            if hidden or (inside == top and not path.name.startswith(begun)):
                continue
            if fits(path):
                yield f"{name}{path.name}"
            elif left > 1 and path.is_dir():
                yield from look(path, f"{name}{path.name}/", left - 1)

    return list(look(top, prefix, depth))


def _entries(folder: Path) -> list[Path]:
    """Returns the entries of a folder in order; none of one that cannot be read."""
    try:
        return sorted(islice(folder.iterdir(), MOST_ENTRIES))
    except OSError:
        return []
