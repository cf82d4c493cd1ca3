"""What a conditional model says if one conditioning variable is small, middling or large, all others in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.columns.codec import missing
from jkoflow.report import draws
from jkoflow.report.column_views import ColumnView, text_of
from jkoflow.report.probes import Array, ks_distance
from jkoflow.report.results import Results

QUANTILES = (0.1, 0.5, 0.9)

MOST_ASKED = 24
"""Conditioning variables that are tried, the first ones."""

MOST_SHOWN = 6
"""Conditioning variables, and columns, that are shown: those that change most."""

MOST_SAMPLES = 2000
"""Samples for one value."""


@dataclass(frozen=True)
class WhatIf:
    """Samples of all columns for a few values of one conditioning variable."""

    name: str
    labels: tuple[str, ...]
    """Texts of the values."""
    views: list[ColumnView]
    """Columns, with samples for each value in the place of data and samples."""
    effects: Array
    """Largest distance (Kolmogorov-Smirnov) of each column's samples for two of the values."""


def what_if(run: Results, seed: int = 0) -> list[WhatIf]:
    """Draws samples for three values of each conditioning variable, all with the same noise.

    Numbers and dates take their 10 % and 90 % quantiles and their median in the test rows, levels the three that are
    most frequent; all other variables stay at their median, or their most frequent level.

    Arguments:
        run: The run of a conditional model.
        seed: Seed of the noise.

    Returns:
        The conditioning variables of at least two values, at most `MOST_SHOWN`: those of largest effect.
    """
    given = draws.held_out(run)[1]
    middle = {name: _values(values)[1] for name, values in given.items()}
    asked = {name: values for name in list(given)[:MOST_ASKED] if len(values := _values(given[name])[0]) > 1}
    if not asked:
        return []
    count = min(draws.affordable(run) // sum(len(values) for values in asked.values()), MOST_SAMPLES)
    found = []
    for name, values in asked.items():
        samples = []
        for value in values:
            rows = {other: np.array([still] * count, given[other].dtype) for other, still in middle.items()}
            rows[name] = np.array([value] * count, given[name].dtype)
            samples.append(draws.draw(run, count, rows, seed)[0])
        views = draws.views_of(run, *samples)
        found.append(
            WhatIf(name, tuple(text_of(value) for value in values), views, np.array([_effect(v) for v in views]))
        )
    largest = sorted(range(len(found)), key=lambda k: -found[k].effects.max(initial=0.0))[:MOST_SHOWN]
    return [found[k] for k in sorted(largest)]


def _values(values: NDArray[Any]) -> tuple[list[Any], Any]:
    """Returns the values of a conditioning variable that are asked about, and the one in the middle."""
    seen = values[~missing(values)]
    if len(seen) == 0:
        return [], values[0]
    if seen.dtype.kind in "OUSb":
        levels, counts = np.unique(seen.astype(str), return_counts=True)
        names = levels[np.argsort(-counts, kind="stable")][:3].tolist()
        known = {str(value): value for value in seen.tolist()}
        return [known[name] for name in names], known[names[0]]
    ordered = np.sort(seen)
    places = [min(int(q * len(ordered)), len(ordered) - 1) for q in QUANTILES]
    chosen = list(dict.fromkeys(ordered[k] for k in places))
    if len(chosen) == 1:  # nearly all rows share a value
        chosen = list(dict.fromkeys([ordered[0], chosen[0], ordered[-1]]))
    return chosen, ordered[places[1]]


def _effect(view: ColumnView) -> float:
    parts = [np.nan_to_num(values, nan=-np.inf) for values in view.numbers]
    if view.form == "levels":  # total variation
        shares = [np.bincount(part.astype(int), minlength=len(view.labels)) / len(part) for part in parts]
        return max(0.5 * float(np.abs(a - b).sum()) for a in shares for b in shares)
    return max(ks_distance(a, b) for a in parts for b in parts)
