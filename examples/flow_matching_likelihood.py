"""Likelihoods of a flow matching model, before and after a change of the import: equal numbers, both timings.

A velocity is trained by flow matching on two moons. Before, flow_matching's ODESolver integrates it, with the
divergence by autograd; after, the solver of jkoflow.interop.flow_matching does, with the same calls.

    python examples/flow_matching_likelihood.py [--quick]
"""

import argparse
import math
import statistics
import time

import torch
from flow_matching.path import CondOTProbPath
from flow_matching.solver import ODESolver as ODESolverBefore
from torch import Tensor

import jkoflow
from jkoflow.interop.flow_matching import ODESolver


def two_moons(rows: int) -> Tensor:
    """Draws points of two interleaved half circles, with some noise."""
    angle, moon = math.pi * torch.rand(rows), torch.randint(2, (rows,)).mul(2).sub(1)
    points = torch.stack([angle.cos() + 0.5 * (1 - moon) - 0.5, moon * (angle.sin() - 0.25)], 1)
    return points + 0.05 * torch.randn(rows, 2)


def trained(iterations: int) -> jkoflow.MLPVelocity:
    """Trains a velocity by flow matching from noise at time 0 to data at time 1."""
    velocity, path = jkoflow.MLPVelocity(2, hidden=(64, 64, 64), activation="silu"), CondOTProbPath()
    optimizer = torch.optim.Adam(velocity.parameters(), lr=2e-3)
    for _ in range(iterations):
        data = two_moons(256)
        sample = path.sample(t=torch.rand(256), x_0=torch.randn_like(data), x_1=data)
        loss = (velocity(sample.x_t, sample.t) - sample.dx_t).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return velocity


def source(z: Tensor) -> Tensor:
    """Returns the log-density of the standard Gaussian."""
    return torch.distributions.Normal(0, 1).log_prob(z).sum(1)


def main() -> None:
    """Trains, and compares both solvers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a shorter training, fewer rows and rounds")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    torch.set_num_threads(1)
    velocity, rows, rounds = trained(50 if quick else 2000), two_moons(64 if quick else 1000), 2 if quick else 9
    print(f"log-likelihoods of {len(rows)} rows, 64 x 3 silu, exact divergence, milliseconds of processor time")
    for name, how in (
        ("midpoint, 0.05", {"method": "midpoint", "step_size": 0.05}),
        ("dopri5, 1e-5", {"method": "dopri5", "step_size": None}),
    ):
        pairs, results = [], []
        for _ in range(rounds + 1):
            results, seconds = [], []
            for solver in (ODESolverBefore(velocity), ODESolver(velocity)):
                start = time.process_time()
                results.append(solver.compute_likelihood(rows.clone(), source, exact_divergence=True, **how)[1])
                seconds.append(time.process_time() - start)
            pairs.append(seconds)
        apart = float((results[0] - results[1]).abs().max())
        assert apart < (1e-4 if "midpoint" in name else 2e-3), f"the log-likelihoods are {apart} apart"
        slow, fast = (1e3 * statistics.median(times) for times in zip(*pairs[1:], strict=True))
        ratio = statistics.median(before / after for before, after in pairs[1:])
        print(f"{name}: before {slow:.1f}, after {fast:.1f}, {ratio:.1f} times faster; ", end="")
        print(f"mean {results[1].mean():.4f}, at most {apart:.0e} apart")


if __name__ == "__main__":
    main()
