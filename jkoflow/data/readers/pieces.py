"""Files of tables in pieces, so that memory does not grow with the file: .npy, Parquet and text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jkoflow.data.checks import DataError
from jkoflow.data.readers import TEXT, named, packing_of, suffix_of
from jkoflow.data.readers.arrays import array_table, opened_npy
from jkoflow.data.readers.arrow import parquet_pieces, parquet_size
from jkoflow.data.readers.damage import reading
from jkoflow.data.readers.delimited import delimited_pieces
from jkoflow.data.readers.options import KEEP, ReadOptions
from jkoflow.data.table import Table

IN_PIECES = (".npy", ".parquet", *TEXT)
"""Suffixes of the files that can be read in pieces; those of text may be followed by one of packing."""

ROWS = 100_000
"""Largest number of rows of a piece."""

CELLS = 4_000_000
"""Largest number of cells of a piece, which tables of many columns come to before `ROWS`."""


def comes_in_pieces(path: Path) -> bool:
    """Tells whether a file is one of a kind that can be read in pieces."""
    return suffix_of(path) in IN_PIECES


def size_of(path: Path) -> int:
    """Returns about how many bytes the cells of a file take: those that it has, or announces."""
    return parquet_size(path) if suffix_of(path) == ".parquet" else path.stat().st_size


def pieces(path: Path, options: ReadOptions, notes: list[str]) -> Iterator[Table]:
    """Reads a file in pieces of rows, in its order; at least one, which may have no rows.

    Columns that number the rows stay. In a text file each piece tells by itself what its columns hold.

    Arguments:
        path: A file of one of the kinds in `IN_PIECES`.
        options: What is known of the file.
        notes: Takes a sentence for each decision that could be otherwise.

    Raises:
        DataError: If the file is missing, damaged, or a column is spoilt.
    """
    suffix = suffix_of(path)
    if suffix not in IN_PIECES:
        known = ", ".join(IN_PIECES)
        raise DataError(f"{path}: {path.suffix or 'such'} files cannot be read in pieces; convert it to one of {known}")
    if options.describes_text and suffix not in TEXT:
        raise DataError(f"{path}: header, separator and decimal mark are for {', '.join(TEXT)} files; leave them out")
    with named(path):
        if suffix == ".npy":
            yield from _npy_pieces(path, options, notes)
        elif suffix == ".parquet":
            yield from parquet_pieces(path, options, notes, _rows)
        else:
            yield from delimited_pieces(path, packing_of(path), options, notes, _rows)


def _npy_pieces(path: Path, options: ReadOptions, notes: list[str]) -> Iterator[Table]:
    with reading(".npy"):
        whole = opened_npy(path)
        count, columns = len(whole), int(np.prod(whole.shape[1:])) if whole.ndim > 1 else len(whole.dtype.names or "x")
        size = _rows(columns)
        del whole
    for begin in range(0, max(count, 1), size):
        with reading(".npy"):
            part = np.array(opened_npy(path)[begin : begin + size])  # what is mapped is given back at once
        yield array_table({"all": part}, None, dataclasses.replace(options, index_column=KEEP), notes)


def _rows(columns: int) -> int:
    return max(min(ROWS, CELLS // max(columns, 1)), 1)
