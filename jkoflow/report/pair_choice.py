"""The choice of the pairs of columns that are worth a picture, each by a measured quantity that is told with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.data.columns.codec import missing
from jkoflow.report.column_views import ColumnView
from jkoflow.report.page import number
from jkoflow.report.probes import Array

Ints = NDArray[np.int64]

MOST_COLUMNS = 64
"""Largest number of columns whose pairs are looked at; of more, those that fit worst one by one."""

SHUFFLES = 19
"""Random exchanges of data and samples: the largest of their mismatches is exceeded in one case of twenty."""


@dataclass(frozen=True)
class Pair:
    """Two columns, and what they were chosen by."""

    first: int
    second: int
    quantity: str
    """``"mismatch"`` of data and samples in these two columns, or their ``"dependence"`` among the data."""
    value: float
    """The quantity in nats, less what it is by chance on average."""

    def said(self) -> str:
        """Returns what the pair was chosen by."""
        return f"{self.quantity} {number(self.value)}" if self.value > 0 else f"no {self.quantity}"


@dataclass(frozen=True)
class Choice:
    """The chosen pairs, the most telling of either kind first."""

    pairs: list[Pair]
    chance: float
    """Mismatch that chance alone exceeds in the worst of all pairs in one case of twenty."""
    looked_at: int
    """Number of columns whose pairs were looked at."""


def choose_pairs(views: Sequence[ColumnView], count: int = 6) -> Choice:
    r"""Chooses pairs by turns: those in which data and samples differ most, and those that depend most on each other.

    Both are mutual informations of cells that hold a level each, or about as many values: dependence is that of the two
    columns among the data; mismatch is that of the pair's cell with whether a row is one of the data or a sample, the
    Jensen-Shannon divergence of the two. A pair counts as a mismatch only beyond what exchanging data and samples at
    random gives to the worst of all pairs; if there are too few, dependent pairs take their place. A column appears in
    at most two pairs while others are left.

    Arguments:
        views: The columns, with data and samples.
        count: Number of pairs.

    Returns:
        At most ``count`` different pairs, first < second.
    """
    size = min(len(values) for view in views for values in view.numbers[:2])
    known = range(len(views))
    if len(views) > MOST_COLUMNS:
        worst = np.argsort([-view.distance / max(view.chance, 1e-9) for view in views], kind="stable")
        known = sorted(worst[:MOST_COLUMNS].tolist())
    bins = int(np.clip(math.sqrt(size / 6), 3, 12))
    cells = [_cells(views[k], size, bins) for k in known]
    widths = np.array([1 + int(pair.max()) for pair in cells])
    starts = np.cumsum(widths) - widths
    data, samples = (_indicators([pair[k] for pair in cells], widths) for k in (0, 1))

    counts, drawn = _joint(data), _joint(samples)
    mismatch = _mismatch(counts, drawn, starts, size)
    above, chance = np.triu_indices(len(known), 1), 0.0
    random = torch.Generator().manual_seed(0)
    for _ in range(SHUFFLES):
        # sample k may have been drawn in the context of row k: the two change places, or stay
        shuffled = _joint(torch.where(torch.rand(size, 1, generator=random) < 0.5, data, samples))
        found = _mismatch(shuffled, counts + drawn - shuffled, starts, size)
        chance = max(chance, float(found[above].max()))

    scores = {
        "mismatch": np.where(mismatch > chance, mismatch, -np.inf),
        "dependence": _dependence(counts, starts, widths, size),
    }
    pairs = [
        Pair(known[i], known[j], quantity, float(scores[quantity][i, j]))
        for quantity, i, j in itertools.islice(_by_turns(scores), count)
    ]
    return Choice(pairs, chance, len(known))


def _by_turns(scores: Mapping[str, Array]) -> Iterator[tuple[str, int, int]]:
    """Yields all pairs i < j, by turns the one of largest score of each kind, none of an infinitely small score."""
    size = len(next(iter(scores.values())))
    pairs = [(i, j) for i in range(size) for j in range(i + 1, size)]
    orders = {}
    for quantity, score in scores.items():
        possible = [pair for pair in pairs if score[pair] > -np.inf]
        orders[quantity] = sorted(possible, key=lambda pair, score=score: -score[pair])
    uses, done = [0] * size, set()
    for limit in (2, size):
        turns = itertools.cycle(orders)
        misses = 0
        while misses < len(orders):
            quantity = next(turns)
            free = (pair for pair in orders[quantity] if pair not in done and max(uses[k] for k in pair) < limit)
            pair = next(free, None)
            misses = 0 if pair else misses + 1
            if pair:
                done.add(pair)
                for k in pair:
                    uses[k] += 1
                yield quantity, *pair


def _cells(view: ColumnView, size: int, bins: int) -> Ints:
    """Returns the cells (2, size) that the first values of data and samples lie in, numbered without gaps."""
    pooled = np.concatenate([values[:size] for values in view.numbers[:2]])
    pooled = np.where(missing(pooled), -np.inf, pooled)
    if view.form == "levels":
        levels, places, counts = np.unique(pooled, return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        cell = np.empty(len(levels), np.int64)
        cell[order] = np.minimum(np.arange(len(levels)), bins - 1)  # rare levels share one
        return cell[places].reshape(2, size)
    _, places, counts = np.unique(pooled, return_inverse=True, return_counts=True)
    before = np.cumsum(counts) - counts  # equal values share a cell
    cell = (before * bins // len(pooled))[places]
    return np.unique(cell, return_inverse=True)[1].reshape(2, size)


def _indicators(cells: Sequence[Ints], widths: Ints) -> Tensor:
    """Returns a matrix (n, sum of widths) of ones where a row lies in a column's cell."""
    parts = [
        torch.nn.functional.one_hot(torch.from_numpy(rows), int(width))
        for rows, width in zip(cells, widths, strict=True)
    ]
    return torch.cat(parts, 1).float()


def _joint(indicators: Tensor) -> Array:
    """Returns how many rows lie in every two cells; float32 is exact below 2^24."""
    return (indicators.T @ indicators).double().numpy()


def _sums(cells: Array, starts: Ints) -> Array:
    """Returns the sums over the cells of every two columns, with shape (d, d)."""
    return np.add.reduceat(np.add.reduceat(cells, starts, 0), starts, 1)


def _entropic(counts: Array) -> Array:
    """Returns counts times their logarithms, 0 for none."""
    return counts * np.log(np.maximum(counts, 1))


def _mismatch(counts: Array, drawn: Array, starts: Ints, size: int) -> Array:
    """Returns the information in nats that the cells of every two columns hold about whether a row was drawn."""
    pooled, rows = counts + drawn, 2 * size
    information = _sums(_entropic(counts) + _entropic(drawn) - _entropic(pooled), starts) / rows + math.log(2)
    return information - (_sums((pooled > 0).astype(np.float64), starts) - 1) / (2 * rows)


def _dependence(counts: Array, starts: Ints, widths: Ints, size: int) -> Array:
    """Returns the information in nats that every two columns of the data hold about each other."""
    single = np.add.reduceat(_entropic(np.diag(counts)), starts)
    information = (_sums(_entropic(counts), starts) - single[:, None] - single[None, :]) / size + math.log(size)
    return information - np.outer(widths - 1, widths - 1) / (2 * size)
