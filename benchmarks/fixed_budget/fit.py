"""The training loop of every method but ours: Adam, a cosine over the budget, the best parameters by validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fixed_budget.memory import Peak
from fixed_budget.model import Model, SolverError
from fixed_budget.problem import Problem
from jkoflow.metrics import spread_rows
from jkoflow.schedule import guard_tolerances
from jkoflow.training import TrainConfig
from jkoflow.training.optimizer import Adam
from jkoflow.training.pushed import Batches

VALIDATE_EVERY = 0.025
"""Share of the budget between two validations, at least."""

VALIDATION_SHARE = 0.1
"""Share of the time that validations may take, at most."""

VALIDATION_COST = 0.01
"""Share of the budget that one validation may take: a flow that is too slow for all validation rows looks at fewer."""

LEAST_VAL_ROWS = 500

WARMUP = 0.02
"""Share of the budget in which the learning rate rises to its peak."""

LAST_RATE = 0.01
"""Learning rate at the end, as a share of the peak."""


class Point(NamedTuple):
    """One look at the validation rows."""

    seconds: float
    batches: int
    nll: float | None


class Fit(NamedTuple):
    """A trained flow and how it got there."""

    model: Model
    batches: int
    seconds: float
    """Training and validation."""
    val_nll: float
    """Of the best parameters, which the model has now."""
    curve: list[Point]
    events: list[str]
    """What the guard or a solver that gave up led to."""
    extra: dict[str, Any]
    memory: float | None
    """Peak memory of training in MiB beyond what was there before."""


def fit(
    model: Model,
    problem: Problem,
    config: TrainConfig,
    rate: float,
    budget: float,
    seed: int,
    clock: Callable[[], float] | None = None,
) -> Fit:
    """Trains a model until the budget is spent and leaves the best parameters in it.

    Arguments:
        model: The model.
        problem: The rows.
        config: Batch size, constants of Adam, clipping and tolerances of the guard; the rest is not used.
        rate: Peak learning rate.
        budget: Seconds for training and validation.
        seed: Seed of the batches.
        clock: Tells the seconds; the machine's if None.
    """
    peak = Peak()
    return _Loop(model, problem, config, rate, budget, seed, clock or time.monotonic).run(peak)


class _Loop:
    def __init__(
        self,
        model: Model,
        problem: Problem,
        config: TrainConfig,
        rate: float,
        budget: float,
        seed: int,
        clock: Callable[[], float],
    ) -> None:
        self.model, self.problem, self.config, self.rate, self.budget = model, problem, config, rate, budget
        self.clock, self.started = clock, clock()
        self.adam = Adam(model, config.beta1, config.beta2, config.clip_norm)
        self.rows = Batches(problem.train, min(config.batch_size, len(problem.train)), seed, 0)
        self.val = problem.val
        self.good = self.adam.state()
        self.best, self.best_nll = self.adam.parameters.clone(), math.inf
        self.curve: list[Point] = []
        self.events: list[str] = []
        self.batches = 0
        self.validation_seconds = 0.0

    def run(self, peak: Peak) -> Fit:
        self._choose_val_rows()
        self._look()
        last = self._elapsed()
        # time for the last validation is set aside
        while (now := self._elapsed()) < self.budget - self.validation_seconds or self.batches == 0:
            if now - last >= max(VALIDATE_EVERY * self.budget, self.validation_seconds / VALIDATION_SHARE):
                self._look()
                last = self._elapsed()
            self._iterate(now / max(self.budget - self.validation_seconds, 1e-9))
        self._look()
        seconds = self._elapsed()
        self.adam.load(self.best)
        self.adam.release()
        memory = peak.growth()
        return Fit(
            self.model,
            self.batches,
            seconds,
            self.best_nll,
            self.curve,
            self.events,
            {"val_rows": len(self.val)},
            memory,
        )

    def _choose_val_rows(self) -> None:
        """Takes as many validation rows as may be scored in `VALIDATION_COST` of the budget."""
        few = spread_rows(self.val, LEAST_VAL_ROWS)
        began = self.clock()
        mean_nll(self.model, few, self.model.val_level, self.config.batch_size)
        rate = len(few) / max(self.clock() - began, 1e-9)
        self.val = spread_rows(self.val, max(len(few), int(rate * VALIDATION_COST * self.budget)))

    def _iterate(self, progress: float) -> None:
        rate = self.rate * min(1.0, max(progress, 1e-3) / WARMUP)
        rate *= LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        try:
            norm = self.adam.update(self.model.loss(self.rows(self.batches)), rate)
        except SolverError as error:
            self._go_back(str(error))
        else:
            if not math.isfinite(norm):
                self._go_back("a gradient was not finite")
        self.batches += 1

    def _look(self) -> None:
        """Guards the integrator, validates, and keeps what is best."""
        began = self.clock()
        if self._is_guarded_off():
            return
        try:
            nll = mean_nll(self.model, self.val, self.model.val_level, self.config.batch_size)
        except SolverError as error:
            self._go_back(str(error))
            return
        if not math.isfinite(nll):
            self._go_back("the validation NLL was not finite")
            return
        self.good = self.adam.state()
        if nll < self.best_nll:
            self.best, self.best_nll = self.adam.parameters.clone(), nll
        self.validation_seconds = self.clock() - began
        self.curve.append(Point(self._elapsed(), self.batches, nll))

    @torch.no_grad()
    def _is_guarded_off(self) -> bool:
        """Whether the likelihood depends on the steps: then training goes back and takes twice as many, if it can."""
        model, config = self.model, self.config
        if not model.has_fixed_steps:
            return False
        rows = self.problem.val[: config.guard_rows]
        gap = float((model.nll(rows) - model.nll(rows, 1)).abs().mean())
        tolerance, _ = guard_tolerances(config.guard_nll, config.guard_round_trip, rows.shape[1])
        if gap <= tolerance or not model.refine():
            return False
        self._go_back(f"mean difference of the NLL at twice the steps {gap:.2g} nats; trains with twice the steps now")
        return True

    def _go_back(self, reason: str) -> None:
        if len(self.events) < 100:
            self.events.append(f"batch {self.batches}: {reason}")
        self.adam.restore(self.good)

    def _elapsed(self) -> float:
        return self.clock() - self.started


@torch.no_grad()
def nll_of_rows(model: Model, x: Tensor, level: int, chunk: int) -> Tensor:
    """NLL of every row in float64, with shape (N,); x (N, d) goes through in pieces."""
    return torch.cat([model.nll(rows, level).double() for rows in x.split(chunk)])


def mean_nll(model: Model, x: Tensor, level: int, chunk: int) -> float:
    """Mean NLL of the rows x (N, d) at a level."""
    return float(nll_of_rows(model, x, level, chunk).mean())
