"""The choice of the initial map from the data alone, in closed form.

Blocks train faster on whitened columns than on standardised ones. They train slowly where columns have spikes or tails
of their own, or where the distances from the centre span orders of magnitude, as those of patches of photographs do:
velocities of tanh units act on one scale at a time. Splines take spikes and tails away column by column, but bend what
was straight between columns, so that they are taken only where the columns as a whole gain nearly as much as each of
them does by itself (docs/sweep.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from jkoflow.data.continuous import Scale
from jkoflow.flow import base_log_prob
from jkoflow.former_names import FORMER_AUTO
from jkoflow.gain import Gain, paired_gain
from jkoflow.initial_map import InitialMap, Marginals, held_out_nll
from jkoflow.metrics import spread_rows

AUTO = "auto"
"""Value of ``initial_map`` that lets `fit_map` choose the recipe."""

RADIAL_GAIN = 0.25
"""Nats per column that a radial map must gain over whitening alone to be taken."""

MARGINALS_GAIN = 0.05
"""Nats per column that splines must gain over standard Gaussians to be taken."""

MARGINALS_KEPT = 0.8
"""Share of that gain that must be left between whitened rows: the rest is what bent dependences cost."""

CHOICE_ROWS, CHOICE_VALUES = 5000, 100_000
"""Largest numbers of rows and of values that a choice looks at; every row judges a map that was fitted to others."""

FEWEST_ROWS = 50
"""Smallest number of rows that a choice is made from; for fewer there is only whitening."""

FIT_ROWS = 100_000
"""Largest number of rows that a map is fitted to; more rows do not move its quantiles."""


class Worth:
    """What recipes are worth to standardised rows, each judged by maps that were fitted to other rows.

    Arguments:
        rows: The rows, with shape (N, d), of which at most `CHOICE_ROWS` are looked at.
    """

    def __init__(self, rows: Tensor) -> None:
        self.columns = rows.shape[1]
        self._rows = spread_rows(rows, min(CHOICE_ROWS, max(CHOICE_VALUES // self.columns, 10 * self.columns)))
        self._nll: dict[str, Tensor] = {}

    def gain(self, before: str, after: str) -> Gain:
        """Returns what the rows gain from one recipe to another; nothing if they are too few."""
        if len(self._rows) < FEWEST_ROWS:
            return Gain(0.0, math.nan)
        return paired_gain(self._of(before), self._of(after))

    def _of(self, recipe: str) -> Tensor:
        if recipe not in self._nll:
            self._nll[recipe] = held_out_nll(self._rows, recipe)
        return self._nll[recipe]

    @property
    def wants_splines(self) -> bool:
        """Tells whether splines of all columns should go before the rest of the map."""
        alone = self.gain("none", "marginals").value
        if not alone >= MARGINALS_GAIN * self.columns:
            return False
        together = self.gain("whiten", "marginals+whiten")
        return together.value >= MARGINALS_KEPT * alone and together.is_clear and together.value >= self._radial_gain

    @property
    def wants_radial(self) -> bool:
        """Tells whether a radial map should go behind whitening."""
        return self._radial_gain >= RADIAL_GAIN * self.columns

    @property
    def _radial_gain(self) -> float:
        return self.gain("whiten", "whiten+radial").value  # no gain of heavy tails would be clear


def fit_map(rows: Tensor, recipe: str, first: Sequence[Marginals] = (), worth: Worth | None = None) -> InitialMap:
    """Returns the initial map that is fitted to standardised rows (N, d).

    Arguments:
        rows: The rows.
        recipe: Name of the recipe, or `AUTO`.
        first: Maps of some of the columns that go before the recipe.
        worth: What recipes are worth to the rows, if that is known; not used behind other maps.
    """
    rows = spread_rows(rows, FIT_ROWS)
    for stage in first:
        rows = stage(rows)[0]
    rest = _fit_recipe(rows, recipe, Worth(rows) if first or worth is None else worth)
    return rest.behind(first) if first else rest


FITS = {Scale.QUANTILES: Marginals.fit, Scale.ENDS: Marginals.fit_ends, Scale.CORE: Marginals.fit_core}
"""The fits of the maps of columns whose mean and deviation mislead."""


def fit_columns(rows: Tensor, columns: Mapping[Scale, Sequence[int]], reach: Tensor) -> list[Marginals]:
    """Returns the maps of columns whose mean and deviation mislead.

    Arguments:
        rows: Standardised rows, with shape (N, d).
        columns: Numbers of the columns for every kind of map.
        reach: Least and largest known value of every column, with shape (2, d).
    """
    exact = spread_rows(rows, FIT_ROWS).double()
    if list(columns.get(Scale.QUANTILES, ())) == list(range(rows.shape[1])):  # a stage of the recipe, by its name
        return [Marginals.fit(exact, None, reach).to(rows.dtype)]
    stages = [FITS[scale](exact, numbers, reach[:, list(numbers)]) for scale, numbers in columns.items()]
    return [stage.to(rows.dtype) for stage in stages]


def _fit_recipe(rows: Tensor, recipe: str, worth: Worth) -> InitialMap:
    if recipe == AUTO:
        recipe = "whiten+radial" if worth.wants_radial else "whiten"
    if recipe == FORMER_AUTO:
        gain = _mean_nll(rows, "whiten") - _mean_nll(rows, "whiten+radial")
        recipe = "whiten+radial" if gain >= RADIAL_GAIN * rows.shape[1] else "none"
    return InitialMap.fit(rows, recipe)


def _mean_nll(rows: Tensor, recipe: str) -> float:
    """Returns the mean NLL of the rows (N, d) that a recipe is fitted to, as if their images were standard Gaussian."""
    y, logdet = InitialMap.fit(rows, recipe)(rows)
    return -float((base_log_prob(y) + logdet).double().mean())
