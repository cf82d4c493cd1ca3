"""The training of one block, or of a chain: the loop of iterations and the choice of the best parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jkoflow.block import Block
from jkoflow.ops.grid import Grid
from jkoflow.training.captured import Captured, graphs_on
from jkoflow.training.chain import Trainable, blocks_of
from jkoflow.training.config import TrainConfig
from jkoflow.training.gradient import check_alike, take_gradient
from jkoflow.training.guard import Action, Guard, GuardReading, guard_samples
from jkoflow.training.objectives import TERMS
from jkoflow.training.optimizer import OptimizerState, build_optimizer, learning_rate
from jkoflow.training.overfit import beats_identity
from jkoflow.training.plan import Costs, iterations_within, plan_fit, plan_push
from jkoflow.training.progress import Progress
from jkoflow.training.pushed import PushedSamples, gaussian_constant
from jkoflow.training.recipe import Recipe
from jkoflow.training.state import FitCounters, FitState, TrainingError
from jkoflow.training.world import World, wait_for

LOG_EVERY = 10
"""Iterations between two records of the loss."""

LOG_EVERY_CAPTURED = 50
"""The same on a GPU: reading the loss waits for it, and it then waits for the next launch."""

TIMED_TOGETHER = 10
"""Iterations on a GPU that are timed together, since none of them waits for the one before."""

RELAX_BACKOFF = 4
"""Factor by which the guard waits longer after fewer steps were exploited; the velocity may be tamer later."""

REPLAN_BEYOND = 0.02
"""Change of the number of iterations, as a share, below which a plan is kept."""


@dataclass
class FitHooks:
    """The functions and objects outside of a fit that its loop calls."""

    world: World
    """The process that trains, with its clock."""
    record: Callable[[Mapping[str, Any]], None]
    """Function that writes one line of the history."""
    save: Callable[[Fit], None]
    """Function that is called after every iteration and saves the state if a save is due."""
    seconds: Callable[[FitCounters, Grid], float] | None
    """Function that returns the seconds that this fit may take on a grid, its push included, given the times measured
    for it; None without a time budget."""
    progress: Progress
    known: Costs | None = None
    """Costs that the fit before this one has measured, for one that has no time left to measure its own."""
    holds: bool = False
    """Whether these are the costs of this fit, too, since it differs in nothing that takes time."""


@dataclass
class Fit:
    """The training of one block, or of a chain, on pushed samples.

    Arguments:
        index: Number of the block, from 0; for a chain, number of its first block.
        block: The block or chain, which is trained in place from its present parameters.
        samples: The pushed samples that enter the block.
        config: Settings of the run.
        recipe: Settings that depend on whether a block or a chain is trained.
        hooks: Functions and objects that the loop calls.
        counters: Counters of the fit to resume; new counters begin a new fit.
        round_number: Number of the round, from 0; every round has batches of its own.
    """

    index: int
    block: Trainable
    samples: PushedSamples
    config: TrainConfig
    recipe: Recipe
    hooks: FitHooks
    counters: FitCounters = field(default_factory=FitCounters)
    round_number: int = 0

    def __post_init__(self) -> None:
        config, samples, counters = self.config, self.samples, self.counters
        self.optimizer = build_optimizer(
            self.block,
            config.optimizer,
            self.recipe.peak_rates,
            self.recipe.weight_decay,
            config.beta1,
            config.beta2,
            config.clip_norm,
        )
        # a resumed fit knows both
        counters.kept_rows = counters.kept_rows or samples.rows
        counters.validate_every = counters.validate_every or config.validate_every
        self.batches = samples.batches(config.batch_size, config.seed, self.index, self.round_number)
        rows, context = guard_samples(samples.val, samples.val_context, config.guard_rows)
        graphs = graphs_on(samples.train.device) if samples.place is None else None  # which have batches of one length
        self._captured = None if graphs is None else Captured[tuple[Tensor, ...]](graphs, self.hooks.progress.message)
        alone = self.recipe.alone is not None
        limits = self.recipe.tolerances, self.recipe.coarsest, config.max_num_steps
        self.guard = Guard(self.block, rows, context, *limits, alone, samples.world.share_out)
        self.good: OptimizerState = self.optimizer.state()
        self._session = (self.hooks.world.elapsed(), counters.iteration)
        self.costs: Costs | None = None
        self._overflowed = False
        self.best: Tensor = self.optimizer.parameters.clone()
        if math.isinf(counters.best_loss) and self.recipe.alone is not None:
            self._consider_identity(self.recipe.alone)

    def state(self) -> FitState:
        """Returns the state from which a resumed run goes on with this fit."""
        return FitState(self.block.describe(), self.counters, self.optimizer.state(), self.good, self.best)

    def restore(self, state: FitState) -> None:
        """Takes over the parameters and the optimiser of a saved fit; block and counters came with the constructor."""
        self.optimizer.restore(state.now)
        self.good, self.best = state.good.to(self.best.device), state.best.to(self.best.device)

    def _consider_identity(self, block: Block) -> None:
        """Makes the identity the first candidate, which others must clearly beat (`jkoflow.training.overfit`)."""
        present = self.optimizer.parameters.clone()
        block.velocity.scale_output(0.0)
        self.best = self.optimizer.parameters.clone()
        self.optimizer.load(present)
        self.counters.best_loss = self.recipe.objective.of_identity(self.samples.val)

    def run(self) -> None:
        """Trains until the plan is done or the guard ends the block, and leaves the best parameters in the block."""
        counters = self.counters
        self.prepare()
        if counters.iterations == 0:
            self._plan()
        self.hooks.progress.start_block(self.index, counters.iterations)
        self._start_session()
        while counters.iteration < counters.iterations and not counters.stopped:
            self.look()
            if not counters.stopped:
                self.iterate()
                self.hooks.save(self)
        if not counters.stopped:
            self.look(last=True)
        self._captured = None
        check_alike(self.hooks.world, self.optimizer, self.best, self.index)
        self.optimizer.load(self.best)
        self.optimizer.release()

    def iterate(self) -> None:
        """Does one iteration: a batch, its loss and an update of the parameters."""
        counters, config = self.counters, self.config
        recipe = self.recipe
        share = recipe.rate_share(self.block.cost)
        factor = learning_rate(counters.iteration, counters.iterations, share, config.warmup, recipe.span)
        numbers_of_update = self._update(counters.iteration, factor)
        log_every = LOG_EVERY if self._captured is None else LOG_EVERY_CAPTURED
        if counters.iteration % log_every == 0 or counters.iteration + 1 == counters.iterations:
            # one read, since each waits for the device
            *values, grad_norm = torch.stack(numbers_of_update).tolist()
            numbers = dict(zip(["loss", *TERMS], values, strict=True))
            place = {"block": self.index, "iteration": counters.iteration}
            rate = factor * self.recipe.peak_rates.matrices
            rest = {"grad_norm": grad_norm, "learning_rate": rate, "num_steps": self.block.grid.num_steps}
            rest["seconds"] = self.hooks.world.recent()
            self.hooks.record({"event": "iteration", **place, **numbers, **rest})
            self.hooks.progress.update(self.index, counters.iteration + 1, numbers)
        counters.iteration += 1

    def _update(self, iteration: int, factor: float) -> tuple[Tensor, ...]:
        """Updates the parameters by the batch of an iteration; on a GPU by a CUDA graph, see `_descend`.

        Returns:
            Loss, its terms and the norm of its gradient, which the next update may overwrite.
        """
        self.optimizer.prepare(factor)
        places = self.batches.places(iteration)
        if self._captured is None or self.optimizer.refreshes:
            return self._descend(places)
        grids = tuple(block.grid for block in blocks_of(self.block))
        return self._captured(self._descend, (self.recipe.objective.jko_step, grids), places)

    def _descend(self, places: Tensor) -> tuple[Tensor, ...]:
        """Does what of an update is on the device: a batch from rows at these places, its loss, the optimiser."""
        return *self._gradient(places), self.optimizer.apply()

    def _gradient(self, places: Tensor) -> list[Tensor]:
        """Makes the optimiser's gradient that of the batch from rows at these places; returns its loss and terms."""
        world, objective = self.hooks.world, self.recipe.objective
        return take_gradient(world, self.optimizer, objective, self.block, self.batches, places)

    def look(self, last: bool = False) -> None:
        """Does the checks due between two iterations: the guard, then the validation of parameters that passed it."""
        iteration, config = self.counters.iteration, self.config
        validate = last or iteration % self.counters.validate_every == 0
        if config.guard and (validate or iteration % config.guard_every == 0) and not self._is_guarded():
            return
        if not validate:
            return
        if not config.guard and not bool(torch.isfinite(self.optimizer.parameters).all()):
            raise TrainingError(
                f"the parameters of block {self.index} are no longer finite after {iteration} iterations; "
                "set guard = true, or lower learning_rate"
            )
        loss, nll, better = self._validate()
        place = {"block": self.index, "iteration": iteration}
        self.hooks.record({"event": "validation", **place, "loss": loss, "nll": nll})
        if better and loss < self.counters.best_loss:
            self.counters.best_loss = loss
            self.best = self.optimizer.parameters.clone()
        if not (math.isfinite(loss) or self._overflowed):
            self._overflowed = True
            self.hooks.progress.message(
                f"block {self.index} overflows on validation rows after {iteration} iterations: these parameters "
                "cannot be taken; set guard = true, or lower learning_rate"
            )
        self._replan()

    def _validate(self) -> tuple[float, float, bool]:
        """Returns the loss of the validation rows, their NLL under the flow with this block, and if it may be taken.

        All is on a refined grid. What begins from nothing may only be taken if it is clearly better than no block.
        """
        y, logdet = self.samples.val_images(self.block)
        terms = self.recipe.objective.validate(self.samples.val, y, logdet)
        past = self.samples.val_logdet.double().mean()
        loss, nll = torch.stack([terms.total, terms.potential + terms.divergence - past]).tolist()
        from_nothing = self.recipe.from_nothing
        better = not from_nothing or beats_identity(self.recipe.objective, self.samples.val, y, logdet)
        return loss, nll + gaussian_constant(y), better

    # ---- What the guard says is done

    def _is_guarded(self) -> bool:
        """Asks the guard and does what it says; returns True if there are parameters to validate."""
        while True:
            action, reading = self.guard.look(self.counters)
            self._act(action)
            if action is not Action.KEEP:
                self._record_guard(reading, action)
            if action is not Action.DAMP:  # nothing has vouched for a shortened velocity either: look again
                return action is not Action.STOP

    def _act(self, action: Action) -> None:
        counters = self.counters
        match action:
            case Action.KEEP:
                self.good = self.optimizer.state()
            case Action.LOWER:
                self.good = self.optimizer.state()
                self._change_grid(self.block.grid.lowered())
            case Action.RAISE:
                self.optimizer.restore(self.good)
                if counters.steps_lowered:
                    counters.relax_after *= RELAX_BACKOFF
                self._change_grid(self.block.grid.raised())
            case Action.DAMP | Action.RESET:
                assert self.recipe.alone is not None
                self.recipe.alone.velocity.scale_output(0.5 if action is Action.DAMP else 0.0)
                self.good = self.optimizer.state()
            case Action.STOP:
                counters.stopped = True

    def _change_grid(self, grid: Grid) -> None:
        """Changes the block's grid, and with it the plan, since iterations and push now take another time."""
        counters = self.counters
        counters.steps_lowered = grid.cost < self.block.grid.cost
        self.block.grid, counters.steps_changed = grid, counters.iteration
        self._set_deadline()
        self._start_session()

    def _record_guard(self, reading: GuardReading, action: Action) -> None:
        self.hooks.record(
            {
                "event": "guard",
                "block": self.index,
                "iteration": self.counters.iteration,
                "nll_difference": reading.nll_difference,
                "round_trip": reading.round_trip,
                "num_steps": self.block.grid.num_steps,
                "action": str(action),
            }
        )

    # ---- Time

    def prepare(self) -> None:
        """Begins the fit unless it has begun: under a time budget, measures how long its parts take."""
        counters = self.counters
        if counters.iterations or counters.iteration_seconds:
            return
        counters.started = self.hooks.world.elapsed()
        if self.hooks.seconds is None:
            return
        holds = self.hooks.holds or self.hooks.seconds(counters, self.block.grid) <= 0
        self.costs = costs = self.hooks.known if holds and self.hooks.known is not None else self._measure()
        plan = plan_fit(costs, self.config.validate_every)
        counters.validate_every, counters.iteration_seconds = plan.validate_every, plan.iteration_seconds
        counters.row_step, counters.row_carry = costs.row_step, costs.row_carry

    def _measure(self) -> Costs:
        """Measures how long the parts of the fit take, without changing anything."""
        world, samples, config = self.hooks.world, self.samples, self.config

        def seconds(call: Callable[[], object]) -> float:
            if self._captured is not None:
                call()  # loads kernels, which takes longer than all calls that follow
            return world.seconds(call)

        def carry() -> None:
            wait_for(samples.carry_val(self.block))

        validation = seconds(self._validate)
        iteration = self._measured_gradient() if self._captured is None else self._measured_updates()
        if config.guard:
            iteration += seconds(self.guard.read) / min(config.guard_every, config.validate_every)
        row_steps = len(samples.val) * self.block.grid.refined().cost
        return Costs(iteration, validation, validation / row_steps, seconds(carry) / row_steps)

    def _measured_gradient(self) -> float:
        """Measures a loss and its gradient, which take nearly all of an iteration on the CPU."""
        places = self.batches.places(0)

        def gradient() -> None:
            self._gradient(places)
            wait_for(self.optimizer.gradient)

        return self.hooks.world.seconds(gradient)

    def _measured_updates(self) -> float:
        """Measures iterations as they are trained on a GPU, where the optimiser takes as long as the loss may."""
        before = self.optimizer.state()

        def updates() -> None:
            for _ in range(TIMED_TOGETHER):
                self._update(0, 0.0)
            wait_for(self.optimizer.parameters)

        updates()  # loads kernels and captures the graph
        seconds = self.hooks.world.seconds(updates) / TIMED_TOGETHER
        self.optimizer.restore(before)
        return seconds

    def _plan(self) -> None:
        """Sets the number of iterations from the measured times."""
        counters = self.counters
        if self.hooks.seconds is None:
            counters.iterations = self.recipe.iterations
            return
        self._set_deadline()
        left = counters.deadline - self.hooks.world.elapsed()
        counters.iterations = iterations_within(left, counters.iteration_seconds)
        if counters.iterations < self.config.validate_every and self.recipe.span[1] == 1.0:  # no fit goes on with it
            self.hooks.progress.message(
                f"the time budget leaves only {counters.iterations} iterations for block {self.index}; "
                "raise time_budget or lower max_blocks"
            )

    def _set_deadline(self) -> None:
        """Sets when the iterations should end, so that the push, the later blocks and the evaluation have time."""
        if self.hooks.seconds is None:
            return
        counters, samples, grid = self.counters, self.samples, self.block.grid
        seconds = self.hooks.seconds(counters, grid)
        push = plan_push(
            seconds,
            grid,
            counters.row_step,
            counters.row_carry,
            samples.rows,
            len(samples.val),
            self.config.batch_size,
            self.recipe.last,
        )
        counters.kept_rows, counters.deadline = push.kept_rows, counters.started + seconds - push.seconds

    def _start_session(self) -> None:
        """Begins a new measurement of the speed at the present iteration."""
        self._session = (self.hooks.world.elapsed(), self.counters.iteration)

    def _replan(self) -> None:
        """Corrects the number of iterations when the measured speed differs from the planned one."""
        counters = self.counters
        start, first = self._session
        now, done = self.hooks.world.elapsed(), counters.iteration - first
        if math.isinf(counters.deadline) or done == 0 or counters.iteration >= counters.iterations:
            return
        rest = iterations_within(counters.deadline - now, (now - start) / done)
        if abs(counters.iteration + rest - counters.iterations) > REPLAN_BEYOND * counters.iterations:
            counters.iterations = counters.iteration + rest
            self.hooks.progress.start_block(self.index, counters.iterations)
