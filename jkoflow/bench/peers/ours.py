"""jkoflow itself."""

from __future__ import annotations

import torch
from torch import Tensor

from jkoflow.bench.candidate import Candidate, TorchCandidate
from jkoflow.bench.case import Case, Solution
from jkoflow.ops import jko_loss, native


def integrated(case: Case) -> Candidate:
    """`jkoflow.integrate` with the exact divergence, and its backward pass."""
    return _Ours(case, estimate=False)


def estimated(case: Case) -> Candidate:
    """`jkoflow.integrate` with Hutchinson's estimate, and its backward pass."""
    return _Ours(case, estimate=True)


def fused_loss(case: Case) -> Candidate:
    """`jkoflow.jko_loss`: the way that training goes."""
    return _FusedLoss(case, estimate=False)


class _Ours(TorchCandidate):
    def __init__(self, case: Case, estimate: bool) -> None:
        super().__init__(case, lambda x: case.solve(estimate, x))
        # so that a figure of the PyTorch reference never passes for one of a kernel
        backend = "cuda" if case.x.is_cuda else "cpu"
        reason = native.unsupported(case.velocity.field(), case.x, "hutchinson" if estimate else "exact", backend)
        self.note = None if reason is None else f"no kernel, the PyTorch reference ran: {reason}"


class _FusedLoss(_Ours):
    def forward(self) -> Solution:
        """Refuses: the loss has no solution to show; its ``directions`` say so."""
        raise NotImplementedError("the fused loss computes the loss and its gradient, no solution")

    def gradient(self) -> list[Tensor]:
        """Value and gradient of the loss in one pass."""
        case = self.case
        total = jko_loss(case.velocity, case.x, float("inf"), num_steps=case.shape.steps).total
        return list(torch.autograd.grad(total, case.parameters))
