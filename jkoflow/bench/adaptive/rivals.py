"""Everybody whom we are compared with on the users' cases, as published and at their best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from jkoflow.bench.adaptive.cases import UserCase
from jkoflow.bench.adaptive.solver import TorchSolver
from jkoflow.bench.candidate import Candidate
from jkoflow.bench.case import Solution
from jkoflow.bench.peers import COMPILES
from jkoflow.bench.peers.closed_form import right_hand_side
from jkoflow.bench.peers.jax_process import Remote
from jkoflow.bench.peers.torchdiffeq import AutogradDivergence
from jkoflow.data import require


@dataclass(frozen=True)
class Rival:
    """A way to solve some kinds of cases by another library.

    Arguments:
        name: Name in tables.
        library: Name for ``--peers``.
        kinds: Kinds of the cases that it solves.
        build: Function that prepares a solver of a case.
        requires: Packages that it imports.
        optional: Reason for which it is left out unless asked for; None if it is not.
    """

    name: str
    library: str
    kinds: tuple[str, ...]
    build: Callable[[UserCase], Candidate]
    requires: tuple[str, ...] = ()
    optional: str | None = None

    def missing(self) -> tuple[str, ...]:
        """Returns the packages that it needs and that are not installed."""
        return tuple(package for package in self.requires if find_spec(package) is None)


class ClosedForm(nn.Module):
    """The right-hand side of the augmented ODE with the divergence in closed form, as an expert writes it.

    `evaluations` counts its calls.
    """

    def __init__(self, case: UserCase, compiled: bool) -> None:
        super().__init__()
        self._case, self._compiled = case, _compiled(case) if compiled else None
        self._evaluate: Evaluate | None = self._compiled
        self.evaluations = 0

    def begin(self) -> None:
        """Computes what is the same in all evaluations of a solve; a compiled function computes it every time."""
        self._evaluate = self._compiled or by_hand(self._case)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Computes velocity (B, d) and divergence (B,)."""
        assert self._evaluate is not None
        self.evaluations += 1
        return self._evaluate(state[0], t)


Evaluate = Callable[[Tensor, Any], tuple[Tensor, Tensor]]


def by_hand(case: UserCase) -> Evaluate:
    """Returns velocity and divergence in closed form as a function of x (B, d) and t."""
    field: Any = case.field
    if case.kind != "hypernet":
        return right_hand_side(field)

    def evaluate(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        w, u, b = field.at(t)
        h = torch.tanh(torch.addmm(b, x, w.T))
        return h @ u / field.units, (1 - h * h) @ (w * u).sum(1) / field.units

    return evaluate


def _compiled(case: UserCase) -> Evaluate:
    torch.compiler.reset()  # each case has its own graphs, and their number is limited
    return torch.compile(lambda x, t: by_hand(case)(x, t), fullgraph=True, dynamic=False)


class Torchdiffeq(TorchSolver):
    """torchdiffeq's dopri5, by default with the trace by autograd, as its example and FFJORD compute it."""

    def __init__(self, case: UserCase, solver: str = "odeint", closed: bool = False, compiled: bool = False) -> None:
        super().__init__(case)
        self._odeint: Any = getattr(require("torchdiffeq", "the peer torchdiffeq", "bench"), solver)
        self._rhs = ClosedForm(case, compiled) if closed else AutogradDivergence(case.field, None)

    def solve(self, x: Tensor) -> Solution:
        """Solves a batch x (B, d), with gradients."""
        case, rhs = self.case, self._rhs
        rhs.evaluations = 0
        if isinstance(rhs, ClosedForm):
            rhs.begin()
        path, logdet = self._odeint(
            rhs, (x, x.new_zeros(len(x))), x.new_tensor(case.interval), method="dopri5", rtol=case.rtol, atol=case.atol
        )
        self.evaluations = rhs.evaluations
        return Solution(path[-1], logdet[-1])


class Torchode(TorchSolver):
    """torchode's dopri5, with steps of its own for every row and the divergence in closed form."""

    def __init__(self, case: UserCase, compiled: bool = False) -> None:
        super().__init__(case)
        self._library: Any = require("torchode", "the peer torchode", "bench")
        self._compiled = _compiled(case) if compiled else None

    def solve(self, x: Tensor) -> Solution:
        """Solves a batch x (B, d), with gradients."""
        case, library, dim = self.case, self._library, x.shape[1]
        evaluate = self._compiled or by_hand(case)

        def rhs(t: Tensor, y: Tensor) -> Tensor:
            v, divergence = evaluate(y[:, :dim], t.unsqueeze(1))
            return torch.cat([v, divergence.unsqueeze(1)], 1)

        term = library.ODETerm(rhs)
        control = library.IntegralController(atol=case.atol, rtol=case.rtol, term=term)
        # its default differentiates the choice of the steps as well, which costs and which nobody else does
        adjoint = library.AutoDiffAdjoint(library.Dopri5(term=term), control, backprop_through_step_size_control=False)
        start, end = (x.new_full((len(x),), t) for t in case.interval)
        y0 = torch.cat([x, x.new_zeros(len(x), 1)], 1)
        found = adjoint.solve(library.InitialValueProblem(y0=y0, t_start=start, t_end=end))
        self.evaluations = float(found.stats["n_f_evals"].double().mean())
        y = found.ys[:, -1]
        return Solution(y[:, :dim], y[:, dim])


class Zuko(TorchSolver):
    """zuko's transformation of its continuous flow, with its solver, its adjoint and its default tolerances."""

    def __init__(self, case: UserCase) -> None:
        super().__init__(case)
        self._count = 0
        start, end = case.interval
        transforms: Any = require("zuko", "the peer zuko", "bench").transforms
        self._transform = transforms.FreeFormJacobianTransform(
            self._velocity, start, end, phi=case.parameters, atol=case.atol, rtol=case.rtol
        )

    def _velocity(self, t: Tensor, x: Tensor) -> Tensor:
        self._count += 1
        return self.case.field(x, t)

    def solve(self, x: Tensor) -> Solution:
        """Solves a batch x (B, d), with gradients."""
        self._count = 0
        found = Solution(*self._transform.call_and_ladj(x))
        self.evaluations = self._count
        return found


def _diffrax(case: UserCase, method: str) -> Candidate:
    return Remote(case, "diffrax adaptive", method=method, rtol=case.rtol, atol=case.atol)


_JAX = ("jax", "diffrax")
RIVALS: tuple[Rival, ...] = (
    Rival(
        "torchdiffeq dopri5, trace by autograd",
        "torchdiffeq",
        ("mlp", "hypernet", "ffjord"),
        Torchdiffeq,
        ("torchdiffeq",),
    ),
    Rival(
        "torchdiffeq dopri5, trace by autograd, adjoint",
        "torchdiffeq",
        ("mlp", "hypernet", "ffjord"),
        partial(Torchdiffeq, solver="odeint_adjoint"),
        ("torchdiffeq",),
    ),
    Rival(
        "torchdiffeq dopri5, closed form by hand",
        "torchdiffeq",
        ("mlp", "hypernet"),
        partial(Torchdiffeq, closed=True),
        ("torchdiffeq",),
    ),
    Rival(
        "torchdiffeq dopri5, closed form by hand, torch.compile",
        "torchdiffeq",
        ("mlp", "hypernet"),
        partial(Torchdiffeq, closed=True, compiled=True),
        ("torchdiffeq",),
        optional=COMPILES,
    ),
    Rival("zuko CNF", "zuko", ("zuko",), Zuko, ("zuko",)),
    Rival("torchode dopri5, closed form by hand", "torchode", ("mlp",), Torchode, ("torchode",)),
    Rival(
        "torchode dopri5, closed form by hand, torch.compile",
        "torchode",
        ("mlp",),
        partial(Torchode, compiled=True),
        ("torchode",),
        optional=COMPILES,
    ),
    Rival("diffrax dopri5, closed form, jit", "diffrax", ("mlp",), partial(_diffrax, method="dopri5"), _JAX),
    Rival("diffrax tsit5, closed form, jit", "diffrax", ("mlp",), partial(_diffrax, method="tsit5"), _JAX),
)
"""All rivals, in the order of tables."""

RIVAL_LIBRARIES = tuple(dict.fromkeys(rival.library for rival in RIVALS))
