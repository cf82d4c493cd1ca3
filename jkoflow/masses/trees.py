"""Trees of thresholds, for masses that jump where a conditioning variable passes a value."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jkoflow.masses.learner import MEMBERS, Learner, Rows

DEPTH = 5
"""Thresholds on the way to a leaf."""

MOST_BINS, CELLS = 256, 4096
"""Thresholds that are tried for a variable: at most so many, and fewer where there are many states."""

PSEUDO_COUNT = 1.0
"""Rows that the masses of a node count for in its children."""


class Trees(Learner):
    """Trees whose nodes ask whether a conditioning variable or an earlier state is above a threshold.

    The nodes of a level stand in a row; node i has the children 2 i and 2 i + 1 on the level below. A node that is not
    split has an infinite threshold.

    Arguments:
        earlier: Number of earlier columns.
        count: Number K of states of the column.
    """

    variable: Tensor
    threshold: Tensor

    def __init__(self, earlier: int, count: int) -> None:
        super().__init__(earlier, 2 * MEMBERS * count)
        self.count = count
        self.register_buffer("variable", torch.zeros(MEMBERS, DEPTH, 1 << (DEPTH - 1), dtype=torch.int64))
        self.register_buffer(
            "threshold", torch.full((MEMBERS, DEPTH, 1 << (DEPTH - 1)), torch.inf, dtype=torch.float32)
        )
        self.leaves = nn.Parameter(torch.zeros(MEMBERS, 1 << DEPTH, count, dtype=torch.float32))

    def forward(self, states: Tensor, context: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Returns log masses (M, B, K), see `Learner.forward`."""
        variables = self._variables(states, context).expand(MEMBERS, -1, -1)
        node = torch.zeros(variables.shape[:2], dtype=torch.int64, device=variables.device)
        for level in range(DEPTH):
            asked = variables.gather(2, self.variable[:, level].gather(1, node)[..., None]).squeeze(2)
            node = 2 * node + (asked > self.threshold[:, level].gather(1, node))
        return torch.stack([leaves[at] for leaves, at in zip(self.leaves.to(dtype), node, strict=True)])

    @torch.no_grad()
    def fit(self, rows: Rows, learnt: Tensor, judged: Rows, picked: Tensor, generator: torch.Generator) -> None:
        """Grows each tree for as long as the evidence is for one more threshold; nothing judges it."""
        for member, own in enumerate(learnt):
            variables = self._variables(rows.states[own], rows.context[own])
            self._grow(member, variables, rows.states[own, self.earlier])

    def _grow(self, member: int, variables: Tensor, own: Tensor) -> None:
        bins = min(MOST_BINS, max(16, CELLS // self.count))
        places = torch.linspace(0, len(own) - 1, bins + 1)[1:-1].long()
        edges = [values.sort().values[places].unique() for values in variables.T]
        binned = [torch.bucketize(values, edge) for values, edge in zip(variables.T.contiguous(), edges, strict=True)]
        bar = math.log(sum(len(edge) for edge in edges))  # evidence that one of so many choices must have
        node, rows = torch.zeros_like(own), _counted(own, self.count)
        masses = (rows + 0.5) / (rows + 0.5).sum()
        prior = masses[0]
        level, split = 0, True
        while split and level < DEPTH:
            best, whole = torch.full((1 << level,), bar, dtype=torch.float64), _evidence(rows, prior)
            variable, threshold = self.variable[member, level], self.threshold[member, level]
            for number, (place, edge) in enumerate(zip(binned, edges, strict=True)):
                cells = (node * (len(edge) + 1) + place) * self.count + own
                counts = _counted(cells, (len(edge) + 1) * self.count << level)
                below = counts.view(1 << level, -1, self.count).cumsum(1)[:, :-1]
                gain = _evidence(below, prior) + _evidence(rows[:, None] - below, prior) - whole[:, None]
                most, at = gain.max(1)
                better = (most > best).nonzero()[:, 0]
                best[better], variable[better], threshold[better] = most[better], number, edge[at[better]]
            asked = variables.gather(1, variable[node][:, None]).squeeze(1)
            level, split, node = level + 1, bool((best > bar).any()), 2 * node + (asked > threshold[node])
            rows = _counted(node * self.count + own, self.count << level).view(-1, self.count)
            masses = masses.repeat_interleave(2, 0)
            masses = (rows + PSEUDO_COUNT * masses) / (rows.sum(1, keepdim=True) + PSEUDO_COUNT)
        self.leaves[member] = masses.log().repeat_interleave(1 << (DEPTH - level), 0)

    def _variables(self, states: Tensor, context: Tensor) -> Tensor:
        return torch.cat([context, states[..., : self.earlier].to(context.dtype)], -1)


def _counted(cells: Tensor, count: int) -> Tensor:
    """Returns with shape (1, count) how often each number is among cells (N,)."""
    return torch.bincount(cells, minlength=count).double()[None]


def _evidence(rows: Tensor, prior: Tensor) -> Tensor:
    """Returns the log probabilities (...) of counted rows (..., K) under a Dirichlet law around the prior (K,)."""
    total = prior.sum()
    inner = torch.lgamma(rows + prior) - torch.lgamma(prior)
    return inner.sum(-1) + torch.lgamma(total) - torch.lgamma(rows.sum(-1) + total)
