"""The masses of one discrete column given the columns before it and the context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import cast

import torch
from torch import Tensor, nn

from jkoflow.masses.learner import CHUNK, MEMBERS, Learner, Rows
from jkoflow.masses.networks import Networks
from jkoflow.masses.table import LEAST_GAIN, Table, best_table, cell_of, shares
from jkoflow.masses.trees import Trees

LEARNERS = ("networks", "trees")
"""Names of what learns from several columns and the context."""

LEAST_ROWS = 100
"""Fewer rows train no networks and trees."""

MOST_JUDGED = 16384
"""Rows that decide about the parts and weights of a mixture, at most."""

ROUNDS = 50
"""Steps of the expectation-maximisation that finds the weights of a mixture."""


class Column(nn.Module):
    """The masses of a column's states: a mixture of their shares, their shares given the parents, and learners.

    Arguments:
        levels: Number of states of the columns before it, and of the column itself.
        context_dim: Number c of conditioning variables.
        hidden: Widths of the networks' hidden layers.
        parents: Numbers of the earlier columns that the table is for.
        learners: Which learners there are, in their order: "networks", "trees".
    """

    def __init__(
        self,
        levels: Sequence[int],
        context_dim: int,
        hidden: Sequence[int],
        parents: Sequence[int],
        learners: Sequence[str],
    ) -> None:
        super().__init__()
        self.levels, self.parents, count = tuple(levels), tuple(parents), levels[-1]
        cells = math.prod(self.levels[parent] for parent in self.parents)
        equal = torch.full((cells, count), -math.log(count), dtype=torch.float32)
        self.shares, self.table = nn.Parameter(equal[:1].clone()), nn.Parameter(equal)
        self.learners = nn.ModuleDict()
        for name in learners:
            self.learners[name] = (
                Networks(self.levels[:-1], context_dim, hidden, count)
                if name == "networks"
                else Trees(len(self.levels) - 1, count)
            )
        self.weights = nn.Parameter(torch.full((2 + len(learners),), 1 / (2 + len(learners)), dtype=torch.float32))

    def forward(self, states: Tensor, context: Tensor) -> Tensor:
        """Returns log masses (B, K) in float64 for states (B, k), the later ones of which do not matter."""
        cell = cell_of(states, self.levels, self.parents)
        parts = [self.shares.expand(len(states), -1).double(), self.table[cell].double()]
        for learner in self.all_learners():
            parts.append(learner(states[None], context[None]).double().logsumexp(0) - math.log(MEMBERS))
        weights = self.weights.double()
        return ((weights / weights.sum()).log()[:, None, None] + torch.stack(parts)).logsumexp(0)

    def chunks(self, count: int) -> list[slice]:
        """Returns slices of ``count`` rows, at least one slice, that need a bounded memory each."""
        length = max(1, CHUNK // (8 * self.levels[-1] + sum(learner.width for learner in self.all_learners())))
        return [slice(start, start + length) for start in range(0, max(count, 1), length)]

    def all_learners(self) -> list[Learner]:
        """Returns the learners in their order."""
        return cast("list[Learner]", list(self.learners.values()))

    @classmethod
    def fit(
        cls,
        rows: Rows,
        held: Rows | None,
        levels: Sequence[int],
        hidden: Sequence[int],
        generator: torch.Generator,
        learns: bool = True,
    ) -> Column:
        """Fits the masses of the last of some columns.

        Arguments:
            rows: The rows, at least one.
            held: Rows to choose by. If left out, every learner leaves out a part of the rows and is judged by it.
            levels: Number of states of the columns before it, and of the column itself.
            hidden: Widths of the networks' hidden layers.
            generator: Source of the random numbers.
            learns: Whether there is time for networks and trees.
        """
        tables = [shares(rows.states, levels), best_table(rows.states, levels)]
        learns &= len(rows.states) >= LEAST_ROWS and (rows.context.shape[1] > 0 or max(levels[:-1], default=1) > 1)
        column = cls(levels, rows.context.shape[1], hidden, tables[1].parents, LEARNERS if learns else ())
        judged = rows if held is None else held
        picked, learnt = _folds(len(rows.states), None if held is None else len(held.states), generator)
        seen = picked.flatten() if held is None else picked[0]
        parts = [_log_masses(table, judged.states[seen], levels, left_out=held is None) for table in tables]
        for learner in column.all_learners():
            learner.fit(rows, learnt, judged, picked, generator)
            own = learner.judge(judged, picked)
            parts.append(own.flatten() if held is None else own.logsumexp(0) - math.log(MEMBERS))
        kept, weights = _best_mixture(torch.stack(parts, 1))
        names = [name for number, name in enumerate(column.learners, 2) if number not in kept]
        for name in names:
            del column.learners[name]
        column.weights = nn.Parameter(weights.float())
        with torch.no_grad():
            column.shares.copy_(tables[0].masses.log())
            column.table.copy_(tables[1].masses.log())
        return column


def _folds(count: int, held: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns the numbers of rows that judge each member (M, v), and of the rows (M, n) that it learns from.

    Arguments:
        count: Number of rows to learn from.
        held: Number of rows to judge by; None if those are to learn from, too, but not by the same member.
        generator: Source of the random numbers.
    """
    if held is not None:
        judge = torch.randperm(held, generator=generator)[:MOST_JUDGED]
        return judge.expand(MEMBERS, -1), torch.arange(count).expand(MEMBERS, -1)
    if count < MEMBERS:
        return torch.arange(count)[None], torch.arange(count)[None]
    order = torch.randperm(count, generator=generator)[: count - count % MEMBERS].view(MEMBERS, -1)
    learnt = torch.stack([torch.cat([*order[:out], *order[out + 1 :]]) for out in range(MEMBERS)])
    return order[:, : MOST_JUDGED // MEMBERS], learnt


def _log_masses(table: Table, states: Tensor, levels: Sequence[int], left_out: bool) -> Tensor:
    cell, own = cell_of(states, levels, table.parents), states[:, len(levels) - 1]
    return (table.left_out if left_out else table.masses)[cell, own].log()


def _best_mixture(parts: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """Returns which parts the best mixture has, always the first two, and their weights.

    No weight is zero: to each part half a row is added that it alone explains.

    Arguments:
        parts: Log masses (R, P) that the parts give to the states of rows that they have not learnt from.
    """
    best, found = -math.inf, ((0, 1), torch.ones(2))
    others = range(2, parts.shape[1])
    for kept in ((0, 1, *more) for size in range(len(others) + 1) for more in combinations(others, size)):
        chosen = parts[:, kept]
        weights = torch.full((len(kept),), 1 / len(kept), dtype=torch.float64)
        for _ in range(ROUNDS):
            weights = (chosen + weights.log()).softmax(1).sum(0) + 0.5
            weights = weights / weights.sum()
        score = float((chosen + weights.log()).logsumexp(1).sum()) - LEAST_GAIN * len(kept)
        if score > best:
            best, found = score, (kept, weights)
    return found
