"""Equal rows among more than memory holds, by their keys: one range of keys after the other is sorted."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.data.checks import DataError
from jkoflow.mapped import parts

FOUND_BYTES = 64
"""Bytes of memory of a row that repeats another, while all are looked at."""


class Repeats(NamedTuple):
    """Rows that repeat an earlier one."""

    rows: NDArray[np.int64]
    """Their numbers, ascending, with shape (R,)."""
    firsts: NDArray[np.int64]
    """The number of the first row that each equals, with shape (R,)."""

    def groups(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns what `jkoflow.data.repeats.row_groups` numbers rows with, given their numbers (n,)."""
        if len(self.rows) == 0:
            return rows
        place = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
        first = np.where(self.rows[place] == rows, self.firsts[place], rows)
        return first - np.searchsorted(self.rows, first)


def find_repeats(keys: Tensor, room: int) -> Repeats:
    """Finds the rows whose key an earlier row has.

    Arguments:
        keys: Bits of `jkoflow.data.repeats.row_keys`, as int64 with shape (N,).
        room: Bytes of memory that may be taken.

    Raises:
        DataError: If these are not enough for so many repeated rows.
    """
    bits = max(math.ceil(math.log2(max(24 * len(keys) / max(room, 1), 1))), 0)  # a range is found, joined and sorted
    repeated = [_repeated(keys, number, bits) for number in range(2**bits)]
    wanted = np.concatenate(repeated)
    if len(wanted) == 0:
        return Repeats(np.empty(0, np.int64), np.empty(0, np.int64))
    rows, which, start, held = [], [], 0, 0
    for part in parts(keys):
        values = part.numpy().view(np.uint64)
        place = np.searchsorted(wanted, values).clip(max=len(wanted) - 1)
        hit = np.flatnonzero(wanted[place] == values)
        rows.append(start + hit)
        which.append(place[hit])
        start, held = start + len(values), held + len(hit)
        if FOUND_BYTES * held > room:
            raise DataError(f"more than {held:,} rows are equal to others, too many for memory; drop them, or raise it")
    numbers, groups = np.concatenate(rows), np.concatenate(which)
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    begins = np.append(True, ordered[1:] != ordered[:-1])
    firsts = numbers[order][begins][np.cumsum(begins) - 1]
    found, firsts = numbers[order][~begins], firsts[~begins]
    ascending = np.argsort(found)
    return Repeats(found[ascending], firsts[ascending])


def _repeated(keys: Tensor, number: int, bits: int) -> NDArray[np.uint64]:
    """Returns the keys that occur more than once, in order, of those whose first bits are a number."""
    found = []
    for part in parts(keys):
        values = part.numpy().view(np.uint64)
        found.append(values[values >> np.uint64(64 - bits) == number] if bits else values.copy())
    ordered = np.concatenate(found)
    found.clear()
    ordered.sort()
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
