"""Posteriors of the sbi benchmark's tasks: validation losses of a jkoflow estimator and of sbi's maf at equal time.

Both are trained by sbi's own loop with its own settings, for as many seconds of processor time as sbi's zuko_maf takes
until it stops by itself, and the loss is that of pairs (theta, x) that neither has seen. Ours is computed again with
four times the steps: a solver whose steps training has exploited would show there.

    python benchmarks/sbi_tasks.py --simulations 2000 --seeds 3
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from jkoflow.interop.sbi import JKODensityEstimator, density_estimator

HELD_OUT = 10_000
"""Pairs on which the losses are computed."""

FINER = 4
"""Times as many steps with which our loss is computed again."""


class Task(NamedTuple):
    """A simulator of the benchmark with its prior (Lueckmann et al., 2021, https://arxiv.org/abs/2101.04653)."""

    prior: Callable[[], Distribution]
    simulate: Callable[[Tensor], Tensor]


def two_moons(theta: Tensor) -> Tensor:
    """A crescent, shifted by the parameters in such a way that two of them give the same observation."""
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)
    total, difference = theta.sum(1), theta[:, 1] - theta[:, 0]
    return crescent + torch.stack([-total.abs(), difference], 1) / math.sqrt(2)


def slcp(theta: Tensor) -> Tensor:
    """Four points of a Gaussian whose mean, deviations and correlation are functions of the five parameters."""
    noise = torch.randn(len(theta), 4, 2)
    first, second, correlation = theta[:, 2:3].square(), theta[:, 3:4].square(), theta[:, 4:5].tanh()
    mixed = correlation * noise[..., 0] + (1 - correlation.square()).sqrt() * noise[..., 1]
    points = torch.stack([theta[:, 0:1] + first * noise[..., 0], theta[:, 1:2] + second * mixed], -1)
    return points.flatten(1)


def gaussian_linear(theta: Tensor) -> Tensor:
    """The parameters, with the noise of the prior."""
    return theta + math.sqrt(0.1) * torch.randn_like(theta)


TASKS = {
    "two_moons": Task(lambda: BoxUniform(-torch.ones(2), torch.ones(2)), two_moons),
    "slcp": Task(lambda: BoxUniform(-3 * torch.ones(5), 3 * torch.ones(5)), slcp),
    "gaussian_linear": Task(lambda: MultivariateNormal(torch.zeros(10), 0.1 * torch.eye(10)), gaussian_linear),
}


class TimedNPE(NPE):
    """NPE whose training ends, with the best parameters so far, when its processor time is over."""

    seconds = math.inf
    began = 0.0
    epochs = 0

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        if super()._converged(epoch, stop_after_epochs):
            return True
        self.epochs = epoch + 1
        if time.process_time() - self.began < self.seconds:
            return False
        best = self._best_model_state_dict
        assert self._neural_net is not None
        assert best is not None  # of the first epoch at the latest
        self._neural_net.load_state_dict(best)
        return True


class Result(NamedTuple):
    """What one training has come to."""

    loss: float
    converged: float
    seconds: float
    epochs: int


def train(task: Task, simulations: int, seed: int, build: Callable, seconds: float) -> Result:
    """Trains one estimator and returns its held-out loss, with its own steps and with `FINER` times as many."""
    torch.manual_seed(seed)
    prior = task.prior()
    theta, held_out = prior.sample((simulations,)), prior.sample((HELD_OUT,))
    x, held_out_x = task.simulate(theta), task.simulate(held_out)
    silent: Any = Silent()
    inference = TimedNPE(prior, density_estimator=build, show_progress_bars=False, tracker=silent)
    inference.append_simulations(theta, x)
    inference.seconds, inference.began = seconds, time.process_time()
    estimator = inference.train()
    taken = time.process_time() - inference.began
    estimator.eval()
    with torch.no_grad():
        loss = float(estimator.loss(held_out, held_out_x).mean())
        converged = loss
        if isinstance(estimator, JKODensityEstimator):
            steps = [FINER * grid.cost for grid in estimator.net.grids()]
            converged = float(estimator.loss(held_out, held_out_x, num_steps=steps).mean())
    return Result(loss, converged, taken, inference.epochs)


class Silent:
    """A tracker of sbi's that keeps nothing, so that no folder of logs is left behind."""

    log_dir = None

    def __getattr__(self, name: str) -> Callable:
        return lambda *_, **__: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(f"{options.simulations} simulations, {HELD_OUT} held out, sbi's settings, one thread, processor time\n")
    print("| task | seed | seconds | zuko_maf | jkoflow | jkoflow, 4 x the steps | jkoflow better by |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in options.tasks:
        gains = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            theirs = train(TASKS[name], options.simulations, seed, posterior_nn("zuko_maf"), math.inf)
            ours = train(TASKS[name], options.simulations, seed, density_estimator(), theirs.seconds)
            gains.append(theirs.loss - ours.converged)
            numbers = f"{theirs.loss:.3f} | {ours.loss:.3f} | {ours.converged:.3f} | {gains[-1]:.3f}"
            print(f"| {name} | {seed} | {theirs.seconds:.0f} | {numbers} |", flush=True)
        print(f"| {name} | mean | | | | | {statistics.mean(gains):.3f} |", flush=True)


if __name__ == "__main__":
    main()
