"""The choice of the initial map from the data alone, in closed form.

Blocks train as fast on standardised columns as on whitened ones or on a Gaussian copula (docs/sweep.md). They train
slowly where the distances from the centre span orders of magnitude, as those of patches of photographs do: velocities
of tanh units act on one scale at a time.
"""

from __future__ import annotations

from torch import Tensor

from jkoflow.flow import base_log_prob
from jkoflow.initial_map import InitialMap
from jkoflow.metrics import spread_rows

AUTO = "auto"
"""Value of ``initial_map`` that lets `fit_map` choose the recipe."""

RADIAL_GAIN = 0.25
"""Nats per column that a radial map must gain over whitening alone to be taken."""

FIT_ROWS = 100_000
"""Largest number of rows that a map is fitted to; more rows do not move its quantiles."""


def fit_map(rows: Tensor, recipe: str) -> InitialMap:
    """Returns the initial map that a recipe, or the choice for `AUTO`, fits to standardised rows (N, d)."""
    rows = spread_rows(rows, FIT_ROWS)
    if recipe != AUTO:
        return InitialMap.fit(rows, recipe)
    radial = InitialMap.fit(rows, "whiten+radial")
    gain = gaussian_nll(InitialMap.fit(rows, "whiten"), rows) - gaussian_nll(radial, rows)
    return radial if gain >= RADIAL_GAIN * rows.shape[1] else InitialMap()


def gaussian_nll(initial_map: InitialMap, rows: Tensor) -> float:
    """Returns the mean NLL of rows (N, d) in nats, as if their images under the map were standard Gaussian."""
    y, logdet = initial_map(rows)
    return -float((base_log_prob(y) + logdet).double().mean())
