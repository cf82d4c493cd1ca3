"""Smoothed shares of a column's states, given the states of some earlier columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

PSEUDO_COUNTS = 0.25 * 2.0 ** torch.arange(16, dtype=torch.float64)
"""Weights, in rows, that a table may give to the next simpler one."""

MOST_CELLS = 1 << 18
"""Masses of the largest table that is tried."""

MOST_PAIRS = 50
"""Pairs of columns are tried, where no single column helps, if there are at most so many."""

LEAST_GAIN = 3.0
"""Nats on all rows together that one more part of a model must gain; less may be chance."""


class Table(NamedTuple):
    """Masses of a column's K states in each of the U cells that the states of its parents make.

    Attributes:
        parents: Numbers of the earlier columns.
        masses: The masses, with shape (U, K).
        left_out: What the masses of a row's own state would be without this row, with shape (U, K).
        score: Sum over all rows of the logarithms of ``left_out``.
    """

    parents: tuple[int, ...]
    masses: Tensor
    left_out: Tensor
    score: float


def cell_of(states: Tensor, levels: Sequence[int], parents: Sequence[int]) -> Tensor:
    """Returns for states (B, k) the numbers (B,) of the cells that the states of the parents make."""
    cell = torch.zeros(len(states), dtype=torch.int64, device=states.device)
    for parent in parents:
        cell = cell * levels[parent] + states[:, parent]
    return cell


def shares(states: Tensor, levels: Sequence[int]) -> Table:
    """Returns the table without parents for the last column of states (N, k)."""
    equal = torch.full((1, levels[-1]), 1 / levels[-1], dtype=torch.float64)
    return _counted(Table((), equal, equal, 0.0), states, levels, ())


def best_table(states: Tensor, levels: Sequence[int]) -> Table:
    """Chooses parents, one after the other or in pairs, for the last column of states (N, k).

    Each choice is the one that predicts rows best that are left out, which needs no second data set.
    """
    best = shares(states, levels)
    while True:
        others = [other for other in range(len(levels) - 1) if levels[other] > 1 and other not in best.parents]
        pairs = list(combinations(others, 2))
        for groups in ([(other,) for other in others], pairs if len(pairs) <= MOST_PAIRS else []):
            fitting = [group for group in groups if _fits(best, levels, group)]
            tried = (_extended(best, states, levels, group) for group in fitting)  # one in memory at a time
            found = max(tried, key=lambda table: table.score, default=best)
            bar = best.score + LEAST_GAIN + math.log(max(len(fitting), 1))
            if found.score > bar:
                best = found
                break
        else:
            return best


def _fits(table: Table, levels: Sequence[int], group: Sequence[int]) -> bool:
    return table.masses.numel() * math.prod(levels[other] for other in group) <= MOST_CELLS


def _extended(table: Table, states: Tensor, levels: Sequence[int], group: Sequence[int]) -> Table:
    for other in group:
        table = _counted(table, states, levels, (other,))
    return table


def _counted(table: Table, states: Tensor, levels: Sequence[int], more: tuple[int, ...]) -> Table:
    """Splits a table's cells by one more parent, or by none, and counts rows in them.

    The masses of the table count as a number of rows that predicts rows best that are left out.

    References:
        | A hierarchical Dirichlet language model (MacKay and Peto, 1995)
        | https://doi.org/10.1017/S1351324900000218
    """
    parents, (times, count) = (*table.parents, *more), (math.prod(levels[other] for other in more), levels[-1])
    simple, left_out = (part.repeat_interleave(times, 0) for part in (table.masses, table.left_out))
    place = cell_of(states, levels, parents) * count + states[:, len(levels) - 1]
    rows = torch.bincount(place, minlength=simple.numel()).view(-1, count).double()
    total = rows.sum(1, keepdim=True)
    seen = rows > 0
    own, together, prior = rows[seen] - 1, total.expand_as(rows)[seen] - 1, left_out[seen]
    scores = torch.stack([(((own + c * prior) / (together + c)).log() * rows[seen]).sum() for c in PSEUDO_COUNTS])
    best, pseudo = float(scores.max()), PSEUDO_COUNTS[int(scores.argmax())]
    return Table(
        parents,
        (rows + pseudo * simple) / (total + pseudo),
        ((rows - 1).clamp(min=0) + pseudo * left_out) / ((total - 1).clamp(min=0) + pseudo),
        best,
    )
