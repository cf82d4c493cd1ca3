"""The training of every method but ours: batches until a time is over, and the best parameters by validation.

Clock, budget, batches, optimiser and the guard's tolerances are those of `jkoflow.training`, but the loop differs. That
of `jkoflow.training` trains a block for a planned number of iterations. Here a whole flow is trained until its time is
over. It need not consist of blocks, its solver may give up, and its batches may take longer and longer because the
solver takes more steps. No plan would hold, so that all limits are shares of the time.
"""

from __future__ import annotations

import math

import torch

from fixed_budget.memory import Peak
from fixed_budget.model import GridModel, Model, SolverError, mean_nll
from fixed_budget.optimizers import MakeOptimizer, with_adam
from fixed_budget.problem import Problem
from fixed_budget.trained import Point, Trained
from jkoflow.metrics import spread_rows
from jkoflow.training import TrainConfig
from jkoflow.training.guard import guard_tolerances
from jkoflow.training.optimizer import OptimizerState, cosine
from jkoflow.training.plan import Budget
from jkoflow.training.pushed import Batches
from jkoflow.training.world import Clock, World

VALIDATE_EVERY = 0.025
"""Smallest share of the budget between two validations."""

VALIDATION_SHARE = 0.1
"""Largest share of the time that validations may take."""

VALIDATION_COST = 0.01
"""Share of the budget that one validation may take; a slower flow is validated on fewer rows."""

LEAST_VAL_ROWS = 500

WARMUP = 0.02
"""Share of the budget in which the learning rate rises to its peak."""

MOST_EVENTS = 100
"""Largest number of events that are recorded of one run; a solver may give up at every batch."""


def train_peer(
    model: Model,
    problem: Problem,
    config: TrainConfig,
    rate: float,
    seconds: float,
    seed: int,
    clock: Clock | None = None,
    make_optimizer: MakeOptimizer = with_adam,
) -> Trained:
    """Trains a model until the time is over and leaves the best parameters in it.

    Arguments:
        model: The model.
        problem: The rows.
        config: Configuration; only batch size, the optimiser's constants and the guard's tolerances and rows are used.
        rate: Peak learning rate.
        seconds: Time for training and validation.
        seed: Seed of the batches.
        clock: Function that returns the time in seconds; the machine's clock if None.
        make_optimizer: Function that makes the optimiser of the model.
    """
    peak = Peak()
    budget = Budget(World(clock).elapsed, seconds)
    training = _PeerTraining(model, problem, config, rate, budget, seed, make_optimizer)
    training.run()
    spent = training.budget.clock()
    training.finish()
    return Trained(
        model,
        training.batches,
        spent,
        training.best_nll,
        training.curve,
        training.events,
        {"val_rows": len(training.val)},
        peak.growth(),
    )


def rate_share(progress: float) -> float:
    """Returns the share of the peak rate at a share of the time, from 0: linear warm-up, then half a cosine."""
    return min(1.0, max(progress, 1e-3) / WARMUP) * cosine(progress)


class _PeerTraining:
    """The state of one training, and its loop."""

    def __init__(
        self,
        model: Model,
        problem: Problem,
        config: TrainConfig,
        rate: float,
        budget: Budget,
        seed: int,
        make_optimizer: MakeOptimizer,
    ) -> None:
        self.model, self.problem, self.config, self.budget = model, problem, config, budget
        self.optimizer = make_optimizer(model, config, rate)
        self.rows = Batches(problem.train, min(config.batch_size, len(problem.train)), seed, 0)
        self.val = problem.val
        self.good: OptimizerState = self.optimizer.state()
        self.best, self.best_nll = self.optimizer.parameters.clone(), math.inf
        self.curve: list[Point] = []
        self.events: list[str] = []
        self.batches = 0
        self.validation_seconds = 0.0

    def run(self) -> None:
        """Trains and validates until the time is over."""
        clock = self.budget.clock
        self._choose_val_rows()
        self._look()
        looked = clock()
        while (now := clock()) < self._deadline() or self.batches == 0:
            pause = max(VALIDATE_EVERY * self.budget.seconds, self.validation_seconds / VALIDATION_SHARE)
            if now - looked >= pause:
                self._look()
                looked = clock()
            self._iterate(now / max(self._deadline(), 1e-9))
        self._look()

    def finish(self) -> None:
        """Puts the best parameters into the model."""
        self.optimizer.load(self.best)
        self.optimizer.release()

    def _deadline(self) -> float:
        """Returns when the batches should end so that the last validation has time."""
        return self.budget.seconds - self.validation_seconds

    def _choose_val_rows(self) -> None:
        """Chooses as many validation rows as can be scored in `VALIDATION_COST` of the budget."""
        few = spread_rows(self.val, LEAST_VAL_ROWS)
        # once and the first time: a slow solver has no time to be measured better
        began = self.budget.clock()
        mean_nll(self.model, few, self.model.val_level, self.config.batch_size)
        rate = len(few) / max(self.budget.clock() - began, 1e-9)
        self.val = spread_rows(self.val, max(len(few), int(rate * VALIDATION_COST * self.budget.seconds)))

    def _iterate(self, progress: float) -> None:
        """Does one update on a batch, at a share of the time."""
        try:
            norm = self.optimizer.update(self.model.loss(self.rows(self.batches)), rate_share(progress))
        except SolverError as error:
            self._go_back(str(error))
        else:
            if not math.isfinite(norm):
                self._go_back("a gradient was not finite")
        self.batches += 1

    def _look(self) -> None:
        """Guards the integrator, validates, and keeps the best parameters."""
        began = self.budget.clock()
        if isinstance(self.model, GridModel) and self._takes_finer_grid(self.model):
            return
        try:
            nll = mean_nll(self.model, self.val, self.model.val_level, self.config.batch_size)
        except SolverError as error:
            self._go_back(str(error))
            return
        if not math.isfinite(nll):
            self._go_back("the validation NLL was not finite")
            return
        self.good = self.optimizer.state()
        if nll < self.best_nll:
            self.best, self.best_nll = self.optimizer.parameters.clone(), nll
        self.validation_seconds = self.budget.clock() - began
        self.curve.append(Point(self.budget.clock(), self.batches, nll))

    @torch.no_grad()
    def _takes_finer_grid(self, model: GridModel) -> bool:
        """Takes the next finer grid, if there is one and the likelihood depends on the present grid.

        The guard of a block reads its round trip, too; here the NLL of the whole flow decides alone. A training that
        integrates goes back to the last good parameters; one that does not has done nothing wrong and goes on.

        Returns:
            Whether training has gone back, so that there is nothing to validate.
        """
        config = self.config
        rows = self.problem.val[: config.guard_rows]
        gap = float((model.nll(rows) - model.nll(rows, 1)).abs().mean())
        tolerances = guard_tolerances(config.guard_nll, config.guard_round_trip, rows.shape[1])
        if gap <= tolerances.nll or not model.refine():
            return False
        told = f"mean difference of the NLL at twice the steps {gap:.2g} nats"
        if model.trains_on_grid:
            self._go_back(f"{told}; trains with twice the steps now")
            return True
        self._tell(f"{told}; validates with twice the steps now")
        self.best_nll = math.inf  # those so far were computed with too few steps
        return False

    def _go_back(self, reason: str) -> None:
        """Restores the last good parameters, and records the reason."""
        self._tell(reason)
        self.optimizer.restore(self.good)

    def _tell(self, event: str) -> None:
        if len(self.events) < MOST_EVENTS:
            self.events.append(f"batch {self.batches}: {event}")
