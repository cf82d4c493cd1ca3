"""A solver of a user's case, which is checked and timed: in this process on PyTorch tensors, or elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from jkoflow.bench.adaptive.cases import UserCase
from jkoflow.bench.candidate import Candidate
from jkoflow.bench.case import Solution
from jkoflow.bench.shapes import Direction
from jkoflow.bench.stopwatch import wall_clock


class TorchSolver(Candidate, ABC):
    """A candidate for a `UserCase` in this process; its `evaluations` are those of the last solve, a mean over rows.

    Arguments:
        case: The case to solve.
    """

    evaluations: float | None = None  # type: ignore[assignment]

    def __init__(self, case: UserCase) -> None:
        self.case = case

    @abstractmethod
    def solve(self, x: Tensor) -> Solution:
        """Solves a batch x (B, d), with gradients."""

    @property
    def parameters(self) -> list[Tensor]:
        """Returns the parameters by which the loss is differentiated."""
        return self.case.parameters

    def solution(self) -> Solution:
        """Solves the batch without gradients."""
        with torch.no_grad():
            return self.solve(self.case.x)

    def forward(self) -> Solution:
        """Solves the batch without gradients."""
        return self.solution()

    def gradient(self) -> list[Tensor]:
        """Solves the batch and differentiates the loss by each parameter."""
        return list(torch.autograd.grad(self.case.loss(self.solve(self.case.x)), self.parameters))

    def seconds(self, direction: Direction, repeats: int) -> float:
        """Returns the seconds of ``repeats`` runs by the wall clock."""
        return wall_clock(self.forward if direction == "forward" else self.gradient, repeats)
