"""Values of columns of numbers that so many rows share that they are states of their own: zeros, -999, bounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.columns.codec import Floats
from jkoflow.links import Link

MOST_SPIKES = 8
"""Largest number of repeated values of a column that are states of their own."""

SPIKE_ROWS, SPIKE_SHARE, SPIKE_FACTOR = 5, 2e-4, 10
"""A value is a spike from so many rows, such a share of them, and so many times more rows than other values on."""

FEW_NUMBERS = 100
"""Different numbers under which half of them, not nine tenths, tell how many rows share a number that is no spike."""

FAR = 1.0
"""Distance from all others, in ranges of the middle nine tenths of these, from which a repeated value is a code."""

LATTICE_ROWS, LATTICE_SHARE = 10, 0.01
"""On a lattice a value is a spike from so many rows and such a share of them on."""

NEAR = 5
"""Times that a spike on a lattice has more rows than each of so many neighbours on both sides."""

LEAST_OTHERS = 10
"""Different values that there are beside the spikes of a lattice at least."""


def frequent_values(values: Floats, is_lattice: bool, most: int = MOST_SPIKES) -> list[float]:
    """Returns the values that far more rows share than other values, at most so many, in increasing order."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= 2:
        return []
    # among few numbers, the repeated ones are many; a lattice of a few frequent values has no spikes
    level = 0.5 if not is_lattice and len(distinct) < FEW_NUMBERS else 0.9
    typical = float(np.quantile(counts, level, method="lower"))
    least = max(SPIKE_ROWS, SPIKE_SHARE * len(values), SPIKE_FACTOR * typical)
    order = np.argsort(-counts, kind="stable")[:most]
    frequent = {float(distinct[index]) for index in order if counts[index] >= least}
    codes = [] if len(frequent) > MOST_SPIKES else far_codes(distinct, counts)
    return sorted(frequent | set(codes[: MOST_SPIKES - len(frequent)]))


def far_codes(distinct: Floats, counts: NDArray[np.int64]) -> list[float]:
    """Returns the repeated ones of different values that lie far from all others, such as -999."""
    last = len(distinct) - 1
    low, high = distinct[int(np.ceil(0.05 * last))], distinct[int(0.95 * last)]
    gaps = np.diff(distinct, prepend=-np.inf, append=np.inf)
    far = np.minimum(gaps[:-1], gaps[1:]) > FAR * (high - low)
    return distinct[far & (counts >= max(SPIKE_ROWS, SPIKE_SHARE * counts.sum()))].tolist() if high > low else []


def values_apart(values: Floats, step: float) -> list[float]:
    """Returns the values of a lattice that many rows, and far more than those beside them, share; none if many are."""
    distinct, counts = np.unique(values, return_counts=True)
    apart = far_codes(distinct, counts)
    for value, count in zip(distinct, counts, strict=True):
        if count >= max(LATTICE_ROWS, LATTICE_SHARE * len(values)):
            near = (np.abs(distinct - value) < (NEAR + 0.5) * step) & (distinct != value)
            if value not in apart and count >= NEAR * counts[near].max(initial=0):
                apart.append(float(value))
    apart.sort()
    return apart if len(apart) <= min(MOST_SPIKES, len(distinct) - LEAST_OTHERS) else []


def bounded_by(others: Floats, spikes: list[float], step: float) -> Link | None:
    """Returns the link of numbers that have a repeated 0 below them, or lie between 0 and a repeated 1 or 100.

    Arguments:
        others: The numbers, on a lattice without the cells of the spikes.
        spikes: The repeated values.
        step: Distance of neighbours on the lattice; 0 if there is none.
    """
    low, high = (step * sum(spike <= end for spike in spikes) for end in (0.0, float(others.max())))
    lower = (0.5 if 0.0 in spikes else -0.5) * step - low
    if not others.min() > lower or others.min() + low <= 0:
        return None
    for bound in (1.0, 100.0):
        if bound in spikes and others.max() < (upper := bound - 0.5 * step - high):
            return Link("logit", lower=lower, upper=upper)
    return Link("log", lower=lower) if 0.0 in spikes else None
