"""The limit of memory that a user sets, and what of the work keeps it."""

from __future__ import annotations

import math
import re
from typing import NamedTuple, Self

UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
"""Bytes of the units that a limit may be given in."""

PROCESS = 450 * 10**6
"""Bytes that a process takes before there are rows: Python, PyTorch, and the libraries that read files and draw."""

WORK = 64 * 10**6
"""Bytes that parts of rows take which are gone through, and an iteration of training."""

ORDER_BYTES = 4
"""Bytes of every row in its random order, which is the one thing of all rows that is in memory at once."""

FIT, FIT_COLUMN = 120 * 10**6, 5 * 10**6
"""Bytes, and bytes of every column, of the rows that the initial map is fitted to, at another time than their order."""

ROW_BYTES, VALUE_BYTES = 400, 24
"""Bytes of every row, and of every value of it, that rows take which are prepared in memory, measured on two and on
eight columns."""

_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


class MemoryLimit(NamedTuple):
    """A limit of the memory of the whole process."""

    limit: int
    """In bytes."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a limit such as ``"2GB"``, ``"1.5 GiB"`` or ``"800MB"``.

        Raises:
            ValueError: If it is none.

        Example:
            >>> MemoryLimit.parse("1.5 GB").limit
            1500000000
        """
        found = _TEXT.fullmatch(text)
        unit = 0 if found is None else UNITS.get(found[2].upper(), 0)
        size = 0.0 if found is None else float(found[1]) * unit
        if not 1 <= size < math.inf:
            raise ValueError(f"memory must be a size such as 2GB or 800MB, got {text!r}")
        return cls(int(size))

    @property
    def room(self) -> int:
        """Returns the bytes that are left for rows."""
        return max(self.limit - PROCESS, 0)

    def holds(self, rows: int, columns: int) -> bool:
        """Tells whether a table can be prepared and trained on in memory.

        Example:
            >>> MemoryLimit.parse("2GB").holds(1_000_000, 8), MemoryLimit.parse("2GB").holds(100_000_000, 8)
            (True, False)
        """
        return rows * (ROW_BYTES + VALUE_BYTES * columns) <= self.room

    def allows(self, rows: int, columns: int) -> bool:
        """Tells whether so many rows can be gone through in parts."""
        return _least(rows, columns) <= self.limit


def least_limit(rows: int, columns: int) -> str:
    """Returns the smallest limit for so many rows in scratch files, rounded up.

    Example:
        >>> least_limit(1_000_000, 8), least_limit(100_000_000, 8)
        ('610MB', '920MB')
    """
    return f"{math.ceil(_least(rows, columns) / 1e7) * 10}MB"


def _least(rows: int, columns: int) -> int:
    return PROCESS + max(WORK + ORDER_BYTES * rows, FIT + FIT_COLUMN * columns)
