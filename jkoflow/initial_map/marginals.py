"""The map of every column by itself: onto a Gaussian, or of its ends or wild values alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from jkoflow.knots import RESOLUTION, Tails, outer_secants, quantile_knots, with_tails
from jkoflow.spline import MonotoneSpline

CORE = 3.8
"""Largest distance from the median, in spreads, up to which `Marginals.fit_core` leaves values as they are."""

CORE_SEARCH = 7.2
"""Distance from the median, in spreads, up to which a value is not taken for a wild one; where an asinh that bends at 5
spreads has brought 10 to."""

CORE_KNOTS = 12
"""Number of knots of the core; the outermost pieces bend."""

END = 0.05
"""Share of the values at either end of a column that `Marginals.fit_ends` stretches."""

TAIL = 4
"""Share of the knots, as a divisor, whose slope at either end goes on beyond the rows."""

FAR_RISE = 0.5
"""Distance of the images of the farthest values that are known of from those of the rows that a map is fitted to."""

FAR_SLOPE = 2.0
"""Largest slope dx/dy beyond the rows, in deviations, where no farther values are known of."""


class Marginals(nn.Module):
    """Maps every column by itself through a spline; logdet (B,) is the sum over the columns.

    Arguments:
        x: Knots in the columns' units, with shape (d, K).
        y: Images of the knots, with shape (d, K).
        columns: Numbers of the d columns that are mapped, the others stay as they are; None maps all.
    """

    columns: tuple[int, ...] | None = None  # for the maps that version 0.1 pickled, too

    def __init__(self, x: Tensor, y: Tensor, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        self.spline = MonotoneSpline(x, y)
        self.columns = None if columns is None else tuple(columns)

    @classmethod
    def fit(cls, rows: Tensor, columns: Sequence[int] | None = None, reach: Tensor | None = None) -> Marginals:
        """Fits splines that carry the quantiles of rows to those of the standard Gaussian.

        Far outside the rows a column's slope is at most one Gaussian deviation per deviation of the column.

        Arguments:
            rows: The rows, with shape (N, D).
            columns: Numbers of the d columns to map; None means all.
            reach: Least and largest value of every column to map, with shape (2, d). Values as far beyond the rows as
                that are brought within `FAR_RISE` of the rows' images, so that none is too far out to be compared.
        """
        rows = rows if columns is None else rows[:, list(columns)]
        gap = RESOLUTION * rows.abs().amax(0)[:, None]
        x, y, rise = quantile_knots(rows, torch.special.ndtri, gap)
        if reach is not None:
            part = max(1, x.shape[1] // TAIL)  # the outermost piece by itself is as chance has put two values
            low, high = ((x[:, b] - x[:, a]) / (y[:, b] - y[:, a]) for a, b in ((0, part), (-1 - part, -1)))
            x, y = _reaching(x, y, reach.to(x), torch.stack([low, high], 1).clamp(max=FAR_SLOPE))
        return cls(*_bounded(x, y, rows, rise, gap), columns)

    @classmethod
    def fit_ends(cls, rows: Tensor, columns: Sequence[int], reach: Tensor) -> Marginals:
        """Fits splines that leave standardised columns as they are, but stretch both ends to those of a Gaussian.

        Arguments:
            rows: The rows, with shape (N, D).
            columns: Numbers of the d columns to map.
            reach: Least and largest value of every column to map, with shape (2, d).
        """
        part = rows[:, list(columns)]
        gap = RESOLUTION * part.abs().amax(0)[:, None]
        x, y, rise = quantile_knots(part, torch.special.ndtri, gap)
        middle = (torch.special.ndtr(y) - 0.5).abs() < 0.5 - END  # the same knots for all columns
        middle = middle.all(0)
        low, high = middle.nonzero()[[0, -1], 0].tolist()
        ends = torch.cat([y[:, :low] - y[:, low, None] + x[:, low, None], x[:, low : high + 1]], 1)
        y = torch.cat([ends, y[:, high + 1 :] - y[:, high, None] + x[:, high, None]], 1)
        slope = x.diff() / y.diff()
        x, y = _reaching(x, y, reach.to(x), slope[:, [0, -1]].clamp(max=FAR_SLOPE))
        return cls(*_bounded(x, y, part, rise, gap), columns)

    @classmethod
    def fit_core(cls, rows: Tensor, columns: Sequence[int], reach: Tensor) -> Marginals:
        """Fits splines that leave the middle of standardised columns as it is and bring values far out near it.

        Arguments:
            rows: The rows, with shape (N, D).
            columns: Numbers of the d columns to map.
            reach: Least and largest value of every column to map, with shape (2, d).
        """
        part = rows[:, list(columns)]
        inside = part.abs() < CORE_SEARCH
        low = part.where(inside, 0.0).amin(0).clamp(-CORE, -CORE / 4)
        high = part.where(inside, 0.0).amax(0).clamp(CORE / 4, CORE)
        x = low[:, None] + (high - low)[:, None] * torch.linspace(
            0, 1, CORE_KNOTS, dtype=part.dtype, device=part.device
        )
        return cls(*_reaching(x, x, reach.to(x), torch.ones_like(x[:, :2])), columns)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images (B, d) and logdets (B,) of x (B, d)."""
        return self._map(x, self.spline.forward)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns preimages (B, d) and logdets (B,) of the inverse map for y (B, d)."""
        return self._map(y, self.spline.inverse)

    def _map(self, x: Tensor, spline: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        if self.columns is None:
            y, log_derivative = spline(x)
            return y, log_derivative.sum(1)
        mapped, log_derivative = spline(x[:, list(self.columns)])
        values = list(x.unbind(1))
        for column, value in zip(self.columns, mapped.unbind(1), strict=True):
            values[column] = value
        return torch.stack(values, 1), log_derivative.sum(1)


def is_partial(stage: nn.Module) -> TypeGuard[Marginals]:
    """Tells whether a stage maps the quantiles of some of the columns alone."""
    return isinstance(stage, Marginals) and stage.columns is not None


def _bounded(x: Tensor, y: Tensor, rows: Tensor, rise: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """Adds knots beyond knots (d, K), so that far outside rows (N, d) the slope is at most one over their deviation."""
    steepest = 1 / rows.std(0)[:, None].clamp(min=1e-30)
    return with_tails(x, y, Tails(outer_secants(x, y).clamp(max=steepest), rise, gap, math.inf))


def _reaching(x: Tensor, y: Tensor, reach: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Adds a knot at both ends of knots (d, K): at the farthest values (2, d), or where slopes dx/dy (d, 2) lead to."""
    low = torch.minimum(reach[0], x[:, 0] - FAR_RISE * slope[:, 0])
    high = torch.maximum(reach[1], x[:, -1] + FAR_RISE * slope[:, -1])
    x = torch.cat([low[:, None], x, high[:, None]], 1)
    return x, torch.cat([y[:, :1] - FAR_RISE, y, y[:, -1:] + FAR_RISE], 1)
