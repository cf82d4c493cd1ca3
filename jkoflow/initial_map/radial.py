"""The map of the distances from the centre."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from jkoflow.knots import RESOLUTION, Tails, outer_secants, quantile_knots, with_tails
from jkoflow.spline import MonotoneSpline

LEAST_DISTANCE = 1e-6
"""Distance from the centre, as a share of the median distance, below which a distance is rounding."""


class Radial(nn.Module):
    """Maps the distance from the origin and keeps the direction.

    Arguments:
        x: Knots: logarithms of distances, with shape (1, K).
        y: Images of the knots: logarithms of the new distances, with shape (1, K).

    References:
        | Reducing statistical dependencies in natural signals using radial Gaussianization (Lyu and Simoncelli, 2008)
        | https://papers.nips.cc/paper/3401
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.spline = MonotoneSpline(x, y)

    @classmethod
    def fit(cls, rows: Tensor) -> Radial:
        """Fits a map that carries the quantiles of the rows' (N, d) distances to those of a standard Gaussian.

        At the centre, and far outside the rows unless these have heavy tails, distances are multiplied by a constant.
        """
        dim = rows.shape[1]
        distance = _log_distance(rows)
        distance = distance.clamp(min=float(distance.median()) + math.log(LEAST_DISTANCE))
        gap = RESOLUTION * distance.abs().amax(0)[:, None].clamp(min=1)
        x, y, rise = quantile_knots(distance, lambda levels: _log_gaussian_distance(levels, dim), gap)
        slopes = outer_secants(x, y).clamp(max=1)
        slopes[:, 0] = 1
        return cls(*with_tails(x, y, Tails(slopes, rise, gap, 1.0)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images (B, d) and logdets (B,) of x (B, d)."""
        return self._scale(x, self.spline.forward)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns preimages (B, d) and logdets (B,) of the inverse map for y (B, d)."""
        return self._scale(y, self.spline.inverse)

    def _scale(self, x: Tensor, map_log: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        before = _log_distance(x)
        after, log_derivative = map_log(before)
        # d log r'/d log r along the ray, r'/r across it; the volume element adds (r'/r) along
        return x * (after - before).exp(), ((after - before) * x.shape[1] + log_derivative)[:, 0]


def _log_distance(x: Tensor) -> Tensor:
    """Returns the logarithms of the distances of x (B, d) from the origin, with shape (B, 1)."""
    return x.square().sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).log() / 2


def _log_gaussian_distance(levels: Tensor, dim: int) -> Tensor:
    """Computes quantiles at levels (K,) of the logarithm of a standard Gaussian vector's length, by bisection."""
    low = torch.full_like(levels, -40.0)
    high = torch.full_like(levels, math.log(dim + 40.0 * math.sqrt(dim)))
    half = torch.full_like(levels, 0.5 * dim)
    for _ in range(80):
        middle = (low + high) / 2
        below = torch.special.gammainc(half, 0.5 * (2 * middle).exp()) < levels
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
