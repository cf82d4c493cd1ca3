"""The peers of torchdiffeq: its fixed grid with the divergence by autograd, as its users write it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from jkoflow.bench.candidate import Candidate, TorchCandidate
from jkoflow.bench.case import Case, Solution
from jkoflow.data import require
from jkoflow.ops.tableau import TABLEAUX


class AutogradDivergence(nn.Module):
    """The right-hand side of the augmented ODE, exact row by row of the Jacobian, or with one probe.

    `evaluations` counts its calls.
    """

    def __init__(self, velocity: nn.Module, probe: Tensor | None) -> None:
        super().__init__()
        self.velocity = velocity
        self.probe = probe
        self.evaluations = 0

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Computes velocity (B, d) and divergence (B,)."""
        self.evaluations += 1
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            x = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
            v = self.velocity(x, t)
            if self.probe is not None:
                (row,) = torch.autograd.grad(v, x, self.probe, create_graph=training)
                divergence = (row * self.probe).sum(1)
            else:
                divergence = torch.zeros_like(state[1])
                for i in range(x.shape[1]):
                    (row,) = torch.autograd.grad(v[:, i].sum(), x, create_graph=training, retain_graph=True)
                    divergence = divergence + row[:, i]
        return (v, divergence) if training else (v.detach(), divergence.detach())


def exact(case: Case) -> Candidate:
    """Builds the solver with the exact divergence, and gradients by backpropagation through the steps."""
    return _candidate(case, None, "odeint")


def exact_adjoint(case: Case) -> Candidate:
    """Builds the solver with the exact divergence, and gradients by the continuous adjoint on the same grid."""
    return _candidate(case, None, "odeint_adjoint")


def hutchinson(case: Case) -> Candidate:
    """Builds the solver with Hutchinson's estimate, and gradients by backpropagation through the steps."""
    return _candidate(case, case.probe, "odeint")


def like_exact(case: Case) -> Candidate:
    """Builds the solver of `exact` without torchdiffeq, with its right-hand side on a fixed grid."""
    return _fixed_grid(case, None)


def like_hutchinson(case: Case) -> Candidate:
    """Builds the solver of `hutchinson` without torchdiffeq, with its right-hand side on a fixed grid."""
    return _fixed_grid(case, case.probe)


def needs_no_stand_in() -> str | None:
    """Says why no peer has to stand for torchdiffeq; returns None if one has to."""
    return None if find_spec("torchdiffeq") is None else "torchdiffeq itself is measured"


def _fixed_grid(case: Case, probe: Tensor | None) -> Candidate:
    rhs = AutogradDivergence(case.velocity, probe)
    tableau, steps = TABLEAUX["rk4"], case.shape.steps

    def solve(x: Tensor) -> Solution:
        logdet = x.new_zeros(x.shape[0])
        for step in range(steps):
            slopes: list[tuple[Tensor, Tensor]] = []
            for row, c in zip(tableau.a, tableau.c, strict=True):
                at = x
                for a, (slope, _) in zip(row, slopes, strict=True):
                    at = at + (a / steps) * slope
                t = torch.full((), (step + c) / steps, device=x.device)
                slopes.append(rhs(t, (at, logdet)))
            for b, (slope, divergence) in zip(tableau.b, slopes, strict=True):
                x, logdet = x + (b / steps) * slope, logdet + (b / steps) * divergence
        return Solution(x, logdet)

    return TorchCandidate(case, solve)


def _candidate(case: Case, probe: Tensor | None, solver: str) -> Candidate:
    odeint: Any = getattr(require("torchdiffeq", "the peer torchdiffeq", "bench"), solver)
    rhs = AutogradDivergence(case.velocity, probe)
    grid = torch.linspace(0, 1, case.shape.steps + 1, device=case.x.device)

    def solve(x: Tensor) -> Solution:
        path, logdet = odeint(rhs, (x, x.new_zeros(x.shape[0])), grid, method="rk4")
        return Solution(path[-1], logdet[-1])

    return TorchCandidate(case, solve)
