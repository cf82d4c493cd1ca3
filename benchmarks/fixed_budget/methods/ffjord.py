"""FFJORD: one free-form velocity, an adaptive solver, Hutchinson's estimate of the divergence in training.

The solver is the one FFJORD was published with, torchdiffeq's dopri5. Validation and evaluation take the exact
divergence, in closed form, so that neither waits for d backward passes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fixed_budget.model import Model, SolverError
from jkoflow.data import require
from jkoflow.ops.reference import mlp_rhs
from jkoflow.velocity import MLPVelocity

TIGHTEST = {torch.float32: 1e-6, torch.float64: 1e-9}
"""Smallest tolerances that the parameters' type has enough digits to meet."""

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class FFJORD(Model):
    """A stack of neural ODEs on [0, 1] under dopri5.

    Arguments:
        dim: Number d of columns.
        seed: Seed of the parameters.
        hidden: Widths of the hidden layers.
        activation: The velocity's activation.
        flows: Number of neural ODEs in a row, each with parameters of its own.
        tolerance: Tolerances rtol and atol of training.
        adjoint: Whether gradients come from the continuous adjoint, as published, instead of through the solver.

    References:
        | FFJORD: Free-form continuous dynamics for scalable reversible generative models (Grathwohl et al., 2018)
        | https://arxiv.org/abs/1810.01367
    """

    def __init__(
        self,
        dim: int,
        seed: int,
        hidden: tuple[int, ...] = (128, 128),
        activation: str = "tanh",
        flows: int = 1,
        tolerance: float = 1e-3,
        adjoint: bool = False,
    ) -> None:
        super().__init__()
        self._solvers = require("torchdiffeq", "the method ffjord", "bench")
        torch.manual_seed(seed)
        self.fields = nn.ModuleList(MLPVelocity(dim, hidden, activation) for _ in range(flows))
        for field in self.fields:  # starts as the identity, like everybody
            nn.init.zeros_(field.layers[-1].weight)  # type: ignore[union-attr, index]
            nn.init.zeros_(field.layers[-1].bias)  # type: ignore[union-attr, index]
        self.tolerance, self.adjoint = tolerance, adjoint
        self._probes = torch.Generator().manual_seed(seed)
        self.evaluated = 0

    @property
    def levels(self) -> int:  # type: ignore[override]
        """Returns the number of levels: the tolerance of the last is that of `TIGHTEST`."""
        return 1 + round(math.log10(self.tolerance / self._tightest))

    def describe_level(self, level: int) -> str:
        """Returns the text of a level, such as ``dopri5, tolerance 1e-04``."""
        return f"dopri5, tolerance {self._tolerance(level):.0e}"

    def ladder(self, level: int) -> list[Model]:
        """Returns the flow at tolerances from 0.1 to a tenth of that of a level."""
        finest = self._tolerance(level + 1)
        tolerances = [10.0**-power for power in range(1, 1 + round(-math.log10(finest)))]
        return [self._at(tolerance) for tolerance in tolerances]

    def _at(self, tolerance: float) -> FFJORD:
        view = copy.copy(self)
        view.tolerance = tolerance
        return view

    def evaluations(self, x: Tensor) -> float:
        """Returns how often the solver evaluates the velocities for x (B, d); steps are common to all rows of x."""
        before = self.evaluated
        self.encode(x)
        return self.evaluated - before

    def loss(self, x: Tensor) -> Tensor:
        """Returns the mean NLL by an estimate with one Rademacher probe per row, fixed during a solve."""
        z, logdet = x, x.new_zeros(x.shape[0])
        for velocity in self.fields:
            probe = torch.randint(0, 2, x.shape, generator=self._probes).to(x.dtype).mul_(2).sub_(1)
            z, increment = self._solve(velocity, _estimated(velocity, probe), z, 0.0, 1.0, self.tolerance)
            logdet = logdet + increment
        constant = 0.5 * x.shape[1] * torch.log(torch.tensor(2 * torch.pi))
        return 0.5 * z.square().sum(1).mean() + constant - logdet.mean()

    def encode(self, x: Tensor, level: int = 0) -> tuple[Tensor, Tensor]:
        """Carries x (B, d) to the noise, with the exact divergence."""
        z, logdet = x, x.new_zeros(x.shape[0])
        for velocity in self.fields:
            z, increment = self._solve(velocity, _exact(velocity), z, 0.0, 1.0, self._tolerance(level))
            logdet = logdet + increment
        return z, logdet

    def decode(self, z: Tensor, level: int = 0) -> Tensor:
        """Carries z (B, d) backwards in time."""
        for velocity in reversed(list(self.fields)):
            z, _ = self._solve(velocity, _plain(velocity), z, 1.0, 0.0, self._tolerance(level))
        return z

    def _tolerance(self, level: int) -> float:
        return max(self._tightest, self.tolerance * 10.0**-level)

    @property
    def _tightest(self) -> float:
        return TIGHTEST[next(self.parameters()).dtype]

    def _solve(
        self, velocity: nn.Module, field: Field, x: Tensor, start: float, end: float, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        times = torch.tensor([start, end], dtype=x.dtype)
        state = (x, x.new_zeros(x.shape[0]))
        options = {"rtol": tolerance, "atol": tolerance, "method": "dopri5"}

        def counted(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            self.evaluated += 1
            return field(t, state[0])

        try:
            if self.adjoint and torch.is_grad_enabled():
                parameters = tuple(velocity.parameters())
                x1, logdet = self._solvers.odeint_adjoint(counted, state, times, adjoint_params=parameters, **options)
            else:
                x1, logdet = self._solvers.odeint(counted, state, times, **options)
        except AssertionError as error:  # torchdiffeq's "underflow in dt"
            raise SolverError(f"torchdiffeq: {error}") from error
        return x1[-1], logdet[-1]


def _estimated(velocity: nn.Module, probe: Tensor) -> Field:
    def field(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            v = velocity(x, t)
            (product,) = torch.autograd.grad(v, x, probe, create_graph=True)
        return v, (product * probe).sum(1)

    return field


def _exact(velocity: nn.Module) -> Field:
    assert isinstance(velocity, MLPVelocity)
    numbers = velocity.field()
    assert numbers is not None
    right_hand_side = mlp_rhs(numbers, None, "exact", None)
    return lambda t, x: right_hand_side(x, float(t))


def _plain(velocity: nn.Module) -> Field:
    return lambda t, x: (velocity(x, t), x.new_zeros(x.shape[0]))
