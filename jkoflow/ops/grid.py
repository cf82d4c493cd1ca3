"""The grid of an integration, which says how it steps; equal steps return finer and coarser grids."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MOST_STEPS = 2**31 - 1
"""Largest number of steps that the kernels can count."""


class Fixed(NamedTuple):
    """A grid of equal steps that are the same for all rows.

    Arguments:
        num_steps: Number of Runge-Kutta steps, at least 1; `as_grid` checks it.

    Example:
        >>> Fixed(3).refined(), Fixed(3).split(2), Fixed(1).halved()
        (Fixed(num_steps=6), Fixed(num_steps=2), Fixed(num_steps=1))
        >>> Fixed(4).raised(), Fixed(6).lowered()
        (Fixed(num_steps=6), Fixed(num_steps=4))
    """

    num_steps: int

    def refined(self) -> Fixed:
        """Returns the grid of twice the steps: a comparison shows how much a result depends on the grid."""
        return Fixed(2 * self.num_steps)

    def halved(self) -> Fixed:
        """Returns the grid of half the steps, rounded down, and of at least one."""
        return Fixed(max(1, self.num_steps // 2))

    def raised(self) -> Fixed:
        """Returns the next finer grid for training: half as many steps more, and at least one more."""
        return Fixed(self.num_steps + max(1, self.num_steps // 2))

    def lowered(self) -> Fixed:
        """Returns the next coarser grid for training: a third of the steps less, and at least one step left."""
        return Fixed(max(1, self.num_steps - max(1, self.num_steps // 3)))

    def split(self, parts: int) -> Fixed:
        """Returns the grid for each of ``parts`` equal parts of the interval: its share of the steps, rounded up."""
        return Fixed(-(-self.num_steps // parts))

    def scaled(self, share: int, whole: int) -> Fixed:
        """Returns the grid of share / whole of the cost, rounded down, and of at least one step."""
        return Fixed(max(1, share * self.num_steps // whole))

    def times(self, factor: float) -> Fixed:
        """Returns the grid of ``factor`` times the steps, rounded up, and of at least one and at most `MOST_STEPS`."""
        wanted = min(factor * self.num_steps, MOST_STEPS)
        return Fixed(max(1, math.ceil(wanted - 1e-9 * self.num_steps)))  # 1.5 * 2 is 3, whatever it was divided by

    @property
    def cost(self) -> int:
        """Returns the cost of an integration, in Runge-Kutta steps of every row."""
        return self.num_steps


class Adaptive(NamedTuple):
    """Steps of its own for every row, by an embedded method: `checked` refuses what is out of range.

    Arguments:
        rtol: Relative tolerance of a step's error in x and logdet.
        atol: Absolute tolerance of a step's error.
        max_steps: Largest number of steps of a row, rejected ones included.

    Example:
        >>> Adaptive().checked()
        Adaptive(rtol=1e-05, atol=1e-05, max_steps=1000)
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 1000

    def checked(self) -> Adaptive:
        """Returns the same with plain numbers.

        Raises:
            ValueError: If a tolerance is not finite, rtol is negative, atol not positive, or max_steps not an integer
                from 1 to `MOST_STEPS`.
        """
        for name, value, low in (("rtol", self.rtol, "at least 0"), ("atol", self.atol, "positive")):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and 0 <= value < math.inf) or (name == "atol" and value == 0):
                raise ValueError(f"{name} must be a finite number, {low}, got {value!r}")
        try:
            steps = 0 if isinstance(self.max_steps, bool) else operator.index(self.max_steps)
        except TypeError:
            steps = 0
        if not 1 <= steps <= MOST_STEPS:
            raise ValueError(f"max_steps must be an integer from 1 to {MOST_STEPS}, got {self.max_steps!r}")
        return Adaptive(float(self.rtol), float(self.atol), steps)

    def refined(self) -> Adaptive:
        """Returns about twice the steps: tolerances of a method of order 5 go with the fifth power of a step."""
        return self.times(2)

    def times(self, factor: float) -> Adaptive:
        """Returns about ``factor`` times the steps, as `refined` does."""
        return self._replace(rtol=self.rtol * factor**-5, atol=self.atol * factor**-5)

    @property
    def cost(self) -> int:
        """Returns a number of steps that grows as that of a row does, by which adaptive grids compare."""
        return max(1, round(10 * (1e-5 / max(self.rtol, self.atol)) ** 0.2))


Grid = Fixed
"""The type of the grids that blocks have, and are trained on."""

AnyGrid = Fixed | Adaptive
"""The type of all grids."""

Steps = int | AnyGrid | Sequence[int | AnyGrid]
"""What says how the blocks of a flow step: a number of equal steps or a grid for all of them, or one for each."""


def as_any_grid(steps: int | AnyGrid) -> AnyGrid:
    """Returns the grid that a number of equal steps stands for, or the grid itself.

    Raises:
        ValueError: If the number is not an integer of at least 1, or more than `MOST_STEPS`, or a tolerance of an
            adaptive grid is out of its range.
    """
    return steps.checked() if isinstance(steps, Adaptive) else as_grid(steps)


def as_grid(steps: int | Grid) -> Grid:
    """Returns the grid that a number of equal steps stands for, or the grid itself, which must not be adaptive.

    Raises:
        ValueError: If the number is not an integer of at least 1, or more than `MOST_STEPS`.
    """
    num_steps = steps.num_steps if isinstance(steps, Fixed) else steps
    if type(num_steps) is int and 1 <= num_steps <= MOST_STEPS:
        return steps if isinstance(steps, Fixed) else Fixed(num_steps)
    try:  # NumPy's integers are integers, too
        count = 0 if isinstance(num_steps, bool) else operator.index(num_steps)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"num_steps must be an integer of at least 1, got {num_steps!r}")
    if count > MOST_STEPS:
        raise ValueError(f"num_steps must be at most {MOST_STEPS}, got {num_steps!r}")
    return Fixed(count)


def for_each(steps: Steps, blocks: int) -> tuple[int | AnyGrid, ...]:
    """Returns the number of steps, or the grid, of each of ``blocks`` blocks, as it was given.

    Raises:
        ValueError: If the numbers are a sequence of another length.

    Example:
        >>> for_each(3, 2), for_each([Fixed(5), 4], 2)
        ((3, 3), (Fixed(num_steps=5), 4))
    """
    if isinstance(steps, AnyGrid) or not isinstance(steps, Sequence):
        return (steps,) * blocks
    if len(steps) != blocks:
        raise ValueError(f"num_steps must have one number for each of the flow's {blocks} blocks, got {len(steps)}")
    return tuple(steps)


def finest(grids: Iterable[Grid]) -> Grid:
    """Returns the grid with the largest cost; a grid of a single step if none is given."""
    return max(grids, key=lambda grid: grid.cost, default=Fixed(1))
