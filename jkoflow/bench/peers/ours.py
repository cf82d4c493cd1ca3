"""jkoflow itself."""

from __future__ import annotations

import torch
from torch import Tensor

from jkoflow.bench.candidate import TorchCandidate
from jkoflow.bench.case import Case, Solution
from jkoflow.ops import Precision, jko_loss
from jkoflow.ops.native import capabilities


class Integrated(TorchCandidate):
    """`jkoflow.integrate` and its backward pass.

    Arguments:
        case: What to solve.
        estimate: Whether with Hutchinson's estimate instead of the exact divergence.
        precision: Of the products.
    """

    def __init__(self, case: Case, estimate: bool = False, precision: Precision = "auto") -> None:
        super().__init__(case, lambda x: case.solve(estimate, x, precision=precision))
        self.estimate = estimate
        self.precision: Precision = precision
        # so that a figure of the PyTorch reference never passes for one of a kernel
        try:
            with torch.no_grad():
                case.solve(estimate, backend="cuda" if case.x.is_cuda else "cpu")
        except RuntimeError as error:
            _, refused, reason = str(error).partition("cannot run this: ")
            if not refused:
                raise
            self.note = f"the PyTorch reference ran, because no kernel can: {reason}"


class FusedLoss(Integrated):
    """`jkoflow.jko_loss`: the way that training goes."""

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
            precision=self.precision,
        ).total
        return list(torch.autograd.grad(total, case.parameters))


def no_bf16x3() -> str | None:
    """Why precision="bf16x3" cannot be had, or None."""
    return capabilities()["bf16x3"]
