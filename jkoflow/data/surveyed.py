"""A file that is read twice in pieces: first for what all of its rows together tell, then for the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jkoflow.data.checks import DataError
from jkoflow.data.columns.codec import missing
from jkoflow.data.readers import is_text, read_table
from jkoflow.data.readers.options import KEEP, ReadOptions
from jkoflow.data.readers.pieces import pieces
from jkoflow.data.table import Column, Table

SAMPLE = 1024
"""Largest number of rows that are taken at random to stand for all."""

_GROUPS = {"f": "numbers", "i": "numbers", "u": "numbers", "b": "true and false", "O": "text", "M": "dates"}


class Survey(NamedTuple):
    """What a file holds, and how to read its rows in pieces."""

    path: Path
    options: ReadOptions
    rows: int
    """Number of rows."""
    dtypes: dict[str, np.dtype[Any]]
    """Types of the columns by name, which hold the values of all pieces."""
    sample: Table
    """Some rows at random, the same in each survey of the file; all rows of few."""
    notes: tuple[str, ...]
    """A sentence for each decision that could be otherwise."""
    whole: Table | None
    """The table, if it has to be read as a whole."""

    def pieces(self) -> Iterator[Table]:
        """Reads the file in pieces of rows, in its order, with the columns in the surveyed types."""
        for piece in (self.whole,) if self.whole is not None else pieces(self.path, self.options, []):
            columns = [cast(values, self.dtypes[name]) for name, values in _named(piece)]
            yield Table({"all": columns}, piece.features)


def survey(path: Path, options: ReadOptions) -> Survey:
    """Reads a file in pieces and finds out what it holds.

    A text file whose pieces, each by itself, would be read differently is read as a whole, which is noted.

    Raises:
        DataError: If the file is missing or damaged, or a column is spoilt.
    """
    notes: list[str] = []
    told: list[str] = []
    random, rows, common = np.random.default_rng(0), 0, set[str]()
    features: tuple[str, ...] = ()
    seen: list[_Seen] = []
    keys, sample = np.zeros(0), list[Column]()
    for number, piece in enumerate(pieces(path, options, notes)):
        own, notes[:] = set(notes), []
        if number == 0:
            told, features, common = sorted(own), piece.features, _of_cells(own, piece)
            seen = [_Seen() for _ in features]
            sample = [values[:0] for values in piece.parts["all"]]
        elif is_text(path) and own != common:
            return _as_a_whole(path, options, "its rows differ in " + "; ".join(sorted(own ^ common)))
        for column, (name, values) in zip(seen, _named(piece), strict=True):
            column.add(values)
            if is_text(path) and len(column.groups) > 1:
                return _as_a_whole(path, options, f"column {name!r} holds {' and '.join(sorted(column.groups))}")
        rows += piece.rows("all")
        keys = np.concatenate([keys, random.random(piece.rows("all"))])
        kept = np.sort(np.argsort(keys, kind="stable")[:SAMPLE])
        keys = keys[kept]
        sample = [
            np.concatenate([cast(old, column.dtype), cast(new, column.dtype)])[kept]
            for old, new, column in zip(sample, piece.parts["all"], seen, strict=True)
        ]
    dtypes = {name: column.dtype for name, column in zip(features, seen, strict=True)}
    return Survey(path, options, rows, dtypes, Table({"all": sample}, features), tuple(told), None)


class _Seen:
    """What the pieces of a column have held."""

    def __init__(self) -> None:
        self.groups: set[str] = set()
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self._is_first = True

    def add(self, values: Column) -> None:
        """Takes account of a piece of values (n,)."""
        if not self._is_first and bool(missing(values).all()):
            return  # nothing in it tells what it is
        if not self.groups or self._is_first:
            self.dtype = values.dtype
        elif "O" in (self.dtype.kind, values.dtype.kind):
            self.dtype = np.dtype(object)
        else:
            self.dtype = np.result_type(self.dtype, values.dtype)
        self._is_first = False
        if not bool(missing(values).all()):
            self.groups.add(_GROUPS[values.dtype.kind])


def _of_cells(notes: set[str], piece: Table) -> set[str]:
    """Returns those notes on a first piece that are about its cells, as those on later ones are."""
    return {note for note in notes if any(note.startswith(f"column {name!r}") for name in piece.features)}


def _as_a_whole(path: Path, options: ReadOptions, why: str) -> Survey:
    table = read_table(path, dataclasses.replace(options, index_column=KEEP))
    if table.is_split:
        raise DataError(f"{path} comes in parts; give a file of one table")
    columns = table.parts["all"]
    rows = table.rows("all")
    some = np.sort(np.random.default_rng(0).permutation(rows)[:SAMPLE])
    sample = Table({"all": [values[some] for values in columns]}, table.features)
    dtypes = {name: values.dtype for name, values in _named(table)}
    note = f"read as a whole, since {why}"
    return Survey(path, options, rows, dtypes, sample, (note,), table)


def _named(table: Table) -> Iterator[tuple[str, Column]]:
    return zip(table.features, table.parts["all"], strict=True)


def cast(values: Column, dtype: np.dtype[Any]) -> Column:
    """Returns values (n,) in another type that holds them, or in which all of them are missing."""
    if values.dtype == dtype:
        return values
    if dtype.kind == "O":
        found = values.astype(object)
        found[missing(values)] = None
        return found
    if dtype.kind == "M" and values.dtype.kind != "M":  # a piece in which all are missing
        return np.full(len(values), np.datetime64("NaT"), dtype)
    return values.astype(dtype)
