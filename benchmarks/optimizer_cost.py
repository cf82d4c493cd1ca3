"""Measures which share of an iteration of training each optimiser's update takes.

    python benchmarks/optimizer_cost.py [--width 128] [--batch 250] [--rounds 9] [--out figures.json]

An iteration is a block's loss, its gradient and the update. SOAP's refreshes are spread over all updates.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch

import jkoflow
from jkoflow.bench.stopwatch import wall_clock
from jkoflow.bench.timing import median, ratio, rounds
from jkoflow.training.optimizer import OPTIMIZERS, build_optimizer, peak_rates
from jkoflow.training.optimizer.soap import REFRESH_EVERY
from record import write

DIMS, STEPS = (2, 11, 63), (4, 1)
"""Numbers of columns and of Runge-Kutta steps that are measured."""


def updates(name: str, dim: int, width: int, batch: int) -> Callable[[], None]:
    """Returns a function that makes as many updates as there are from one refresh of SOAP's bases to the next."""
    block = new_block(dim, width)
    optimizer = build_optimizer(block, name, peak_rates(name, dim))
    block.jko_loss(torch.randn(batch, dim)).total.backward()  # an update's time does not depend on the gradient

    def run() -> None:
        for _ in range(REFRESH_EVERY):
            optimizer.step(1e-6)

    return run


def gradient(dim: int, width: int, batch: int, steps: int) -> Callable[[], None]:
    """Returns a function that computes a block's loss and its gradient."""
    block, x = new_block(dim, width), torch.randn(batch, dim)
    block.num_steps = steps
    return lambda: block.jko_loss(x).total.backward()


def new_block(dim: int, width: int) -> jkoflow.Block:
    """Returns a block as training has it by default."""
    torch.manual_seed(0)
    return jkoflow.Block(jkoflow.MLPVelocity(dim, (width, width), linear=True), jko_step=math.inf)


def main() -> None:
    """Measures every number of columns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.1, help="time of each candidate in a round")
    parser.add_argument("--out", help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    heads = " | ".join(f"{f'{name}, ms (share)':>20}" for name in OPTIMIZERS)
    print(f"{'d':>3} | {'steps':>5} | {'gradient, ms':>12} | {heads}")
    for dim in DIMS:
        sizes = (dim, arguments.width, arguments.batch)
        calls = {name: updates(name, *sizes) for name in OPTIMIZERS}
        calls |= {f"{steps} steps": gradient(*sizes, steps) for steps in STEPS}
        timers = {name: partial(wall_clock, run) for name, run in calls.items()}
        times = rounds(timers, arguments.rounds, arguments.seconds)
        for steps in STEPS:
            own = times[f"{steps} steps"]
            share = {name: 1 / (1 + REFRESH_EVERY * ratio(own, times[name])) for name in OPTIMIZERS}
            cost = {name: 1e3 * median(times[name]) / REFRESH_EVERY for name in OPTIMIZERS}
            row = {"dim": dim, "steps": steps, "gradient_ms": 1e3 * median(own), "update_ms": cost, "share": share}
            results.append(row)
            cells = " | ".join(f"{cost[name]:11.3f} ({share[name]:6.1%})" for name in OPTIMIZERS)
            print(f"{dim:3} | {steps:5} | {row['gradient_ms']:12.2f} | {cells}", flush=True)
    write(results, arguments.out)


if __name__ == "__main__":
    main()
