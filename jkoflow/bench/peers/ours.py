"""The peers of jkoflow itself."""

from __future__ import annotations

import torch
from torch import Tensor

from jkoflow.bench.candidate import TorchCandidate
from jkoflow.bench.case import Case, Solution
from jkoflow.ops import Backend, Precision, UnsupportedError, jko_loss
from jkoflow.ops.native import capabilities


class Integrated(TorchCandidate):
    """A candidate that runs `jkoflow.integrate` and its backward pass.

    Arguments:
        case: The case to solve.
        estimate: Whether to use Hutchinson's estimate instead of the exact divergence.
        precision: Precision of the products.
        backend: Backend; with "auto", `note` tells if no kernel can compute the case.
    """

    def __init__(
        self, case: Case, estimate: bool = False, precision: Precision = "auto", backend: Backend = "auto"
    ) -> None:
        super().__init__(case, lambda x: case.solve(estimate, x, backend, precision))
        self.note = _fallback(case, estimate) if backend == "auto" else None


class FusedLoss(TorchCandidate):
    """A candidate that runs `jkoflow.jko_loss`, as training does. It has no forward direction.

    Arguments:
        case: The case to solve.
        estimate: Whether to use Hutchinson's estimate instead of the exact divergence.
        precision: Precision of the products.
        backend: Backend; with "auto", `note` tells if no kernel can compute the case.
    """

    def __init__(
        self, case: Case, estimate: bool = False, precision: Precision = "auto", backend: Backend = "auto"
    ) -> None:
        super().__init__(case, _refuse)
        self.estimate = estimate
        self.precision: Precision = precision
        self.backend: Backend = backend
        self.note = _fallback(case, estimate) if backend == "auto" else None

    def objective(self, x: Tensor) -> Tensor:
        """Computes the loss of a batch x (B, d), whose gradient comes from the same pass."""
        case = self.case
        return jko_loss(
            case.velocity,
            x,
            float("inf"),
            num_steps=case.shape.steps,
            divergence="hutchinson" if self.estimate else "exact",
            noise=case.probe if self.estimate else None,
            backend=self.backend,
            precision=self.precision,
        ).total


def no_bf16x3() -> str | None:
    """Says why precision="bf16x3" is not available; returns None if it is."""
    return capabilities()["bf16x3"]


def _refuse(x: Tensor) -> Solution:
    raise NotImplementedError("the fused loss computes the loss and its gradient, no solution")


def _fallback(case: Case, estimate: bool) -> str | None:
    """Says that no kernel computes a case, so that no figure of the PyTorch reference passes for one of a kernel."""
    with torch.no_grad():
        try:
            case.solve(estimate, backend="cuda" if case.x.is_cuda else "cpu")
        except UnsupportedError as error:
            return f"the PyTorch reference ran, because {error.reason}"
    return None
