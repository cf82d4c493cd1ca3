"""The grid of an integration, which says how it steps and returns finer and coarser grids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Fixed(NamedTuple):
    """A grid of equal steps that are the same for all rows.

    Arguments:
        num_steps: Number of Runge-Kutta steps, at least 1; `as_grid` checks it.

    Example:
        >>> Fixed(3).refined(), Fixed(3).split(2), Fixed(1).halved()
        (Fixed(num_steps=6), Fixed(num_steps=2), Fixed(num_steps=1))
    """

    num_steps: int

    def refined(self) -> Fixed:
        """Returns the grid of twice the steps: a comparison shows how much a result depends on the grid."""
        return Fixed(2 * self.num_steps)

    def halved(self) -> Fixed:
        """Returns the grid of half the steps, rounded down, and of at least one."""
        return Fixed(max(1, self.num_steps // 2))

    def split(self, parts: int) -> Fixed:
        """Returns the grid for each of ``parts`` equal parts of the interval: its share of the steps, rounded up."""
        return Fixed(-(-self.num_steps // parts))

    def scaled(self, share: int, whole: int) -> Fixed:
        """Returns the grid of share / whole of the cost, rounded down, and of at least one step."""
        return Fixed(max(1, share * self.num_steps // whole))

    @property
    def cost(self) -> int:
        """Returns the cost of an integration, in Runge-Kutta steps of every row."""
        return self.num_steps


Grid = Fixed
"""The type of all grids."""


def as_grid(steps: int | Grid) -> Grid:
    """Returns the grid that a number of equal steps stands for, or the grid itself.

    Raises:
        ValueError: If the number is not an integer of at least 1.
    """
    num_steps = steps.num_steps if isinstance(steps, Fixed) else steps
    if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
        raise ValueError(f"num_steps must be an integer of at least 1, got {num_steps!r}")
    return steps if isinstance(steps, Fixed) else Fixed(num_steps)


def finest(grids: Iterable[Grid]) -> Grid:
    """Returns the grid with the largest cost; a grid of a single step if none is given."""
    return max(grids, key=lambda grid: grid.cost, default=Fixed(1))
