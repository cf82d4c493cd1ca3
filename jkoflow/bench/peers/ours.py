"""jkoflow itself."""

from __future__ import annotations

import torch
from torch import Tensor

from jkoflow.bench.candidate import Candidate, TorchCandidate
from jkoflow.bench.case import Case, Solution
from jkoflow.ops import jko_loss


def integrated(case: Case) -> Candidate:
    """`jkoflow.integrate` with the exact divergence, and its backward pass."""
    return _Integrated(case, estimate=False)


def estimated(case: Case) -> Candidate:
    """`jkoflow.integrate` with Hutchinson's estimate, and its backward pass."""
    return _Integrated(case, estimate=True)


def fused_loss(case: Case) -> Candidate:
    """`jkoflow.jko_loss` with the exact divergence: the way that training goes."""
    return _FusedLoss(case, estimate=False)


def estimated_loss(case: Case) -> Candidate:
    """`jkoflow.jko_loss` with Hutchinson's estimate."""
    return _FusedLoss(case, estimate=True)


class _Integrated(TorchCandidate):
    def __init__(self, case: Case, estimate: bool) -> None:
        super().__init__(case, lambda x: case.solve(estimate, x))
        self.estimate = estimate
        # so that a figure of the PyTorch reference never passes for one of a kernel
        try:
            with torch.no_grad():
                case.solve(estimate, backend="cuda" if case.x.is_cuda else "cpu")
        except RuntimeError as error:
            _, refused, reason = str(error).partition("cannot run this: ")
            if not refused:
                raise
            self.note = f"the PyTorch reference ran, because no kernel can: {reason}"


class _FusedLoss(_Integrated):
    def forward(self) -> Solution:
        """Refuses: its peer has no forward direction."""
        raise NotImplementedError("the fused loss computes the loss and its gradient, no solution")

    def gradient(self) -> list[Tensor]:
        """Value and gradient of the loss in one pass."""
        case = self.case
        total = jko_loss(
            case.velocity,
            case.x,
            float("inf"),
            num_steps=case.shape.steps,
            divergence="hutchinson" if self.estimate else "exact",
            noise=case.probe if self.estimate else None,
        ).total
        return list(torch.autograd.grad(total, case.parameters))
