r"""OT-Flow: the velocity is minus the gradient of a potential, and its divergence has a closed form.

.. math:: \Phi(s) = w^T N(s) + \tfrac{1}{2} |A s|^2 + b^T s, \quad s = (x, t)

with a ResNet N of two layers. Training adds the transport cost and the violation of the Hamilton-Jacobi-Bellman
equation. It is written here because the library versions we found do not compute the gradient of their own
potential.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fixed_budget.model import GridModel
from jkoflow.flow import base_log_prob
from jkoflow.ops.grid import Fixed

MOST_STEPS = 256
"""Largest number of steps, at which levels end."""


class Derivatives(NamedTuple):
    """The derivatives of the potential at (x, t)."""

    space: Tensor
    """Gradient with respect to x, with shape (B, d)."""
    time: Tensor
    """Derivative with respect to t, with shape (B,)."""
    laplacian: Tensor
    """Trace of the Hessian with respect to x, with shape (B,)."""


class Potential(nn.Module):
    r"""The potential with a ResNet of two layers of width m.

    .. math:: u_0 = \sigma(K_0 s + b_0), \quad N(s) = u_0 + \sigma(K_1 u_0 + b_1), \quad
              \sigma(a) = \log(e^a + e^{-a})

    Arguments:
        dim: Number d of columns.
        width: Width m.
        rank: Largest number of rows of A; d + 1 if that is less.
    """

    def __init__(self, dim: int, width: int, rank: int = 10) -> None:
        super().__init__()
        self.opening, self.layer = nn.Linear(dim + 1, width), nn.Linear(width, width)
        # near the identity, as everybody starts here. Published: weights of one and a gain of one, from which a short
        # budget first has to come back (NLL 66 instead of 16 before the first batch on gasturbine)
        self.weight = nn.Parameter(torch.zeros(width))
        self.root = nn.Parameter(nn.init.xavier_uniform_(torch.empty(min(rank, dim + 1), dim + 1), gain=0.1))
        self.slope = nn.Parameter(torch.zeros(dim + 1))

    def forward(self, x: Tensor, t: float) -> Tensor:
        """Returns the value of the potential, with shape (B,), for x (B, d)."""
        s = _with_time(x, t)
        u = _sigma(self.opening(s))
        n = u + _sigma(self.layer(u))
        return n @ self.weight + 0.5 * (s @ self.root.T).square().sum(1) + s @ self.slope

    def derivatives(self, x: Tensor, t: float) -> Derivatives:
        """Returns the derivatives at x (B, d), in one pass without automatic differentiation."""
        s, K0, K1 = _with_time(x, t), self.opening.weight, self.layer.weight
        a = self.opening(s)
        first = torch.tanh(a)
        second = torch.tanh(self.layer(_sigma(a)))
        z = self.weight + (second * self.weight) @ K1
        gradient = (first * z) @ K0 + (s @ self.root.T) @ self.root + self.slope
        Kx = K0[:, :-1]  # without the column of time
        # K1 diag(first) Kx, m x d numbers for every row, transposed so that all rows are one product
        inner = (first.unsqueeze(1) * Kx.T) @ K1.T
        laplacian = ((1 - first.square()) * z) @ Kx.square().sum(1)
        laplacian = laplacian + ((1 - second.square()) * self.weight * inner.square().sum(1)).sum(1)
        laplacian = laplacian + self.root[:, :-1].square().sum()
        return Derivatives(gradient[:, :-1], gradient[:, -1], laplacian)

    def space_gradient(self, x: Tensor, t: float) -> Tensor:
        """Returns the gradient with respect to x (B, d), without the trace."""
        s, K0, K1 = _with_time(x, t), self.opening.weight, self.layer.weight
        a = self.opening(s)
        z = self.weight + (torch.tanh(self.layer(_sigma(a))) * self.weight) @ K1
        gradient = (torch.tanh(a) * z) @ K0 + (s @ self.root.T) @ self.root + self.slope
        return gradient[:, :-1]


class OTFlow(GridModel):
    """OT-Flow with the classic Runge-Kutta method of order 4 and few steps.

    Arguments:
        dim: Number d of columns.
        seed: Seed of the parameters.
        width: Width m of the potential's layers.
        steps: Number of Runge-Kutta steps in training.
        likelihood: Weight of the NLL against the transport cost, the published alpha_C.
        hjb: Weight of the HJB violation against the transport cost, the published alpha_R.

    References:
        | OT-Flow: Fast and accurate continuous normalizing flows via optimal transport (Onken et al., 2020)
        | https://arxiv.org/abs/2006.00104
    """

    def __init__(
        self, dim: int, seed: int, width: int = 128, steps: int = 8, likelihood: float = 100.0, hjb: float = 5.0
    ) -> None:
        super().__init__(Fixed(steps), MOST_STEPS)
        torch.manual_seed(seed)
        self.potential = Potential(dim, width)
        self.likelihood, self.hjb = likelihood, hjb

    def describe_level(self, level: int) -> str:
        """Returns the text of a level, such as ``16 steps``."""
        return f"{self.grid_at(level).num_steps} steps"

    def evaluations(self, x: Tensor) -> float:
        """Returns four evaluations per step."""
        return 4 * self.grid.num_steps

    def loss(self, x: Tensor) -> Tensor:
        """Returns the mean NLL, with transport cost and HJB violation in proportion to the published weights."""
        z, logdet, transport, violation = self._forward(x, self.grid.num_steps)
        nll = -(base_log_prob(z) + logdet).mean()
        return nll + (transport.mean() + self.hjb * violation.mean()) / self.likelihood

    def encode(self, x: Tensor, level: int = 0) -> tuple[Tensor, Tensor]:
        """Carries x (B, d) to the noise, along minus the gradient."""
        return self._forward(x, self.grid_at(level).num_steps)[:2]

    def decode(self, z: Tensor, level: int = 0) -> Tensor:
        """Carries z (B, d) backwards in time."""
        steps = self.grid_at(level).num_steps
        h = 1.0 / steps
        for step in range(steps):
            t = 1.0 - step * h
            k1 = self.potential.space_gradient(z, t)
            k2 = self.potential.space_gradient(z + 0.5 * h * k1, t - 0.5 * h)
            k3 = self.potential.space_gradient(z + 0.5 * h * k2, t - 0.5 * h)
            k4 = self.potential.space_gradient(z + h * k3, t - h)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return z

    def _forward(self, x: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the image (B, d), logdet, transport cost and HJB violation (B,)."""
        h = 1.0 / steps
        sums = x.new_zeros(3, x.shape[0])
        for step in range(steps):
            t, moved, rates = step * h, torch.zeros_like(x), torch.zeros_like(sums)
            slope = torch.zeros_like(x)
            for node, weight in ((0.0, 1 / 6), (0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6)):
                found = self.potential.derivatives(x + node * h * slope, t + node * h)
                slope, energy = -found.space, 0.5 * found.space.square().sum(1)
                moved = moved + weight * slope
                rates = rates + weight * torch.stack([-found.laplacian, energy, (found.time - energy).abs()])
            x, sums = x + h * moved, sums + h * rates
        return x, sums[0], sums[1], sums[2]


def _with_time(x: Tensor, t: float) -> Tensor:
    return torch.cat([x, x.new_full((x.shape[0], 1), t)], 1)


def _sigma(a: Tensor) -> Tensor:
    size = a.abs()
    return size + torch.nn.functional.softplus(-2 * size)  # log(e^a + e^-a) without overflow
