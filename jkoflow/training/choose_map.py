"""The choice of the initial map from the data alone, in closed form.

Blocks train as fast on standardised columns as on whitened ones or on a Gaussian copula (docs/sweep.md). They train
slowly where the distances from the centre span orders of magnitude, as those of patches of photographs do: velocities
of tanh units act on one scale at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from jkoflow.flow import base_log_prob
from jkoflow.initial_map import InitialMap, Marginals
from jkoflow.metrics import spread_rows

AUTO = "auto"
"""Value of ``initial_map`` that lets `fit_map` choose the recipe."""

RADIAL_GAIN = 0.25
"""Nats per column that a radial map must gain over whitening alone to be taken."""

FIT_ROWS = 100_000
"""Largest number of rows that a map is fitted to; more rows do not move its quantiles."""


def fit_map(rows: Tensor, recipe: str, robust: Sequence[int] = (), reach: Tensor | None = None) -> InitialMap:
    """Returns the initial map that is fitted to standardised rows (N, d).

    Arguments:
        rows: The rows.
        recipe: Name of the recipe, or `AUTO`.
        robust: Numbers of columns whose quantiles are mapped first.
        reach: Least and largest values known of in these columns, see `jkoflow.initial_map.Marginals.fit`.
    """
    rows = spread_rows(rows, FIT_ROWS)
    if not robust:
        return _fit_recipe(rows, recipe)
    stage = Marginals.fit(rows.double(), robust, reach).to(rows.dtype)
    rest = _fit_recipe(stage(rows)[0], recipe)
    return InitialMap([stage, *rest.stages])


def _fit_recipe(rows: Tensor, recipe: str) -> InitialMap:
    if recipe != AUTO:
        return InitialMap.fit(rows, recipe)
    radial = InitialMap.fit(rows, "whiten+radial")
    gain = gaussian_nll(InitialMap.fit(rows, "whiten"), rows) - gaussian_nll(radial, rows)
    return radial if gain >= RADIAL_GAIN * rows.shape[1] else InitialMap()


def gaussian_nll(initial_map: InitialMap, rows: Tensor) -> float:
    """Returns the mean NLL of rows (N, d) in nats, as if their images under the map were standard Gaussian."""
    y, logdet = initial_map(rows)
    return -float((base_log_prob(y) + logdet).double().mean())
