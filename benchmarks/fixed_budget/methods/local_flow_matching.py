r"""Local flow matching: a chain of blocks, each fitted to a short run of the Ornstein-Uhlenbeck process.

A block carries the distribution of its rows to where the process takes it in the block's time; then the rows are
pushed through the block, and the next one is trained from there. The way of every block is short, so that small
networks and few steps are enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fixed_budget.memory import Peak
from fixed_budget.methods.block_flow import BlockFlow
from fixed_budget.methods.flow_matching import FINEST_VALIDATION, FlowMatching
from fixed_budget.optimizers import MakeOptimizer, with_adam
from fixed_budget.peer_training import train_peer
from fixed_budget.problem import Problem
from fixed_budget.trained import Point, Trained
from jkoflow.block import Block
from jkoflow.flow import JKOFlow
from jkoflow.initial_map import InitialMap
from jkoflow.metrics import spread_rows
from jkoflow.ops.grid import Fixed, finest
from jkoflow.training import TrainConfig
from jkoflow.training.pushed import PushedSamples, carry_rows
from jkoflow.training.start import block_of
from jkoflow.training.world import Clock, World

PUSH_SHARE = 0.05
"""Share of a block's time that its rows' way through it may take; with more rows, a random choice goes on."""

LEAST_PUSHED = 2000
"""Number of rows that go on whatever it takes."""


class LocalFlowMatching(BlockFlow):
    """A chain of blocks that `train_chain` trains one after the other.

    Arguments:
        flow: The flow.
        steps: Runge-Kutta steps per block of level 0.
        times: Ornstein-Uhlenbeck time of every block; inf for one that goes to the noise itself.
        seed: Seed of noise and times.

    Raises:
        ValueError: If there are not as many times as blocks, or one is not positive.

    References:
        | Local flow matching generative models (Xu et al., 2024)
        | https://arxiv.org/abs/2410.02548
    """

    trains_on_grid = False

    def __init__(self, flow: JKOFlow, steps: int, times: Sequence[float], seed: int) -> None:
        super().__init__(flow, Fixed(steps), FINEST_VALIDATION)
        if len(times) != len(flow.stack) or not all(time > 0 for time in times):
            raise ValueError(f"times must be {len(flow.stack)} positive numbers, one per block, got {list(times)}")
        self.times, self.seed = tuple(times), seed


def chain_of_blocks(
    dim: int,
    seed: int,
    config: TrainConfig,
    initial_map: InitialMap | None = None,
    steps: int = 4,
    times: Sequence[float] = (0.5,),
) -> LocalFlowMatching:
    """Returns a chain of blocks of the configuration, all at the identity.

    Arguments:
        dim: Number d of columns.
        seed: Seed of parameters, noise and times.
        config: The blocks' settings.
        initial_map: The map before the blocks.
        steps: Runge-Kutta steps per block that validation begins with.
        times: Ornstein-Uhlenbeck times of the blocks before the last, which goes to the noise itself.
    """
    torch.manual_seed(seed)
    stack = [block_of(config, Fixed(steps), dim) for _ in range(len(times) + 1)]
    for block in stack:
        block.velocity.scale_output(0.0)
    return LocalFlowMatching(JKOFlow(dim, stack, initial_map=initial_map), steps, [*times, math.inf], seed)


def train_chain(
    model: LocalFlowMatching,
    problem: Problem,
    config: TrainConfig,
    rate: float,
    seconds: float,
    seed: int,
    clock: Clock | None = None,
    make_optimizer: MakeOptimizer = with_adam,
) -> Trained:
    """Trains the blocks one after the other, each by `train_peer` in an equal part of the time that is left.

    The arguments are those of `train_peer`.
    """
    peak, elapsed = Peak(), World(clock).elapsed
    flow, dim = model.flow, problem.dim
    with torch.no_grad():
        val, logdet = flow.enter(problem.val)
        pushed = PushedSamples(flow.enter(problem.train)[0], val, logdet)
    parts: list[Trained] = []
    curve: list[Point] = []
    val_nll = math.inf
    for place, (block, time) in enumerate(zip(flow.stack, model.times, strict=True)):
        last = place + 1 == len(flow.stack)
        share = (seconds - elapsed()) / (len(flow.stack) - place)
        local = FlowMatching(JKOFlow(dim, [block]), model.grid.num_steps, seed + 1000 * place, time=time)
        rows = problem._replace(train=pushed.train, val=pushed.val)
        began, batches = elapsed(), sum(part.batches for part in parts)
        fit = share if last else (1 - PUSH_SHARE) * share
        part = train_peer(local, rows, config, rate, fit, seed + place, clock, make_optimizer)
        # the likelihood of the block is that of the pushed rows; the blocks before add their logdets
        before = float(spread_rows(pushed.val_logdet, part.extra["val_rows"]).double().mean())
        curve += [
            Point(began + point.seconds, batches + point.batches, None if point.nll is None else point.nll - before)
            for point in part.curve
        ]
        val_nll = part.val_nll - before
        parts.append(part)
        block.grid = local.grid
        if not last:
            _push(pushed, block, elapsed, PUSH_SHARE * share, seed, place)
    model.grid = finest(block.grid for block in flow.stack)
    return Trained(
        model,
        sum(part.batches for part in parts),
        elapsed(),
        val_nll,
        curve,
        [f"block {place}, {event}" for place, part in enumerate(parts) for event in part.events],
        {"val_rows": parts[-1].extra["val_rows"], "blocks": len(parts)},
        peak.growth(),
    )


def _push(pushed: PushedSamples, block: Block, elapsed: Clock, seconds: float, *counters: int) -> None:
    """Carries the rows through a trained block, a random choice of them if all would take more than the seconds."""
    few = spread_rows(pushed.train, LEAST_PUSHED)
    began = elapsed()
    carry_rows(block, few)
    rate = len(few) / max(elapsed() - began, 1e-9)
    pushed.keep(max(LEAST_PUSHED, int(rate * seconds) - len(pushed.val)), *counters)
    pushed.push(block)
