"""What users run today: a field, a batch, an interval and the tolerances that their code is published with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from jkoflow.bench.adaptive.fields import ConcatSquash, FourierTime, GatedHypernet
from jkoflow.bench.case import SEED, Case, Solution
from jkoflow.bench.shapes import Shape
from jkoflow.velocity import ConcatSquashMLP, FourierTimeMLP, HyperMLP, Velocity

SCALE = 2.0
"""Factor on the weights that PyTorch starts with, as in `jkoflow.bench.case.Case`: paths bend as after training."""


@dataclass(frozen=True)
class UserCase:
    """A field and a batch whose log_prob and its gradient everybody computes.

    Arguments:
        name: Name for ``--cases``.
        title: Name in tables.
        kind: Kind of field, which says who can run it: "mlp", "hypernet", "zuko" or "ffjord".
        field: The published field, called as ``field(x, t)``, float32.
        velocity: The same field as we run it.
        x: Rows (B, d).
        interval: Times from which and to which rows are integrated.
        rtol: Relative tolerance of the published code.
        atol: Absolute tolerance of the published code.
        variance: Variance of the Gaussian at the end.
        as_published: Function from our gradients to those of the published field's parameters.
    """

    name: str
    title: str
    kind: str
    field: nn.Module
    velocity: Velocity
    x: Tensor
    interval: tuple[float, float] = (0.0, 1.0)
    rtol: float = 1e-5
    atol: float = 1e-5
    variance: float = 1.0
    as_published: Callable[[list[Tensor]], list[Tensor]] = list

    @property
    def parameters(self) -> list[Tensor]:
        """Returns the parameters of the published field."""
        return list(self.field.parameters())

    def log_prob(self, solution: Solution) -> Tensor:
        """Returns the log density (B,) of the rows whose end points and logdet are given."""
        dim = self.x.shape[1]
        constant = 0.5 * dim * math.log(2 * math.pi * self.variance)
        return solution.logdet - solution.x.square().sum(1) / (2 * self.variance) - constant

    def loss(self, solution: Solution) -> Tensor:
        """Returns what a training iteration differentiates, the mean negative log density."""
        return -self.log_prob(solution).mean()

    def double(self) -> UserCase:
        """Returns the case in float64."""
        field, velocity = copy.deepcopy((self.field, self.velocity))  # together, since they may share parameters
        return replace(self, field=field.double(), velocity=velocity.double(), x=self.x.double())


def _mlp(dim: int, batch: int) -> UserCase:
    case = Case(Shape(dim, 64, 2, batch, 3))
    title = f"MLP 64 x 2 tanh, d = {dim}, B = {batch}"
    return UserCase(f"mlp-{dim}", title, "mlp", case.velocity, case.velocity, case.x)


def _hypernet(batch: int) -> UserCase:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        field = GatedHypernet(2, units=64, hidden=32)  # as PyTorch starts it: the interval is ten times as long
        angle, noise = 2 * math.pi * torch.rand(batch), 0.06 * torch.randn(batch, 2)
        velocity = HyperMLP(2, (64,), hyper="gated", hyper_hidden=(32, 32))
    _copy(field, velocity)
    radius = torch.where(torch.arange(batch) % 2 == 0, 1.0, 0.5)
    circles = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1) + noise
    title = f"torchdiffeq's examples/cnf.py, hypernet 64, d = 2, B = {batch}"
    return UserCase("cnf.py", title, "hypernet", field, velocity, circles, (10.0, 0.0), variance=0.1)


def _zuko(dim: int, batch: int) -> UserCase:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        field, x = FourierTime(dim, (64, 64), 3), torch.randn(batch, dim)
        velocity = FourierTimeMLP(dim, (64, 64), "elu", frequencies=3)
    _stretch(field)
    ours: Any = velocity
    first, *others = field.layers.children()
    with torch.no_grad():
        embedding, positions = first.get_parameter("weight").split((2 * 3, dim), dim=1)
        ours.shifts["0"].weight.copy_(embedding)
        ours.layers[0].load_state_dict({"weight": positions, "bias": first.get_parameter("bias")})
        for one, other in zip(ours.layers[1:], others, strict=True):
            one.load_state_dict(other.state_dict())
    names = [name for name, _ in ours.named_parameters()]

    def as_published(gradients: list[Tensor]) -> list[Tensor]:
        found = dict(zip(names, gradients, strict=True))
        first = torch.cat([found.pop("shifts.0.weight"), found.pop("layers.0.weight")], 1)
        return [first, *found.values()]

    title = f"zuko's CNF({dim}), B = {batch}"
    return UserCase(f"zuko-{dim}", title, "zuko", field, velocity, x, atol=1e-6, as_published=as_published)


def _ffjord(batch: int) -> UserCase:
    hidden = (64, 64, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        field, x, velocity = ConcatSquash(2, hidden), torch.randn(batch, 2), ConcatSquashMLP(2, hidden)
    _stretch(field)
    _copy(field, velocity)
    title = f"FFJORD's toy, concat-squash 64-64-64 tanh, d = 2, B = {batch}"
    return UserCase("ffjord", title, "ffjord", field, velocity, x, (0.0, 0.5))


@torch.no_grad()
def _copy(field: nn.Module, velocity: nn.Module) -> None:
    """Copies parameters to a velocity that has the same in the same order."""
    for one, other in zip(velocity.parameters(), field.parameters(), strict=True):
        one.copy_(other)


@torch.no_grad()
def _stretch(field: FourierTime | ConcatSquash) -> None:
    for layer in field.layers.children():
        layer.get_parameter("weight").mul_(SCALE)


CASES: dict[str, Callable[[int | None], UserCase]] = {
    **{f"mlp-{dim}": lambda batch, dim=dim: _mlp(dim, batch or 512) for dim in (2, 6, 21)},
    "cnf.py": lambda batch: _hypernet(batch or 512),
    **{f"zuko-{dim}": lambda batch, dim=dim: _zuko(dim, batch or 256) for dim in (2, 6, 16)},
    "ffjord": lambda batch: _ffjord(batch or 100),
}
"""The cases by name, each a function from a number of rows (None for the published one) to the case."""
