"""jkoflow on a user's case: its own adaptive steps, or its right-hand side in torchdiffeq's solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from jkoflow.activation import parse_activation
from jkoflow.bench.adaptive.cases import UserCase
from jkoflow.bench.adaptive.solver import TorchSolver
from jkoflow.bench.case import Solution
from jkoflow.data import require
from jkoflow.ops import Backend, UnsupportedError, integrate, velocity_and_divergence
from jkoflow.velocity import MLPField, Velocity

METHOD = "dopri5"
"""The method that is compared with others, who have no other in common."""

FACTORS = tuple(10 ** (power / 2) for power in (2, 1, 0, -1, -2, -3, -4))
"""Factors on the published tolerances at which we are measured, the loosest first."""


def ours(case: UserCase, factor: float, method: str = METHOD) -> TorchSolver:
    """Builds our solver of a case at its tolerances times a factor.

    A velocity whose whole matrices depend on time has one time for all rows: it is folded to a plain MLP at every
    evaluation of torchdiffeq's solver.
    """
    if case.velocity is None:
        return _Folded(case, factor)
    return _Integrated(case, case.velocity, factor, method)


class _Integrated(TorchSolver):
    """A solver that runs `jkoflow.integrate`, whose note tells if no kernel can."""

    def __init__(self, case: UserCase, velocity: Velocity, factor: float, method: str) -> None:
        super().__init__(case)
        self._velocity, self._method = velocity, method
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
        return list(self._velocity.parameters())

    def gradient(self) -> list[Tensor]:
        """Solves the batch and differentiates the loss by each parameter of the published field."""
        return self.case.as_published(super().gradient())

    def solve(self, x: Tensor) -> Solution:
        """Solves a batch x (B, d), with gradients."""
        start, end = self.case.interval
        found = integrate(
            self._velocity,
            x,
            t0=start,
            t1=end,
            method=self._method,
            rtol=self._rtol,
            atol=self._atol,
            backend=self._backend,
            keep_path=False,
        )
        counts = torch.as_tensor(found.evaluations, dtype=torch.float64)
        self.evaluations = float(counts.mean())
        return Solution(found.x, found.logdet)


class _Folded(TorchSolver):
    """A solver of torchdiffeq whose right-hand side is ours, with the weights of the moment."""

    note = "jkoflow.velocity_and_divergence on weights folded at every time, in torchdiffeq's solver"

    def __init__(self, case: UserCase, factor: float) -> None:
        super().__init__(case)
        self._odeint: Any = require("torchdiffeq", "the case cnf.py", "bench").odeint
        self._plain = FoldedVelocity(case.field)
        self._tolerances = {"rtol": factor * case.rtol, "atol": factor * case.atol}

    def solve(self, x: Tensor) -> Solution:
        """Solves a batch x (B, d), with gradients."""
        self.evaluations = 0

        def rhs(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            assert self.evaluations is not None
            self.evaluations += 1
            self._plain.fold(t)
            return velocity_and_divergence(self._plain, state[0], backend="cpu")

        interval = x.new_tensor(self.case.interval)
        path, logdet = self._odeint(rhs, (x, x.new_zeros(len(x))), interval, method="dopri5", **self._tolerances)
        return Solution(path[-1], logdet[-1])


class FoldedVelocity(Velocity):
    """The plain MLP that a `jkoflow.bench.adaptive.fields.GatedHypernet` is at one time."""

    def __init__(self, hypernet: nn.Module) -> None:
        super().__init__()
        self._hypernet: Sequence[Any] = (hypernet,)  # in a tuple, since its parameters are not ours
        self._activation = parse_activation("tanh")
        self._field: MLPField | None = None

    def fold(self, t: Tensor) -> None:
        """Takes the weights at a time."""
        (hypernet,) = self._hypernet
        w, u, b = hypernet.at(t)
        last = u.T / hypernet.units
        bias = last.new_zeros(hypernet.dim)
        self._field = MLPField(hypernet.dim, 0, False, self._activation, (w, last), (b, bias), None)

    def field(self) -> MLPField | None:
        """Returns the weights that `fold` has taken."""
        return self._field

    def unfused(self) -> str | None:
        """Says why there are no weights; None if there are."""
        return "no time has been folded yet" if self._field is None else None

    def forward(self, x: Tensor, t: float | Tensor = 0.0, context: Tensor | None = None) -> Tensor:
        """Evaluates the velocity (B, d) at x (B, d) and the time that has been folded."""
        assert self._field is not None
        (first, last), (bias, _) = self._field.weights, self._field.biases
        return torch.tanh(x @ first.T + bias) @ last.T

    def describe(self) -> NoReturn:
        """Refuses: a velocity of one moment is not saved."""
        raise NotImplementedError("a folded velocity is made anew at every time")

    def scale_output(self, factor: float) -> NoReturn:
        """Refuses: its weights belong to the hypernet."""
        raise NotImplementedError("a folded velocity is made anew at every time")

    def work(self) -> float:
        """Returns about how many floating-point operations v and its divergence take at one point."""
        (hypernet,) = self._hypernet
        return 4.0 * hypernet.dim * hypernet.units
