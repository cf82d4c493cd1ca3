"""What networks and trees have in common: several of one kind side by side, each of which learns from other rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

MEMBERS = 4
"""Networks or trees of a column, whose masses are averaged."""

CHUNK = 1 << 22
"""Largest number of values in memory at once for a part of the rows."""


class Rows(NamedTuple):
    """States (N, k), int64, and conditioning variables (N, c), float32."""

    states: Tensor
    context: Tensor


class Learner(nn.Module):
    """Gives log masses (M, B, K) of a column's states from the earlier states and the context, by each of M members.

    Arguments:
        earlier: Number of earlier columns, which is the number of the column itself.
        width: Number of values that a row needs in memory at once.
    """

    def __init__(self, earlier: int, width: int) -> None:
        super().__init__()
        self.earlier, self.width = earlier, width

    def forward(self, states: Tensor, context: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Returns log masses (M, B, K) of the members.

        Arguments:
            states: States (M, B, k), or (1, B, k) for all members alike; k may include later columns.
            context: Conditioning variables (M, B, c) or (1, B, c).
            dtype: Precision of the computation.
        """
        raise NotImplementedError

    def fit(self, rows: Rows, learnt: Tensor, judged: Rows, picked: Tensor, generator: torch.Generator) -> None:
        """Trains the members, each by itself.

        Arguments:
            rows: The rows of the data.
            learnt: Numbers (M, n) of the rows that each member learns from.
            judged: Rows that judge.
            picked: Numbers (M, v) of those that judge each member.
            generator: Source of the random numbers.
        """
        raise NotImplementedError

    @torch.no_grad()
    def judge(self, rows: Rows, picked: Tensor) -> Tensor:
        """Returns the log masses (M, v) that each member gives to the column's states in rows of numbers (M, v)."""
        return torch.cat([self._own(rows, part) for part in picked.split(max(1, CHUNK // self.width), 1)], 1).double()

    def _own(self, rows: Rows, picked: Tensor) -> Tensor:
        states = rows.states[picked]
        log_masses = self(states, rows.context[picked], torch.float32)
        return log_masses.gather(-1, states[..., self.earlier, None]).squeeze(-1)
