"""Training one block: the loop of iterations, the choice of the best parameters and the guard's consequences."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jkoflow import schedule
from jkoflow.block import Block
from jkoflow.ops import jko_terms
from jkoflow.ops.grid import Fixed, Grid
from jkoflow.training.chain import Trainable
from jkoflow.training.config import TrainConfig
from jkoflow.training.guard import GuardReading, read_guard
from jkoflow.training.optimizer import Adam, AdamState
from jkoflow.training.progress import Progress
from jkoflow.training.pushed import Batches, PushedSamples, carry_rows, gaussian_constant, push_rows
from jkoflow.training.state import FitCounters, TrainingError

LOG_EVERY = 10
"""Iterations between two records of the loss; reading the loss waits for the device."""

PUSH_SHARE = 0.1
"""Share of a block's time that the training rows' way through it may take; rows that do not fit are left behind."""

LEAST_PUSHED = 10_000
"""Training rows that go on whatever the time: later blocks would learn fewer by heart."""

VALIDATION_SHARE = 0.05
"""Share of a block's time that looks at the validation loss may take under a time budget; they become rarer."""

MEASURING_SECONDS = 0.02
"""How long each kind of call is timed for a block's plan."""

MAX_DAMPINGS = 4
"""How often the guard halves a velocity that a block was warm-started with before it starts afresh."""

RELAX_BACKOFF = 4
"""How many times longer it waits after a halving that was exploited: the velocity may be tamer then."""

RELAX_BELOW = 1 / 16
"""Share of its tolerances under which it tries half: a method of fourth order errs 16 times as much there."""


@dataclass
class FitHooks:
    """What the loop calls outside itself."""

    elapsed: Callable[[], float]
    """Seconds into the run, earlier sessions of a resumed run included."""
    record: Callable[[Mapping[str, Any]], None]
    """Writes one line of the history."""
    save: Callable[[BlockFit], None]
    """Called after every iteration; saves the state if it is time."""
    share: Callable[[FitCounters, int], float] | None
    """Seconds that this block may take, its push included, given the times measured for it and its num_steps; None
    without a time budget."""
    progress: Progress


@dataclass
class BlockFit:
    """The training of one block on pushed samples.

    Arguments:
        index: Number of the block, from 0.
        block: The block with its first parameters; trained in place.
        samples: The pushed samples.
        config: Settings of the run.
        hooks: What to call.
        counters: Where to go on; a fresh start if None.
        round_number: Number of the round, from 0: another one has other batches.
    """

    index: int
    block: Trainable
    samples: PushedSamples
    config: TrainConfig
    hooks: FitHooks
    counters: FitCounters = field(default_factory=FitCounters)
    round_number: int = 0

    def __post_init__(self) -> None:
        config = self.config
        self.adam = Adam(self.block.velocity, config.beta1, config.beta2, config.clip_norm)
        samples = self.samples
        # a resumed block knows both
        self.counters.kept_rows = self.counters.kept_rows or len(samples.train)
        self.counters.validate_every = self.counters.validate_every or config.validate_every
        self.batches = Batches(
            samples.train, config.batch_size, config.seed, self.index, self.round_number, samples.train_context
        )
        self._peak_rate = self._choose_rate()
        self._tolerances = self._choose_tolerances()
        self.good: AdamState = self.adam.state()
        self._session = (self.hooks.elapsed(), self.counters.iteration)
        self._dampings = 0
        self.best: Tensor = self.adam.parameters.clone()
        if math.isinf(self.counters.best_loss):
            self._begin()

    def run(self) -> None:
        """Trains until the plan is done or the guard ends the block; leaves the best parameters in it."""
        counters = self.counters
        if counters.iterations == 0:
            counters.started = self.hooks.elapsed()
            self._plan()
        self.hooks.progress.start_block(self.index, counters.iterations)
        self._session = (self.hooks.elapsed(), counters.iteration)
        while counters.iteration < counters.iterations and not counters.stopped:
            self._look()
            if not counters.stopped:
                self._iterate()
                self.hooks.save(self)
        if not counters.stopped:
            self._look(last=True)
        self.adam.load(self.best)
        self.adam.release()

    def _iterate(self) -> None:
        counters, config = self.counters, self.config
        rate = schedule.learning_rate(counters.iteration, counters.iterations, self._peak_rate, config.warmup)
        batch, context = self.batches(counters.iteration), self.batches.context(counters.iteration)
        terms = self.block.jko_loss(batch, context)
        norm = self.adam.update(terms.total, rate)
        if counters.iteration % LOG_EVERY == 0 or counters.iteration + 1 == counters.iterations:
            # one read, since each waits for the device
            *values, grad_norm = torch.stack([*(term.detach() for term in terms), norm]).tolist()
            names: list[str] = ["loss", "potential", "divergence", "movement"]
            numbers = dict(zip(names, values, strict=True))
            place = {"block": self.index, "iteration": counters.iteration}
            rest = {"grad_norm": grad_norm, "learning_rate": rate, "seconds": self.hooks.elapsed()}
            self.hooks.record({"event": "iteration", **place, **numbers, **rest})
            self.hooks.progress.update(self.index, counters.iteration + 1, numbers)
        counters.iteration += 1

    def _look(self, last: bool = False) -> None:
        """What happens between two iterations: first the guard, then the validation of parameters that passed it."""
        iteration, config = self.counters.iteration, self.config
        validate = last or iteration % self.counters.validate_every == 0
        if config.guard and (validate or iteration % config.guard_every == 0) and not self._guard():
            return
        if not validate:
            return
        if not config.guard and not bool(torch.isfinite(self.adam.parameters).all()):
            raise TrainingError(
                f"the parameters of block {self.index} are no longer finite after {iteration} iterations; "
                "set guard = true, or lower learning_rate"
            )
        loss, nll = self._validate()
        place = {"block": self.index, "iteration": iteration}
        self.hooks.record({"event": "validation", **place, "loss": loss, "nll": nll})
        if loss < self.counters.best_loss:
            self.counters.best_loss = loss
            self.best = self.adam.parameters.clone()
        self._replan()

    def _validate(self) -> tuple[float, float]:
        """JKO loss of the validation rows and NLL of the flow with this block, at twice the Runge-Kutta steps."""
        y, logdet = push_rows(self.block, self.samples.val, self.samples.val_context)
        terms = jko_terms(self.samples.val.double(), y.double(), logdet.double(), self.block.jko_step)
        past = self.samples.val_logdet.double().mean()
        loss, nll = torch.stack([terms.total, terms.potential + terms.divergence - past]).tolist()
        return loss, nll + gaussian_constant(y)

    def _carry(self) -> None:
        samples = self.samples
        carry_rows(self.block, samples.val, samples.val_context)

    def _guard(self) -> bool:
        """Checks the integrator and acts on what it finds; True if the parameters stay as they are."""
        config, counters = self.config, self.counters
        reading = self._read_guard()
        if reading.within(*self._tolerances):
            self.good = self.adam.state()
            self._relax(reading, *self._tolerances)
            return True
        grid = self.block.grid
        action = self._soften_start() if counters.iteration == 0 else None
        if action is not None:
            self.good = self.adam.state()
        elif grid.refined().cost <= config.max_num_steps:
            action = "doubled"
            self.adam.restore(self.good)
            if counters.steps_halved:
                counters.relax_after *= RELAX_BACKOFF
            self._change_grid(grid.refined())
        else:
            action, counters.stopped = "stopped", True
        self._record_guard(reading, action)
        # nothing has vouched for a shortened velocity either: look again before training on it
        return self._guard() if action == "damped" else not counters.stopped

    def _relax(self, reading: GuardReading, nll_tolerance: float, round_trip_tolerance: float) -> None:
        """Goes back to half the steps where they would do: a velocity is wildest while the learning rate is high."""
        config, counters, grid = self.config, self.counters, self.block.grid
        waited = counters.iteration - counters.steps_changed
        if grid.cost < Fixed(config.num_steps).refined().cost or waited < counters.relax_after:
            return
        if not reading.within(nll_tolerance * RELAX_BELOW, round_trip_tolerance * RELAX_BELOW):
            return
        self.block.grid = grid.halved()
        reading = self._read_guard()
        self.block.grid = grid
        if reading.within(nll_tolerance / 2, round_trip_tolerance / 2):
            self._change_grid(grid.halved())
            self._record_guard(reading, "halved")

    def _change_grid(self, grid: Grid) -> None:
        """Another grid from now on; the iterations and what comes after them take another time, too."""
        counters = self.counters
        counters.steps_halved = grid.cost < self.block.grid.cost
        self.block.grid, counters.steps_changed = grid, counters.iteration
        self._set_deadline()
        self._session = (self.hooks.elapsed(), counters.iteration)

    def _record_guard(self, reading: GuardReading, action: str) -> None:
        self.hooks.record(
            {
                "event": "guard",
                "block": self.index,
                "iteration": self.counters.iteration,
                "nll_difference": reading.nll_difference,
                "round_trip": reading.round_trip,
                "num_steps": self.block.grid.num_steps,
                "action": action,
            }
        )

    def _read_guard(self) -> GuardReading:
        rows, context = self.config.guard_rows, self.samples.val_context
        return read_guard(self.block, self.samples.val[:rows], None if context is None else context[:rows])

    def _plan(self) -> None:
        """Sets the number of iterations, with a time budget from measured times that change nothing."""
        config, counters = self.config, self.counters
        if self.hooks.share is None:
            counters.iterations = self._choose_iterations()
            return
        batch, context = self.batches(0), self.batches.context(0)
        samples, fine_steps = self.samples, self.block.grid.refined().cost
        validation = _seconds(self._validate)

        def gradient() -> float:
            self.block.jko_loss(batch, context).total.backward()
            return float(self.adam.gradient[0])  # waits for the device

        per_iteration = _seconds(gradient)
        if config.guard:
            per_iteration += _seconds(self._read_guard) / min(config.guard_every, config.validate_every)
        affordable_every = math.ceil((1 / VALIDATION_SHARE - 1) * validation / per_iteration)
        counters.validate_every = max(config.validate_every, affordable_every)
        counters.iteration_seconds = per_iteration + validation / counters.validate_every
        row_steps = samples.val.shape[0] * fine_steps
        counters.row_step = validation / row_steps
        counters.row_carry = _seconds(self._carry) / row_steps
        self._set_deadline()
        left = counters.deadline - self.hooks.elapsed()
        counters.iterations = schedule.iterations_within(left, counters.iteration_seconds)
        if counters.iterations < config.validate_every:
            self.hooks.progress.message(
                f"the time budget leaves only {counters.iterations} iterations for block {self.index}; "
                "raise time_budget or lower max_blocks"
            )

    def _set_deadline(self) -> None:
        """Sets when the iterations should end for the push, the later blocks and the evaluation to fit in."""
        config, counters, samples, grid = self.config, self.counters, self.samples, self.block.grid
        if self.hooks.share is None:
            return
        seconds = self.hooks.share(counters, grid.num_steps)
        per_row = grid.refined().cost * counters.row_carry
        # what a block cannot look at need not be carried through those before it
        affordable = int(PUSH_SHARE * seconds / max(per_row, 1e-12))
        counters.kept_rows = min(len(samples.train), max(affordable, LEAST_PUSHED, config.batch_size))
        push = per_row * counters.kept_rows + grid.refined().cost * counters.row_step * len(samples.val)
        counters.deadline = counters.started + seconds - push

    def _replan(self) -> None:
        """Corrects the number of iterations when the measured speed differs from the planned one."""
        counters = self.counters
        start, first = self._session
        now, done = self.hooks.elapsed(), counters.iteration - first
        if math.isinf(counters.deadline) or done == 0 or counters.iteration >= counters.iterations:
            return
        rest = schedule.iterations_within(counters.deadline - now, (now - start) / done)
        if abs(counters.iteration + rest - counters.iterations) > 0.02 * counters.iterations:
            counters.iterations = counters.iteration + rest
            self.hooks.progress.start_block(self.index, counters.iterations)

    # ---- What a chain does otherwise

    def _begin(self) -> None:
        """Makes doing nothing the first candidate: a block is never worse than its absence on the validation rows."""
        assert isinstance(self.block, Block)
        present = self.adam.parameters.clone()
        self.block.velocity.scale_output(0.0)
        self.best = self.adam.parameters.clone()
        self.adam.load(present)
        self.counters.best_loss = float(0.5 * self.samples.val.square().sum(1).double().mean())

    def _soften_start(self) -> str | None:
        """Shortens the last block's velocity, which overshoots on samples that it has already moved."""
        assert isinstance(self.block, Block)
        action, factor = ("damped", 0.5) if self._dampings < MAX_DAMPINGS else ("reset", 0.0)
        self.block.velocity.scale_output(factor)
        self._dampings += 1
        return action

    def _choose_rate(self) -> float:
        """Peak learning rate."""
        rate = self.config.learning_rate
        return schedule.peak_learning_rate(self.samples.train.shape[1]) if rate is None else rate

    def _choose_tolerances(self) -> tuple[float, float]:
        """What the guard allows."""
        config = self.config
        return schedule.guard_tolerances(config.guard_nll, config.guard_round_trip, self.samples.val.shape[1])

    def _choose_iterations(self) -> int:
        """Iterations where no time budget sets them."""
        return self.config.iterations_per_block


def _seconds(call: Callable[[], object]) -> float:
    """Mean time of a call that waits for its result, after a first one that is not counted.

    A rough measure will do: the plan is corrected while it is carried out, and short budgets have many blocks.
    """
    call()
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < MEASURING_SECONDS:
        call()
        calls += 1
    return (time.perf_counter() - start) / calls
