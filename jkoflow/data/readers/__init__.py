"""Readers of tables: text, numpy's files, Parquet, Feather, MATLAB's and FITS files, each by its library."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from jkoflow.callers import warn_caller
from jkoflow.data.checks import DataError, DataWarning
from jkoflow.data.readers.arrays import array_table, read_npy, read_npz
from jkoflow.data.readers.arrow import parquet_files, read_feather, read_parquet, read_parquet_folder
from jkoflow.data.readers.damage import one_line, reading
from jkoflow.data.readers.delimited import read_delimited
from jkoflow.data.readers.fits import read_fits
from jkoflow.data.readers.frames import columns_of
from jkoflow.data.readers.matlab import read_mat
from jkoflow.data.readers.options import ReadOptions
from jkoflow.data.readers.packed import PACKINGS
from jkoflow.data.table import Table

__all__ = [
    "READERS",
    "ReadOptions",
    "array_table",
    "columns_of",
    "is_text",
    "named",
    "one_line",
    "packing_of",
    "read_table",
    "reading",
    "stem",
    "suffix_of",
]

TEXT = (".csv", ".tsv", ".txt")
"""Suffixes of text files, after which one of packing may stand."""


def _read_text(path: Path, options: ReadOptions, notes: list[str]) -> Table:
    return read_delimited(path, packing_of(path), options, notes)


READERS: dict[str, Callable[[Path, ReadOptions, list[str]], Table]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".csv": _read_text,
    ".parquet": read_parquet,
    ".tsv": _read_text,
    ".txt": _read_text,
    ".feather": read_feather,
    ".arrow": read_feather,
    ".mat": read_mat,
    ".fits": read_fits,
    ".fit": read_fits,
}
"""Readers of the supported kinds of file by suffix."""


def read_table(path: str | Path, options: ReadOptions = ReadOptions()) -> Table:  # noqa: B008 (frozen)
    """Reads all columns of a file; a `DataWarning` tells each decision that could be otherwise.

    Arguments:
        path: A ``.csv``, ``.tsv`` or ``.txt`` file, perhaps packed (``.gz``, ``.bz2``, ``.xz``, ``.zst``), with or
            without a header, separated by comma, semicolon, tab, bar or blanks; a ``.npy`` file with one array; a
            ``.npz`` file with one array, or with ``train``, ``val`` and ``test`` (and perhaps ``features``); a
            ``.parquet``, ``.feather`` or ``.arrow`` file, or a folder of Parquet files; a ``.mat`` or ``.fits`` file.
        options: What is known of the file; the rest is decided by its content.

    Returns:
        The columns in the types that they came in, but for one that numbers the rows.

    Raises:
        DataError: If the file is missing, damaged, of another kind, needs pickle, holds more than memory does, or has
            a column of numbers spoilt by text.
        MissingExtraError: If a package is needed and not installed.
    """
    path = Path(path)
    if not path.exists() and not path.is_symlink() and suffix_of(path) in READERS:
        raise DataError(f"{path}: no such file; check the path, it starts at {Path.cwd()}")
    if path.is_dir():
        if not parquet_files(path):
            raise DataError(f"{path} is a directory without .parquet files; name a file")
        reader = read_parquet_folder
    elif (suffix := suffix_of(path)) in READERS:
        reader = READERS[suffix]
        if options.describes_text and suffix not in TEXT:
            raise DataError(
                f"{path}: header, separator and decimal mark are for {', '.join(TEXT)} files; leave them out"
            )
    else:
        known = f"{', '.join(READERS)}, text also with {', '.join(PACKINGS)}"
        raise DataError(f"{path}: unsupported kind of file {path.suffix!r}; convert it to one of {known}")
    notes: list[str] = []
    with named(path):
        table = reader(path, options, notes)
    for note in notes:
        warn_caller(f"{path}: {note}", DataWarning)
    return table


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Names the file in whatever error its reading raises.

    Raises:
        DataError: In place of the errors of the system.
    """
    try:
        yield
    except DataError as error:
        raise type(error)(f"{path}: {error}") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: permission denied") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; it leads to one that is gone") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error


def is_text(path: str | Path) -> bool:
    """Tells whether a file is one of text, to which header, separator and decimal mark apply."""
    return suffix_of(Path(path)) in TEXT


def stem(path: Path) -> str:
    """Returns a file's name without the suffixes that tell its kind and packing."""
    bare = path.with_suffix("") if packing_of(path) else path
    return bare.stem if bare.suffix.lower() in READERS else path.stem


def packing_of(path: Path) -> str:
    """Returns the suffix that tells how a file is packed; empty if it is not."""
    suffix = path.suffix.lower()
    return suffix if suffix in PACKINGS else ""


def suffix_of(path: Path) -> str:
    """Returns the suffix that tells the kind of file; empty if a kind is packed that cannot be."""
    suffix = path.suffix.lower()
    if suffix not in PACKINGS:
        return suffix
    inner = path.with_suffix("").suffix.lower()
    return inner if inner in TEXT else ""
