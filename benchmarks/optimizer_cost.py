"""Measures which share of an iteration of training each optimiser's update takes.

    python benchmarks/optimizer_cost.py [--width 128] [--batch 250] [--iterations 100] [--out figures.json]

An iteration is a block's loss, its gradient and the update, one after the other as in training, by the time of one
thread on the processor. SOAP's refreshes of its bases are spread over all updates.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from typing import NamedTuple

import torch

import jkoflow
from jkoflow.training.optimizer import OPTIMIZERS, build_optimizer, peak_rates
from record import write

DIMS, STEPS = (2, 11, 63), (4, 1)
"""Numbers of columns and of Runge-Kutta steps that are measured."""

WARMUP = 10
"""Iterations before the clock runs."""


class Cost(NamedTuple):
    """Mean milliseconds of the two parts of an iteration."""

    gradient: float
    update: float

    @property
    def share(self) -> float:
        """Returns the update's share of the iteration."""
        return self.update / (self.gradient + self.update)


def cost(name: str, dim: int, steps: int, width: int, batch: int, iterations: int) -> Cost:
    """Measures iterations of a block as training has it by default, with hardly any change of its parameters."""
    torch.manual_seed(0)
    block = jkoflow.Block(jkoflow.MLPVelocity(dim, (width, width), linear=True), steps, jko_step=math.inf)
    optimizer = build_optimizer(block, name, peak_rates(name, dim), weight_decay=0.1)
    x = torch.randn(batch, dim)
    gradient, update = 0.0, 0.0
    for iteration in range(WARMUP + iterations):
        start = time.process_time()
        optimizer.gradient.zero_()
        block.jko_loss(x).total.backward()
        middle = time.process_time()
        optimizer.prepare(1e-6)
        optimizer.apply()
        end = time.process_time()
        if iteration >= WARMUP:
            gradient, update = gradient + middle - start, update + end - middle
    return Cost(1e3 * gradient / iterations, 1e3 * update / iterations)


def main() -> None:
    """Measures every size and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--out", help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    heads = " | ".join(f"{f'{name}, ms (share)':>18}" for name in OPTIMIZERS)
    print(f"{'d':>3} | {'steps':>5} | {'gradient, ms':>12} | {heads}")
    for dim, steps in itertools.product(DIMS, STEPS):
        costs = {
            name: cost(name, dim, steps, arguments.width, arguments.batch, arguments.iterations) for name in OPTIMIZERS
        }
        results.append({"dim": dim, "steps": steps, **{name: of._asdict() for name, of in costs.items()}})
        cells = " | ".join(f"{of.update:9.3f} ({of.share:6.1%})" for of in costs.values())
        least = min(of.gradient for of in costs.values())
        print(f"{dim:3} | {steps:5} | {least:12.2f} | {cells}", flush=True)
    write(results, arguments.out)


if __name__ == "__main__":
    main()
