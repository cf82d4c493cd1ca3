"""Recognition of columns whose values are equally spaced: counts, ages, rounded measurements."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.columns.codec import Floats, lattice_places
from jkoflow.data.columnwise import distinct_values

MOST_DECIMALS = 6
"""Largest number of decimals with which numbers are looked at as multiples of a power of ten."""

SIGHT_VALUES = 1000
"""Number of values that are looked at first: where a part is on no lattice, not all are."""

FINE = 100
"""Steps within the middle half of the values from which on the steps of a lattice may be too fine to matter."""


class Spacing(NamedTuple):
    """A lattice that holds all values of a column."""

    first: float
    """Smallest value."""
    step: float
    """Distance between two neighbours."""
    cells: int
    """Number of places from the smallest to the largest value."""
    fineness: float
    """Steps within the middle half of the values."""

    @property
    def whole(self) -> bool:
        """Tells whether all values are integers."""
        return float(self.first).is_integer() and float(self.step).is_integer()

    @property
    def words(self) -> str:
        """Returns what the values are, such as ``"multiples of 0.1"``."""
        if self.whole and self.step == 1:
            return "whole numbers"
        places = self.first / self.step
        return f"{'multiples' if abs(places - round(places)) < 1e-3 else 'steps'} of {self.step:g}"


def find_spacing(values: Floats, dtype: np.dtype, step: float | None = None) -> Spacing | None:
    """Returns the coarsest lattice on which all values lie; None if there is none that float could tell.

    Arguments:
        values: Finite numbers, with shape (N,).
        dtype: Type that the numbers came in, which bounds their digits.
        step: A distance between neighbours that is known, such as the unit of a date; any if None.
    """
    distinct = distinct_values(values)
    if len(distinct) < 2:
        return None
    steps = [step] if step is not None else [_decimal_step(distinct, dtype), float(np.diff(distinct).min())]
    for width in steps:
        if width is None or width <= 0:
            continue
        if not lattice_places(_some(distinct), distinct[0], width)[1].all():
            continue
        places, on = lattice_places(distinct, distinct[0], width)
        if on.all() and places[-1] < 2**53:
            low, high = np.quantile(values, (0.25, 0.75))
            return Spacing(float(distinct[0]), float(width), int(places[-1]) + 1, float((high - low) / width))
    return None


def _some(distinct: Floats) -> Floats:
    return distinct[:: len(distinct) // SIGHT_VALUES + 1]


def _decimal_step(distinct: Floats, dtype: np.dtype) -> float | None:
    """Returns the greatest common divisor of the distances of numbers (N,) in order that have few decimals."""
    precision = 4 * np.finfo(dtype if dtype.kind == "f" else np.float64).eps
    largest = max(abs(float(distinct[0])), abs(float(distinct[-1])))
    for decimals in range(MOST_DECIMALS + 1):
        factor = 10.0**decimals
        slack = precision * largest * factor
        if slack > 0.01 or largest * factor >= 2.0**53:
            return None
        some = _some(distinct) * factor
        if not (np.abs(some - np.rint(some)) <= slack + 1e-9).all():
            continue
        scaled = distinct * factor
        whole = np.rint(scaled)
        if (np.abs(scaled - whole) <= slack + 1e-9).all():
            return _common_divisor(whole.astype(np.int64)) / 10.0**decimals
    return None


def _common_divisor(whole: NDArray[np.int64]) -> int:
    return int(np.gcd.reduce(np.diff(whole)))


def tail_ratio(values: Floats, spacing: Spacing) -> float:
    """Returns the ratio of the masses of neighbours at the upper end of a lattice of a few values (N,)."""
    places = np.rint((values - spacing.first) / spacing.step)
    few = np.sort(places)[-max(len(places) // 20, 2) :]
    excess = float((few - few[0]).mean())
    return min(max(excess / (1 + excess), 0.05), 0.9)
