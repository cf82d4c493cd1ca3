"""A plain PyTorch training loop over `jkoflow.integrate`: maximum likelihood of a density in two dimensions.

Nothing of jkoflow is used but the integration, whose gradients reach the parameters and the end of the interval: the
time T for which the data flow is trained, too.

    python examples/plain_pytorch_loop.py
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor, nn

import jkoflow


def two_moons(count: int) -> Tensor:
    """Draws points (count, 2) of two half circles with some noise."""
    angle = math.pi * torch.rand(count)
    side = torch.randint(0, 2, (count,)) * 2.0 - 1.0
    circle = torch.stack([torch.cos(angle) - side / 2, side * torch.sin(angle) - side / 4], dim=1)
    return 1.5 * circle + 0.1 * torch.randn(count, 2)


class Density(nn.Module):
    """The density of data that flow to a standard Gaussian in the time T."""

    def __init__(self) -> None:
        super().__init__()
        self.velocity = jkoflow.MLPVelocity(2, hidden=(64, 64))
        self.log_end = nn.Parameter(torch.zeros(()))  # T = exp(log_end) stays positive

    def forward(self, x: Tensor) -> Tensor:
        """Returns the log-densities (B,) of points (B, 2)."""
        z, logdet, _ = jkoflow.integrate(self.velocity, x, t1=self.log_end.exp(), num_steps=8, keep_path=False)
        return logdet - 0.5 * z.square().sum(1) - math.log(2 * math.pi)


def main() -> None:
    """Trains and tells how the likelihood and the end time go."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few iterations only")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    density, test = Density(), two_moons(2000)
    optimizer = torch.optim.Adam(density.parameters(), lr=5e-3)
    iterations, batch = (30, 256) if quick else (1500, 512)

    @torch.no_grad()
    def told(iteration: int) -> tuple[float, float]:
        nll, end = -density(test).mean().item(), density.log_end.exp().item()
        print(f"{iteration:5d} iterations: NLL {nll:.3f} nats, T = {end:.3f}")
        return nll, end

    before, _ = told(0)
    start = time.perf_counter()
    for _ in range(iterations):
        optimizer.zero_grad()
        loss = -density(two_moons(batch)).mean()
        loss.backward()
        optimizer.step()
    print(f"{1e3 * (time.perf_counter() - start) / iterations:.1f} ms an iteration")
    after, end = told(iterations)
    assert after < before - 0.1, "training must lower the NLL"
    assert end != 1.0, "the end time must have been trained"


if __name__ == "__main__":
    main()
