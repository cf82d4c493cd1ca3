"""The first pass over a table larger than memory: what no row may have, and the rows by which columns are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.checks import LARGEST, DataError, column_label
from jkoflow.data.readers.row_numbers import FEWEST
from jkoflow.data.sight import MOST_VALUES
from jkoflow.data.streamed.sources import Source
from jkoflow.data.table import Column, Table

BLOCK_VALUES = 1 << 19
"""Values that are read at once."""


def block_rows(source: Source) -> int:
    """Returns the number of rows of a table that are read at once."""
    return max(BLOCK_VALUES // len(source.features), 1)


@dataclass
class _Wrong:
    """Values of one kind that are refused."""

    counts: dict[int, int] = field(default_factory=dict)
    """Their number by column."""
    first: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Row and value of the first, by column."""

    def look(self, column: int, start: int, values: Column, wrong: NDArray[np.bool_]) -> None:
        """Counts the values of a block that are wrong."""
        if wrong.any():
            row = int(wrong.argmax())
            self.counts[column] = self.counts.get(column, 0) + int(wrong.sum())
            self.first.setdefault(column, (start + row, float(values[row])))

    def told(self, columns: Mapping[str, int]) -> tuple[float, str] | None:
        """Returns the first wrong value in some columns, and where it is of how many; None if there is none."""
        found = [(*self.first[place], number) for number, place in enumerate(columns.values()) if place in self.first]
        if not found:
            return None
        row, value, number = min(found, key=lambda wrong: (wrong[0], wrong[2]))
        count = sum(self.counts.get(place, 0) for place in columns.values())
        where = f"row {row} (counting from 0), {column_label(tuple(columns), number)}"
        return value, f"{where} ({count} such value{'s' if count > 1 else ''})"


class Survey:
    """What one pass over a table finds.

    Arguments:
        source: The table.

    Attributes:
        sample: The table's rows if they are few, else evenly spread ones, and behind them those with the least and the
            largest value of each column.
        counts_rows: Whether the first column counts the rows from 0 or 1.
    """

    def __init__(self, source: Source) -> None:
        self._missing, self._beyond = _Wrong(), _Wrong()
        dim = len(source.features)
        wanted = np.linspace(0, source.rows - 1, min(source.rows, max(MOST_VALUES // dim, 1))).astype(np.int64)
        taken: list[list[Column]] = []
        self._ends: dict[tuple[int, int], tuple[float, int, list[Column]]] = {}
        self.counts_rows, start = source.rows >= FEWEST, 0
        for columns in source.blocks(block_rows(source)):
            stop = start + len(columns[0])
            places = wanted[slice(*np.searchsorted(wanted, (start, stop)))] - start
            taken.append([values[places] for values in columns])
            for column, values in enumerate(columns):
                self._look(column, start, values, columns)
            self.counts_rows = self.counts_rows and _goes_on_counting(columns[0], start, taken[0][0])
            start = stop
        if start != source.rows:
            raise DataError(f"is damaged: it announces {source.rows:,} rows and holds {start:,}")
        known, more = set(wanted.tolist()), {}
        for _, row, values in self._ends.values():
            if row not in known:
                more[row] = values
        taken += [more[row] for row in sorted(more)]
        self.sample = Table({"all": [np.concatenate(pieces) for pieces in zip(*taken, strict=True)]}, source.features)

    def _look(self, column: int, start: int, values: Column, columns: Sequence[Column]) -> None:
        """Takes note of the extremes of a column in a block, and of what may not be."""
        if values.dtype.kind == "f":
            self._missing.look(column, start, values, np.isnan(values))
            with np.errstate(invalid="ignore"):
                self._beyond.look(column, start, values, np.abs(values) > LARGEST)
            if np.isnan(values).all():
                return
        for sign, row in ((1, int(np.nanargmin(values))), (-1, int(np.nanargmax(values)))):
            value = sign * float(values[row])
            known = self._ends.get((column, sign))
            if known is None or value < known[0]:
                self._ends[column, sign] = value, start + row, [other[row : row + 1].copy() for other in columns]

    def check(self, columns: Mapping[str, int]) -> None:
        """Refuses missing, infinite and too large values in some columns, which are the places of names in the table.

        Raises:
            DataError: If there are any; the message names row and column of the first, and counts all.
        """
        if (found := self._beyond.told(columns)) is not None:
            value, where = found
            if np.isinf(value):
                raise DataError(f"{value} in {where}; drop or impute these rows")
            raise DataError(f"value {value:g} in {where} is beyond {LARGEST:g}; rescale the column")
        if (found := self._missing.told(columns)) is not None:
            raise DataError(
                f"NaN in {found[1]}; drop or impute these rows: states for what is missing need the rows in memory"
            )


def _goes_on_counting(values: Column, start: int, first: Column) -> bool:
    """Tells whether a block of the first column goes on counting the rows, from the number of the first row."""
    if values.dtype.kind not in "fiu" or first[0] not in (0, 1):
        return False
    wanted: NDArray[Any] = first[0] + np.arange(start, start + len(values))
    return bool((values == wanted).all())
