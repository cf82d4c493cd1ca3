"""Whether a model is as sure as it should be: where observed values lie among samples that were drawn for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jkoflow.report import draws
from jkoflow.report.page import number
from jkoflow.report.probes import Array
from jkoflow.report.readings import percent
from jkoflow.report.results import Results

SAMPLES = 31
"""Samples that are drawn in the context of each row."""

LEVEL = 0.05
"""Probability with which chance alone is found to be a fault."""


@dataclass(frozen=True)
class Calibration:
    """Places of test rows among samples: each is uniform on [0, 1] if the model is right."""

    regions: Array
    """Share (n,) of the distribution that is denser than the row: the smallest region of highest density that holds the
    row holds so much."""
    margin: float
    """Distance of the shares' distribution from the uniform one that chance alone exceeds in one case of twenty."""
    transforms: Mapping[str, Array]
    """Share (n,) of each column's distribution given the row's context that is below the row's value (probability
    integral transform, PIT); empty for an unconditional model and for columns without an order."""
    samples: int
    """Samples that a row was compared with."""

    def transform_margin(self) -> float:
        """Returns the distance from the uniform distribution that chance alone exceeds in any column, likewise."""
        return kolmogorov(len(self.regions), LEVEL / max(len(self.transforms), 1))


def calibration(run: Results, seed: int = 0) -> Calibration:
    """Compares test rows with samples; the work is bounded, and the same seed gives the same.

    The rows of a conditional model are compared each with samples of their own; those of an unconditional one all with
    the same samples. Ranks among ties are drawn at random, so that they are uniform for columns of any kind.

    Arguments:
        run: The run.
        seed: Seed of the samples and of the ranks among ties.

    References:
        | Probabilistic forecasts, calibration and sharpness (Gneiting et al., 2007)
        | https://doi.org/10.1111/j.1467-9868.2007.00587.x
        | Validating Bayesian inference algorithms with simulation-based calibration (Talts et al., 2018)
        | https://arxiv.org/abs/1804.06788
    """
    columns, given = draws.held_out(run)
    total, count = draws.affordable(run), len(next(iter(columns.values())))
    random = np.random.default_rng(seed)
    if not given:
        rows = _spread(count, total // 4)
        _, drawn = draws.draw(run, min(total // 2, 4 * len(rows)), {}, seed)
        known = draws.log_prob(run, {name: values[rows] for name, values in columns.items()}, {})
        shares = _ranks(-known, np.broadcast_to(-drawn, (len(rows), len(drawn))), random)
        return Calibration(shares, kolmogorov(len(rows), LEVEL, len(drawn)), {}, len(drawn))
    rows = _spread(count, total // SAMPLES)
    columns, given = ({name: values[rows] for name, values in part.items()} for part in (columns, given))
    repeated = {name: np.repeat(values, SAMPLES) for name, values in given.items()}
    samples, drawn = draws.draw(run, len(rows) * SAMPLES, repeated, seed)
    shares = _ranks(-draws.log_prob(run, columns, given), -drawn.reshape(-1, SAMPLES), random)
    transforms = {}
    for view in draws.views_of(run, columns, samples):
        if view.form != "levels":
            data, values = (np.nan_to_num(part, nan=-np.inf) for part in view.numbers)
            transforms[view.name] = _ranks(data, values.reshape(-1, SAMPLES), random)
    return Calibration(shares, kolmogorov(len(rows), LEVEL), transforms, SAMPLES)


def _spread(count: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _ranks(values: Array, samples: Array, random: np.random.Generator) -> Array:
    """Returns the places (n,) in [0, 1] of values (n,) among samples (n, m), at random among equal ones."""
    below, equal = (samples < values[:, None]).sum(1), (samples == values[:, None]).sum(1)
    return (below + random.random(len(values)) * (equal + 1)) / (samples.shape[1] + 1)


def kolmogorov(count: int, level: float, others: float = math.inf) -> float:
    """Returns the distance of count values' distribution from that of many, or of others, that chance exceeds.

    It is the asymptotic one of Kolmogorov and Smirnov with the correction of Stephens for few values.
    """
    size = math.sqrt(count if math.isinf(others) else count * others / (count + others))
    return math.sqrt(-math.log(level / 2) / 2) / (size + 0.12 + 0.11 / size)


def distance(shares: Array) -> float:
    """Returns the largest distance of the distribution of shares (n,) from the uniform one."""
    ordered = np.sort(shares)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


def coverage(shares: Array, level: float) -> float:
    """Returns how many of the rows lie in the region of highest density that should hold so many."""
    return float(np.mean(shares <= level))


def verdict(found: Calibration) -> list[str]:
    """Returns what the places of the rows say about the model, a sentence each."""
    at = " and ".join(
        f"the region of highest density that should hold {percent(level)} holds {percent(held)}"
        for level, held in ((level, coverage(found.regions, level)) for level in (0.5, 0.9))
    )
    gap = distance(found.regions)
    if gap <= found.margin:
        sentences = [f"No fault in the coverage that {len(found.regions):,} test rows could show: {at} of them."]
    else:
        held = np.mean(found.regions) <= 0.5
        what = "too unsure: its regions are too large" if held else "too sure: its regions are too small"
        sentences = [f"The model is {what}; {at} of {len(found.regions):,} test rows."]
    margin = found.transform_margin()
    faults = [f"{name} {_fault(shares)}" for name, shares in found.transforms.items() if distance(shares) > margin]
    if faults:
        sentences.append(f"Given the context, not calibrated: {'; '.join(faults[:8])}" + _more(faults) + ".")
    elif found.transforms:
        columns = f"any of {len(found.transforms)} columns" if len(found.transforms) > 1 else "the column"
        sentences.append(
            f"Given the context, the PIT of {columns} is as uniform as chance allows (distance from uniform at most "
            f"{number(max(distance(shares) for shares in found.transforms.values()))}, allowed {number(margin)})."
        )
    return sentences


def _more(faults: list[str]) -> str:
    return f"; and {len(faults) - 8} more columns" if len(faults) > 8 else ""


def _fault(shares: Array) -> str:
    """Returns in which way the places of a column's values are not uniform."""
    size = math.sqrt(len(shares))
    outer = float(np.mean((shares < 0.1) | (shares > 0.9)))
    shift = (float(np.mean(shares)) - 0.5) * math.sqrt(12) * size
    if abs(shift) > max(3.0, abs(outer - 0.2) / 0.4 * size):
        where = "too low" if shift > 0 else "too high"
        return f"is predicted {where} ({percent(float(np.mean(shares > 0.5)))} of the values lie above the median)"
    if abs(outer - 0.2) / 0.4 * size > 2:
        what = "too sure" if outer > 0.2 else "too unsure"
        return f"is predicted {what} ({percent(outer)} of the values lie in the outer fifth)"
    return f"has a distribution of another shape (distance {number(distance(shares))})"
