"""The peers of zuko's continuous flow: its ODE transformation, with its adaptive solver and checkpointed adjoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jkoflow.bench.candidate import Candidate, TorchCandidate
from jkoflow.bench.case import Case, Solution
from jkoflow.data import require

TOLERANCES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
ROUNDING = 1e-5
"""Smallest error, relative to the largest value, that a solver in float32 is asked for."""


def exact(case: Case) -> Candidate:
    """Builds the solver with the exact divergence, all rows of the Jacobian in one batched product."""
    # the estimate's solves are cheap and need about the same tolerance: the search begins where theirs ends
    return _Adaptive(case, False, start=_Adaptive(case, True).tolerance)


def hutchinson(case: Case) -> Candidate:
    """Builds the solver with Hutchinson's estimate, whose probe zuko draws at every solve."""
    return _Adaptive(case, True)


class _Adaptive(TorchCandidate):
    """A candidate at the loosest of `TOLERANCES` that is as close to the ODE's solution as our steps are.

    The solver has no fixed steps, so that both are asked for the same accuracy. `evaluations` tells how often the
    tolerance made it evaluate velocity and divergence, where our steps take 4 evaluations each.
    """

    def __init__(self, case: Case, estimate: bool, start: float = TOLERANCES[0]) -> None:
        super().__init__(case, self._solve)
        self.estimate = estimate
        self.tolerance = start
        self.transform: Any = None
        converged = case.converged(estimate)
        with torch.no_grad():
            wanted = [max(error, ROUNDING) for error in _errors(case.solve(estimate), converged)]
        for tolerance in TOLERANCES[TOLERANCES.index(start) :]:
            self.note = None
            self.tolerance, self._count = tolerance, 0
            self.transform = self._transform()
            reached = _errors(self.forward(), converged)
            self.evaluations = self._count
            if all(error <= most for error, most in zip(reached, wanted, strict=True)):
                return
            self.note = f"less accurate than ours: {max(reached):.0e} against {max(wanted):.0e}"

    def _transform(self) -> Any:
        def velocity(t: Tensor, x: Tensor) -> Tensor:
            self._count += 1
            return self.case.velocity(x, t)

        transforms = require("zuko", "the peer zuko", "bench").transforms
        return transforms.FreeFormJacobianTransform(
            velocity,
            t0=0.0,
            t1=1.0,
            phi=self.case.parameters,
            atol=self.tolerance,
            rtol=self.tolerance,
            exact=not self.estimate,
        )

    def _solve(self, x: Tensor) -> Solution:
        if self.estimate:
            self.case.seed_probe()
        return Solution(*self.transform.call_and_ladj(x))


def _errors(solution: Solution, exact: Solution) -> list[float]:
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(solution, exact, strict=True)]
