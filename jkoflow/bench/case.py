"""One velocity and one batch that are the same for all peers, with the results that they must compute."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.bench.shapes import Shape
from jkoflow.ops import Backend, Precision, integrate, jko_terms
from jkoflow.velocity import MLPVelocity

SEED = 0
BATCHES = 4
"""Number of batches in rotation on a GPU, so that no run finds its own batch in the cache."""


class Solution(NamedTuple):
    """The result that a solver computes from a batch."""

    x: Tensor
    """x at t1, with shape (B, d)."""
    logdet: Tensor
    """Integral of the divergence, with shape (B,)."""


def loss(solution: Solution) -> Tensor:
    """Computes the objective of a free block, mean(abs(x)^2 / 2 - logdet), which forward+backward differentiates."""
    return jko_terms(solution.x, solution.x, solution.logdet, float("inf")).total


class Case:
    """A velocity, a batch and a probe of one shape.

    The velocity has twice the weights that PyTorch starts with, which keeps a signal at its size through the layers
    and so bends the paths about as much as training does. A solver with adaptive steps then has to adapt to them.

    Arguments:
        shape: Sizes.
        device: Device of the tensors.
    """

    def __init__(self, shape: Shape, device: str | torch.device = "cpu") -> None:
        self.shape = shape
        generator = torch.Generator().manual_seed(SEED)
        velocity = MLPVelocity(shape.dim, (shape.width,) * shape.layers)
        with torch.no_grad():
            for layer in velocity.layers:
                bound = layer.weight.shape[1] ** -0.5  # type: ignore[union-attr,index,operator]
                layer.weight.uniform_(-2 * bound, 2 * bound, generator=generator)  # type: ignore[union-attr,operator]
                layer.bias.uniform_(-bound, bound, generator=generator)  # type: ignore[union-attr,operator]
        self.velocity = velocity.to(device)
        self.x = torch.randn(shape.batch, shape.dim, generator=generator).to(device)

    @property
    def parameters(self) -> list[Tensor]:
        """Returns weight and bias of each layer in turn."""
        return list(self.velocity.parameters())

    @cached_property
    def probe(self) -> Tensor:
        """Draws the probe (B, d) of Hutchinson's estimate, which a solver that calls `seed_probe` first draws, too."""
        self.seed_probe()
        return torch.randn_like(self.x)

    def seed_probe(self) -> None:
        """Seeds PyTorch, so that its next ``randn_like(x)`` is `probe`."""
        torch.manual_seed(SEED)

    @cached_property
    def batches(self) -> list[Tensor]:
        """Returns the batch and `BATCHES` - 1 others of its size."""
        generator = torch.Generator().manual_seed(SEED + 1)
        others = (torch.randn(self.x.shape, generator=generator) for _ in range(BATCHES - 1))
        return [self.x, *(batch.to(self.x.device) for batch in others)]

    def solve(
        self, estimate: bool, x: Tensor | None = None, backend: Backend = "auto", precision: Precision = "auto"
    ) -> Solution:
        """Solves the batch or another x with jkoflow, with gradients: exactly, or estimated with `probe`."""
        x = self.x if x is None else x
        result = integrate(
            self.velocity,
            x,
            num_steps=self.shape.steps,
            divergence="hutchinson" if estimate else "exact",
            noise=self.probe if estimate else None,
            backend=backend,
            precision=precision,
            keep_path=False,
        )
        return Solution(result.x, result.logdet)

    def converged(self, estimate: bool) -> Solution:
        """Solves in float64 with 8 times the steps; compared with that, the fixed steps have an error, too."""
        with torch.no_grad():
            return self._in_float64(copy.deepcopy(self.velocity).double(), estimate, 8 * self.shape.steps, "auto")

    def exact(self, estimate: bool) -> tuple[Solution, list[Tensor]]:
        """Computes solution and gradient of the loss in float64 with the same steps, by the PyTorch reference."""
        velocity = copy.deepcopy(self.velocity).double()
        solution = self._in_float64(velocity, estimate, self.shape.steps, "reference")
        gradient = torch.autograd.grad(loss(solution), list(velocity.parameters()))
        return Solution(*(tensor.detach() for tensor in solution)), list(gradient)

    def _in_float64(self, velocity: MLPVelocity, estimate: bool, steps: int, backend: Backend) -> Solution:
        result = integrate(
            velocity,
            self.x.double(),
            num_steps=steps,
            divergence="hutchinson" if estimate else "exact",
            noise=self.probe.double() if estimate else None,
            backend=backend,
            keep_path=False,
        )
        return Solution(result.x, result.logdet)
