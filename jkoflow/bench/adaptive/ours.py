"""jkoflow on a user's case, with its own adaptive steps."""

from __future__ import annotations

import torch
from torch import Tensor

from jkoflow.bench.adaptive.cases import UserCase
from jkoflow.bench.adaptive.solver import TorchSolver
from jkoflow.bench.case import Solution
from jkoflow.ops import Backend, UnsupportedError, integrate

METHOD = "dopri5"
"""The method that is compared with others, who have no other in common."""

FACTORS = tuple(10 ** (power / 2) for power in (2, 1, 0, -1, -2, -3, -4))
"""Factors on the published tolerances at which we are measured, the loosest first."""

MOST = 100_000
"""Largest number of steps: the divergence of ELU has kinks, which take many at the tolerances of the exact solution."""


def ours(case: UserCase, factor: float, method: str = METHOD) -> TorchSolver:
    """Builds our solver of a case at its tolerances times a factor."""
    return _Integrated(case, factor, method)


class _Integrated(TorchSolver):
    """A solver that runs `jkoflow.integrate`, whose note tells if no kernel can."""

    def __init__(self, case: UserCase, factor: float, method: str) -> None:
        super().__init__(case)
        self._method = method
        self._rtol, self._atol = factor * case.rtol, factor * case.atol
        self._backend: Backend = "cpu"
        try:
            self.solution()
        except UnsupportedError as error:
            self._backend, self.note = "reference", f"the PyTorch reference ran, because {error.reason}"
            self.solution()

    @property
    def parameters(self) -> list[Tensor]:
        """Returns the parameters of the velocity, which are not laid out as those of the published field."""
        return list(self.case.velocity.parameters())

    def gradient(self) -> list[Tensor]:
        """Solves the batch and differentiates the loss by each parameter of the published field."""
        return self.case.as_published(super().gradient())

    def solve(self, x: Tensor) -> Solution:
        """Solves a batch x (B, d), with gradients."""
        start, end = self.case.interval
        found = integrate(
            self.case.velocity,
            x,
            t0=start,
            t1=end,
            method=self._method,
            rtol=self._rtol,
            atol=self._atol,
            max_steps=MOST,
            backend=self._backend,
            keep_path=False,
        )
        counts = torch.as_tensor(found.evaluations, dtype=torch.float64)
        self.evaluations = float(counts.mean())
        return Solution(found.x, found.logdet)
