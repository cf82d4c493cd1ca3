"""The masses of one discrete column given the columns before it and the context."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jkoflow.masses.networks import CHUNK, MEMBERS, Networks, Rows
from jkoflow.masses.table import LEAST_GAIN, Table, best_table, cell_of, shares

LEAST_ROWS = 100
"""Fewer rows train no networks."""

ROUNDS = 50
"""Steps of the expectation-maximisation that finds the weights of the mixture."""


class Column(nn.Module):
    """The masses of a column's states: a mixture of their shares, their shares given the parents, and networks.

    Arguments:
        levels: Number of states of the columns before it, and of the column itself.
        context_dim: Number c of conditioning variables.
        hidden: Widths of the networks' hidden layers.
        parents: Numbers of the earlier columns that the table is for.
        networks: Whether there are networks.
    """

    def __init__(
        self, levels: Sequence[int], context_dim: int, hidden: Sequence[int], parents: Sequence[int], networks: bool
    ) -> None:
        super().__init__()
        self.levels, self.parents = tuple(levels), tuple(parents)
        count, cells = self.levels[-1], math.prod(self.levels[parent] for parent in self.parents)
        equal = torch.full((cells, count), -math.log(count), dtype=torch.float32)
        self.shares, self.table = nn.Parameter(equal[:1].clone()), nn.Parameter(equal)
        self.networks = Networks(self.levels[:-1], context_dim, hidden, count) if networks else None
        self.weights = nn.Parameter(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float32))

    def forward(self, states: Tensor, context: Tensor) -> Tensor:
        """Returns log masses (B, K) in float64 for states (B, k), the later ones of which do not matter."""
        parts = [self.shares.expand(len(states), -1).double(), self.table[self._cell_of(states)].double()]
        if self.networks is not None:
            parts.append(self.networks(states[None], context[None]).logsumexp(0) - math.log(MEMBERS))
        weights = self.weights[: len(parts)].double()
        return ((weights / weights.sum()).log()[:, None, None] + torch.stack(parts)).logsumexp(0)

    def chunks(self, count: int) -> list[slice]:
        """Returns slices of ``count`` rows, at least one slice, that need a bounded memory each."""
        width = 8 * self.levels[-1] + (0 if self.networks is None else self.networks.width)
        length = max(1, CHUNK // width)
        return [slice(start, start + length) for start in range(0, max(count, 1), length)]

    def _cell_of(self, states: Tensor) -> Tensor:
        return cell_of(states, self.levels, self.parents)

    @classmethod
    def fit(
        cls, rows: Rows, held: Rows | None, levels: Sequence[int], hidden: Sequence[int], generator: torch.Generator
    ) -> Column:
        """Fits the masses of the last of some columns.

        Arguments:
            rows: The rows, at least one.
            held: Rows to choose by. If left out, every network leaves out a part of the rows and is judged by it.
            levels: Number of states of the columns before it, and of the column itself.
            hidden: Widths of the networks' hidden layers.
            generator: Source of the random numbers.
        """
        tables = [shares(rows.states, levels), best_table(rows.states, levels)]
        judged = rows if held is None else held
        parts = [_log_masses(table, judged.states, levels, left_out=held is None) for table in tables]
        networks, context_dim = None, rows.context.shape[1]
        if len(rows.states) >= LEAST_ROWS and (context_dim > 0 or max(levels[:-1], default=1) > 1):
            networks = Networks(levels[:-1], context_dim, hidden, levels[-1])
            networks.start(tables[0].masses[0].log(), generator)
            picked, trained = _folds(rows, held, generator)
            networks.fit(rows, trained, judged, picked, generator)
            own = networks.judge(judged, picked)
            if held is None:
                parts = [*(part[picked.flatten()] for part in parts), own.flatten()]
            else:
                parts.append(own.logsumexp(0) - math.log(MEMBERS))
        scores, weights = zip(*(_mixture(torch.stack(parts[:count], 1)) for count in (2, len(parts))), strict=True)
        chosen = int(scores[1] > scores[0] + LEAST_GAIN)
        column = cls(levels, context_dim, hidden, tables[1].parents, networks=False)
        column.networks = networks if chosen else None
        with torch.no_grad():
            column.shares.copy_(tables[0].masses.log())
            column.table.copy_(tables[1].masses.log())
            column.weights[: len(weights[chosen])] = weights[chosen]
        return column


def _folds(rows: Rows, held: Rows | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns the numbers of the rows that each network is judged by (M, v), and of those that it learns from (M, n)."""
    if held is not None:
        judged, learnt = (torch.arange(len(part.states)).expand(MEMBERS, -1) for part in (held, rows))
        return judged, learnt
    length = len(rows.states) // MEMBERS
    order = torch.randperm(len(rows.states), generator=generator)[: length * MEMBERS].view(MEMBERS, length)
    return order, torch.stack([torch.cat([*order[:out], *order[out + 1 :]]) for out in range(MEMBERS)])


def _log_masses(table: Table, states: Tensor, levels: Sequence[int], left_out: bool) -> Tensor:
    cell, own = cell_of(states, levels, table.parents), states[:, len(levels) - 1]
    return (table.left_out if left_out else table.masses)[cell, own].log()


def _mixture(parts: Tensor) -> tuple[float, Tensor]:
    """Returns the log-likelihood of the best mixture of parts, and its weights (P,).

    No weight is zero: to each part half a row is added that it alone explains.

    Arguments:
        parts: Log masses (R, P) that the parts give to the states of rows.
    """
    weights = torch.full(parts.shape[1:], 1 / parts.shape[1], dtype=torch.float64)
    for _ in range(ROUNDS):
        weights = (parts + weights.log()).softmax(1).sum(0) + 0.5
        weights = weights / weights.sum()
    return float((parts + weights.log()).logsumexp(1).sum()), weights
