"""Knots of the splines of an initial map: at quantiles of the data, and beyond them, where no data tell the slope."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

KNOTS = 128
"""Largest number of knots of a spline between the outermost rows."""

ROWS_PER_KNOT = 200
"""Smallest number of rows per knot; fewer rows have fewer knots."""

LEAST_GAP = 1e-3
"""Least distance between two knots, as a share of a column's deviation; it bounds the density of repeated values."""

RESOLUTION = 1e-6
"""Least distance between two knots, as a share of the largest of them: some ten times what float32 can tell apart."""

LEAST_RISE = 1e-3
"""Least distance between the images of two knots; it bounds from below the density of gaps without data."""

TAIL_PIECES = 4
"""Number of pieces beyond the outermost rows over which the slope changes to that of the straight line behind them."""

TAIL_START, TAIL_STEP = 2.0, 0.5
"""Gaussian deviations beyond the outermost rows at which the slope begins to change, and that each piece then takes."""


class Tails(NamedTuple):
    """What the knots beyond the outermost rows are to be like; the first of two columns is below the rows."""

    slopes: Tensor
    """Slopes of the straight lines behind the last knots, with shape (d, 2)."""
    rise: Tensor
    """What one Gaussian deviation beyond the outermost rows is in units of y, with shape (2,)."""
    narrowest: Tensor
    """Least distance between two knots, with shape (d, 1)."""
    widest: float
    """Largest distance between two knots."""


def quantile_knots(
    rows: Tensor, target: Callable[[Tensor], Tensor], narrowest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns knots (d, K) at quantiles of rows (N, d), evenly spread in Gaussian units, and the target's quantiles.

    The knots are at least ``narrowest`` (d, 1) apart. The third tensor (2,) holds what one Gaussian deviation below
    and above the knots is in units of the target.
    """
    count = len(rows)
    knots = max(4, min(KNOTS, count // ROWS_PER_KNOT))
    end = float(torch.special.ndtri(torch.tensor(1 - 0.5 / count, dtype=torch.float64)))
    levels = torch.special.ndtr(torch.linspace(-end, end, knots, dtype=torch.float64, device=rows.device))
    ordered = rows.sort(dim=0).values
    place = (levels * count - 0.5).clamp(0, count - 1)
    low = place.floor().long()
    part = (place - low)[:, None]
    x = torch.lerp(ordered[low], ordered[(low + 1).clamp(max=count - 1)], part).T
    # repeated values put knots at one place
    x = _spread_out(x, torch.maximum(LEAST_GAP * rows.std(0)[:, None].clamp(min=1e-30), narrowest))
    ordered = ordered.T.contiguous()
    ranks = torch.searchsorted(ordered, x) + torch.searchsorted(ordered, x, right=True)
    y = target((ranks.to(rows.dtype) / (2 * count)).clamp(0.5 / count, 1 - 0.5 / count))
    beyond = torch.tensor([-end - 1, -end, end, end + 1], dtype=torch.float64, device=rows.device)
    rise = target(torch.special.ndtr(beyond)).diff()[::2].to(rows.dtype)
    return x, _spread_out(y, torch.full_like(y[:, :1], LEAST_RISE)), rise


def outer_secants(x: Tensor, y: Tensor) -> Tensor:
    """Returns the secants of the first and of the last piece between knots x and y (d, K), with shape (d, 2)."""
    return (y.diff() / x.diff())[:, [0, -1]]


def with_tails(x: Tensor, y: Tensor, tails: Tails) -> tuple[Tensor, Tensor]:
    """Returns knots (d, K) with further ones on both sides, which bring the slope to that of the lines behind them.

    The outermost pieces first go on as they are, where rows and samples may still be. Then the slope changes by one
    factor from piece to piece, within a short way, so that what lies outside is not far from what blocks are trained
    on. A crowded edge would else go on with the slope that it ends with, and distances a little outside overflow.
    """
    x_above, y_above = _tail(x, y, tails, 1)
    x_below, y_below = (-knots.flip(1) for knots in _tail(-x.flip(1), -y.flip(1), tails, 0))
    return torch.cat([x_below, x, x_above], 1), torch.cat([y_below, y, y_above], 1)


def _tail(x: Tensor, y: Tensor, tails: Tails, side: int) -> tuple[Tensor, Tensor]:
    """Returns the knots (d, `TAIL_PIECES` + 1) above the given ones (d, K), for one side of the tails."""
    secant = outer_secants(x, y)[:, 1:]
    steps = torch.arange(TAIL_PIECES + 1, dtype=x.dtype, device=x.device)
    slopes = secant * (tails.slopes[:, side, None] / secant) ** (steps / TAIL_PIECES)
    rises = tails.rise[side] * torch.where(steps == 0, TAIL_START, TAIL_STEP)
    widths = torch.maximum((rises / slopes).clamp(max=tails.widest), tails.narrowest)
    return x[:, -1:] + widths.cumsum(1), y[:, -1:] + (widths * slopes).cumsum(1)


def _spread_out(knots: Tensor, gap: Tensor) -> Tensor:
    """Returns knots (d, K) in order, each moved up until it is at least a gap (d, 1) beyond the knot before it."""
    steps = gap * torch.arange(knots.shape[1], dtype=knots.dtype, device=knots.device)
    return (knots - steps).cummax(1).values + steps
