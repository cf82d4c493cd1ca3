"""Whether the first line of a text file names its columns, even by numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.readers.cells import OTHER_MARK, is_missing, is_number
from jkoflow.data.readers.dates import is_date

Row = Sequence[str]

MANY_ROWS = 20
"""Number of rows from which their range, and the way in which they are written, say what a further row would be."""


class Header(NamedTuple):
    """Whether the first line is a header."""

    found: bool
    note: str | None
    """Sentence for the user if it could be otherwise."""


def header_of(first: Row, body: Sequence[Row], decimal: str) -> Header:
    """Returns whether the first line names the columns.

    Arguments:
        first: Cells of the first line.
        body: Cells of lines after it, as many in each as in the first.
        decimal: The decimal mark.
    """
    kinds = [_kind(cell, decimal) for cell in first]
    if not body:
        return Header("text" in kinds, None)
    usual = [usual_kind([row[place] for row in body], decimal) for place in range(len(first))]
    differs = [here == "text" and below in ("number", "date") for here, below in zip(kinds, usual, strict=True)]
    shown = ", ".join(first)[:80]
    if any(differs):
        odd = any(kind == "number" for kind in kinds)
        note = f"took the first line for column names though some are numbers: {shown}; if not, give --no-header"
        return Header(True, note if odd else None)
    numbers = [place for place, kind in enumerate(kinds) if kind == "number"]
    if not numbers:
        return Header("text" in kinds, None)
    table = [_values([row[place] for row in body], decimal) for place in numbers]
    literals = [[row[place] for row in body if is_number(row[place], decimal)] for place in numbers]
    sure = _names_by_number([first[place] for place in numbers], np.array(table), literals, decimal)
    nameless = [
        kinds[place] == "missing" and usual[place] != "missing" and not any(is_missing(row[place]) for row in body)
        for place in range(len(first))
    ]
    texts = [place for place, kind in enumerate(kinds) if kind == "text"]
    novel = [place for place in texts if first[place] not in {row[place] for row in body}]
    categories = any(2 * len({row[place] for row in body}) <= len(body) for place in novel)
    years = _is_sorted(_values([first[place] for place in numbers], decimal)) and _are_whole(
        [first[n] for n in numbers]
    )
    if sure is True or any(nameless) or categories or (novel and len(numbers) > 1 and years):
        return Header(True, f"took the first line for column names: {shown}; if it is a row, give --no-header")
    if sure is None or novel:
        return Header(False, f"took the first line for a row: {shown}; if it holds column names, give --header")
    return Header(False, None)


def _names_by_number(names: Row, body: NDArray[np.float64], literals: Sequence[Row], decimal: str) -> bool | None:
    """Returns whether numbers over columns of numbers are names; None if they may be.

    Arguments:
        names: Numbers of the first line, d of them.
        body: Numbers below them, NaN where one is missing, with shape (d, N).
        literals: The numbers of each column as they are written.
        decimal: The decimal mark.
    """
    values = _values(names, decimal)
    dim, rows = body.shape
    if len(set(names)) < dim:
        return False
    whole = _are_whole(names)
    fractions = [np.mean([not _are_whole([cell]) for cell in cells]) if cells else 0 for cells in literals]
    another_kind = whole and min(fractions) > 0.9
    written_otherwise = another_kind and min(fractions) == 1 and rows >= MANY_ROWS
    low, high = (reduce(body, 1, where=~np.isnan(body), initial=start) for reduce, start in _EXTREMES)
    with np.errstate(invalid="ignore"):
        beyond = np.maximum(low - values, values - high)
        width = high - low
    outside = rows >= MANY_ROWS and bool((beyond > 0).all())
    apart = rows >= MANY_ROWS and dim >= 2 and bool((beyond > width).all())
    far = apart and whole
    progressions = float(np.mean([_is_progression(row) for row in body.T]))
    progression = dim >= 3 and _is_progression(values) and progressions < 0.1
    ordered = dim >= 3 and _is_sorted(values) and np.mean([_is_sorted(row) for row in body.T]) < 0.02
    if progression and (another_kind or outside or (dim >= 4 and progressions < 0.02)):
        return True
    if (ordered and (dim >= 8 or (another_kind and (outside or dim >= 5)))) or (far and _is_sorted(values)):
        return True
    if dim >= 2 and written_otherwise:
        return True
    if progression or apart or (another_kind and (dim >= 2 or written_otherwise)) or (ordered and outside):
        return None
    return False


_EXTREMES = ((np.min, np.inf), (np.max, -np.inf))


def _are_whole(cells: Row) -> bool:
    return all(cell.lstrip("+-").isdecimal() for cell in cells)


def _is_progression(values: NDArray[np.float64]) -> bool:
    with np.errstate(invalid="ignore"):
        steps = np.diff(values)
    return len(steps) > 0 and bool(steps[0] != 0 and np.allclose(steps, steps[0], rtol=1e-6, atol=0))


def _is_sorted(values: NDArray[np.float64]) -> bool:
    with np.errstate(invalid="ignore"):
        steps = np.diff(values)
    return bool((steps > 0).all() or (steps < 0).all())


def _values(cells: Row, decimal: str) -> NDArray[np.float64]:
    return np.array([_value(cell, decimal) for cell in cells])


def _value(cell: str, decimal: str) -> float:
    if is_missing(cell) or not is_number(cell, decimal):
        return np.nan
    plain = "".join(mark for mark in cell.replace("−", "-") if mark.isalnum() or mark in f"+-{decimal}")
    return float(plain.replace(decimal, ".")) if OTHER_MARK[decimal] not in plain else np.nan


def _kind(cell: str, decimal: str) -> str:
    if is_missing(cell):
        return "missing"
    if is_number(cell, decimal):
        return "number"
    return "date" if is_date(cell) else "text"


def usual_kind(cells: Row, decimal: str) -> str:
    """Returns the kind of most of the cells that are not missing."""
    kinds = [kind for cell in cells if (kind := _kind(cell, decimal)) != "missing"]
    return max(set(kinds), key=kinds.count) if kinds else "missing"
