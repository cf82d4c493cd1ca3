"""Columns that number the rows: found, left out and told."""

from __future__ import annotations

import re

import numpy as np

from jkoflow.data.checks import DataError
from jkoflow.data.readers.options import KEEP, ReadOptions
from jkoflow.data.table import Column, Table

FEWEST = 3
"""Smallest number of rows whose count 1, 2, 3 says something."""

_LIKE_AN_INDEX = re.compile(
    r"unnamed: \d+(\.\d+)?|index|idx|id|#|row|rows|rowid|rownum|rownames?|row[ _.]?(id|number|num|no|name|names|index)|"
    r"level_\d+|__index_level_\d+__|",
    re.IGNORECASE,
)


def without_row_numbers(table: Table, named: bool, options: ReadOptions, notes: list[str]) -> Table:
    """Returns a table without the column that numbers its rows.

    A column without a name, or with one such as ``index`` or ``id``, is taken for row numbers if it holds integers that
    are all different, in any order and from any start, and no option is about it; in a table without names, the first
    column is if it counts from 0 or 1.

    Arguments:
        table: Columns with shape (N,), not in parts.
        named: Whether the columns have names of their own.
        options: Says what column it is, or to keep all.
        notes: Takes a sentence if a column was guessed.

    Raises:
        DataError: If the options name a column that is not there.
    """
    features, columns = table.features, table.parts["all"]
    if options.index_column == KEEP:
        return table
    if options.index_column is not None:
        if options.index_column not in features:
            raise DataError(
                f"has no column {options.index_column!r} to leave out as row numbers; it has {', '.join(features)}"
            )
        left_out = [features.index(options.index_column)]
    elif named:
        found = zip(features, columns, strict=True)
        left_out = [place for place, (name, values) in enumerate(found) if is_index(name, values)]
    else:
        left_out = [0] if columns and counts_rows(columns[0]) else []
    left_out = [place for place in left_out if features[place] not in options.mentioned]
    kept = [place for place in range(len(features)) if place not in left_out]
    if not left_out or not kept:
        return table
    if options.index_column is None:
        names = ", ".join(repr(features[place]) for place in left_out) if named else "the first column"
        notes.append(f"left out row numbers: {names}; --index-column none keeps them")
    rest = table.take(kept)
    return rest if named else Table(rest.parts, tuple(features[: len(kept)]))


def is_index(name: str, values: Column) -> bool:
    """Tells whether a column numbers the rows, by its name and by its values."""
    if _LIKE_AN_INDEX.fullmatch(name) is None or len(values) < 2:
        return False
    return _are_integers(values) and len(np.unique(values)) == len(values)


def counts_rows(values: Column) -> bool:
    """Tells whether a column counts the rows from 0 or from 1."""
    if len(values) < FEWEST or not _are_integers(values):
        return False
    return values[0] in (0, 1) and bool((np.diff(values) == 1).all())


def _are_integers(values: Column) -> bool:
    if values.dtype.kind in "iu":
        return True
    return values.dtype.kind == "f" and bool(np.isfinite(values).all()) and bool((values == np.rint(values)).all())
