"""Choosing the initial map from the data alone, in closed form.

Blocks do the rest as fast from standardised columns as from whitened ones or from a Gaussian copula (docs/sweep.md).
What costs them long is a distance from the centre that spans orders of magnitude, as that of patches of photographs
does: velocities of tanh units act on one scale at a time.
"""

from __future__ import annotations

from torch import Tensor

from jkoflow.flow import base_log_prob
from jkoflow.initial_map import InitialMap
from jkoflow.metrics import spread_rows

AUTO = "auto"
"""The setting that asks for a choice."""

RADIAL_GAIN = 0.25
"""Nats per column that a radial map must gain over whitening alone to be taken."""

FIT_ROWS = 100_000
"""Rows that a map is fitted to, at most: more do not move its quantiles."""


def fit_map(rows: Tensor, recipe: str) -> InitialMap:
    """The initial map of a recipe, or the one to choose, for standardised rows (N, d)."""
    rows = spread_rows(rows, FIT_ROWS)
    if recipe != AUTO:
        return InitialMap.fit(rows, recipe)
    radial = InitialMap.fit(rows, "whiten+radial")
    gain = gaussian_nll(InitialMap.fit(rows, "whiten"), rows) - gaussian_nll(radial, rows)
    return radial if gain >= RADIAL_GAIN * rows.shape[1] else InitialMap()


def gaussian_nll(initial_map: InitialMap, rows: Tensor) -> float:
    """Mean NLL of rows (N, d) in nats, if their images were standard Gaussian."""
    y, logdet = initial_map(rows)
    return -float((base_log_prob(y) + logdet).double().mean())
