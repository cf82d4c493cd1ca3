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


def fit_map(rows: Tensor, recipe: str, first: Sequence[Marginals] = ()) -> InitialMap:
    """Returns the initial map that is fitted to standardised rows (N, d).

    Arguments:
        rows: The rows.
        recipe: Name of the recipe, or `AUTO`.
        first: Maps of some of the columns that go before the recipe.
    """
    rows = spread_rows(rows, FIT_ROWS)
    for stage in first:
        rows = stage(rows)[0]
    rest = _fit_recipe(rows, recipe)
    return rest.behind(first) if first else rest


def fit_columns(rows: Tensor, quantiles: Sequence[int], core: Sequence[int], reach: Tensor) -> list[Marginals]:
    """Returns the maps of columns whose mean and deviation mislead.

    Arguments:
        rows: Standardised rows, with shape (N, d).
        quantiles: Numbers of the columns of which all quantiles are mapped.
        core: Numbers of the columns of which the middle stays as it is.
        reach: Least and largest known value of every column, with shape (2, d).
    """
    exact = spread_rows(rows, FIT_ROWS).double()
    stages = [Marginals.fit(exact, quantiles, reach[:, list(quantiles)])] if quantiles else []
    if core:
        stages.append(Marginals.fit_core(exact, core, reach[:, list(core)]))
    return [stage.to(rows.dtype) for stage in stages]


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
