"""One round of a training run, in which blocks are trained one after the other or together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jkoflow.block import Block
from jkoflow.data import Dataset
from jkoflow.flow import JKOFlow
from jkoflow.metrics import Movement, training_grid
from jkoflow.ops.grid import Grid, finest
from jkoflow.training import rounds
from jkoflow.training.chain import Chain
from jkoflow.training.config import TrainConfig
from jkoflow.training.evaluation import wanted_rows
from jkoflow.training.first_layer import ROWS, first_layer_scale, sharpen
from jkoflow.training.fit import Fit, FitHooks
from jkoflow.training.plan import Budget, Costs, Outlook, seconds_for_fit
from jkoflow.training.progress import Progress
from jkoflow.training.pushed import PushedSamples
from jkoflow.training.recipe import Recipe, first_grid, recipe_of_block, recipe_of_chain
from jkoflow.training.run_plan import RunPlan, plan_run
from jkoflow.training.start import new_block
from jkoflow.training.state import FitCounters, FitState
from jkoflow.training.world import World


@dataclass(frozen=True)
class RunContext:
    """The objects that all rounds of a run share."""

    data: Dataset
    config: TrainConfig
    world: World
    progress: Progress
    record: Callable[[Mapping[str, Any]], None]
    """Function that writes one line of the history."""
    save: Callable[[Fit | None], None]
    """Function that saves the state, with the fit in training, or with None between two fits."""

    @property
    def budget(self) -> Budget | None:
        """Returns the limit of time; None without a time budget."""
        seconds = self.config.time_budget
        return None if seconds is None else Budget(self.world.elapsed, seconds)


@dataclass
class RoundTrainer:
    """Trains the blocks of one round.

    Arguments:
        run: The objects that all rounds share.
        number: Number of the round, from 0.
        kind: Kind of the round, see `jkoflow.training.rounds`.
        warm: The blocks that the round begins with; none for a chain that is built.
        flow: The flow without blocks that the round's blocks are put into.
        samples: The samples that enter the first block.
        later_rounds: Rounds of single blocks that follow.
        plan: Plan of the run under a time budget; None before it is made, or without a time budget.
        started: Seconds into the run at which the round began.

    Attributes:
        scale: Scale of the first layer, given or measured on the samples (`jkoflow.training.first_layer`).
    """

    run: RunContext
    number: int
    kind: str
    warm: list[Block]
    flow: JKOFlow
    samples: PushedSamples
    later_rounds: int
    plan: RunPlan | None
    started: float
    summaries: list[dict[str, Any]] = field(default_factory=list, init=False)
    """Records, in the history, of the blocks of this round that are done."""

    def __post_init__(self) -> None:
        self.first_nll = self.samples.val_nll()
        given = self.run.config.first_layer_scale
        self.scale = first_layer_scale(*self.samples.spread(ROWS)) if given is None else given
        self._saved_fit: FitState | None = None
        self._costs: Costs | None = None  # of the last fit

    def go_on(self, blocks: Sequence[Block], summaries: list[dict[str, Any]], fit: FitState | None) -> None:
        """Restores a resumed round: the given blocks are done, and the given fit is in training."""
        self.summaries, self._saved_fit = summaries, fit
        for block, summary in zip(blocks, summaries, strict=True):
            self.flow.blocks.append(block.to(self.samples.train.device))
            self._push(block, summary["train_rows"])  # the same operations as before, so the same bits

    def train(self) -> list[float]:
        """Trains the rest of the round; returns the standard errors of the blocks' movements."""
        fit = None if self._is_together else self._next_fit()
        if self.run.budget is not None and self.plan is None and fit is not None:
            self.plan = self._plan(fit)
            fit = self._planned(fit)
        if self.kind == rounds.BUILD and not self.summaries and self._saved_fit is None:
            self.run.progress.message(self._beginning())
        self.run.progress.start_round(self.number, self.kind, len(self.warm) or self._most_blocks)
        if fit is None and self._is_together:
            return self._train_together()
        while fit is not None:
            self._train_block(fit)
            fit = self._next_fit()
        return [summary["movement_stderr"] for summary in self.summaries]

    @property
    def _is_together(self) -> bool:
        """Tells whether the round trains its blocks as one chain."""
        new = self.kind == rounds.BUILD and self.plan is not None and self.plan.together
        return new or self.kind == rounds.FINETUNE

    def _planned(self, fit: Fit) -> Fit | None:
        """Returns the first fit as it is planned, given the one whose speed the plan was made from."""
        assert self.plan is not None
        if self.plan.together:
            self._costs = fit.costs
            return None
        if self.plan.more_steps or self._hidden != self.run.config.first_hidden:
            fit = self._next_fit() or fit  # of another width or grid, whose speed is its own
        assert isinstance(fit.block, Block)
        fit.block.jko_step = self._next_jko_step() or math.inf  # the plan says if it is the last block, too
        fit.recipe = self._recipe(fit.index, fit.block)
        return fit

    def _beginning(self) -> str:
        """Returns what was chosen by the data and the time, in one line."""
        config, plan = self.run.config, self.plan
        begun = (
            f"begins with the initial map {self.flow.initial_map.recipe}, layers of "
            f"{' and '.join(map(str, self._hidden))}, the first {self.scale:.3g} times as fine as usual, and "
            f"{self._first_grid.num_steps} Runge-Kutta steps"
        )
        if self._is_together:
            return f"{begun} in {self._most_blocks} blocks, which are trained together"
        if rounds.is_divided_single(config, plan):
            share = 1 - rounds.finetune_share(config, plan)
            return f"{begun}; divides the block in {rounds.divide(config, plan)} after {share:.0%} of the training"
        return begun

    # ---- Fits

    def _next_jko_step(self) -> float | None:
        """Returns the JKO step size of the next block, inf for the free one; None at the end of the round."""
        done = len(self.summaries)
        if self.kind != rounds.BUILD:
            return self.warm[done].jko_step if done < len(self.warm) else None
        return rounds.next_jko_step(self.summaries, self.first_nll, self._most_blocks, self.run.config)

    def _next_fit(self) -> Fit | None:
        """Returns the fit of the next block, or the fit that a resumed run was in; None at the end of the round."""
        jko_step, index = self._next_jko_step(), len(self.summaries)
        if jko_step is None:
            return None
        state, self._saved_fit = self._saved_fit, None
        if state is not None:
            block = Block.from_description(state.block).float()
        elif self.warm:
            block = self.warm[index]
        else:
            before = self.flow.stack[index - 1] if index else None
            block = self._new_block(self._first_grid, index, jko_step, before)
        block = block.to(self.samples.train.device)
        return self._fit(index, block, self._recipe(index, block), state)

    def _new_block(self, grid: Grid, index: int, jko_step: float, before: Block | None) -> Block:
        block = new_block(self.run.data, self.run.config, self._hidden, grid, index, jko_step, before)
        if before is None:
            sharpen(block, self.scale)
        return block

    def _new_chain(self) -> Chain:
        """Returns new blocks, which share the Runge-Kutta steps that a single one would begin with."""
        blocks = self._most_blocks
        grid = self._first_grid.split(blocks)
        return Chain([self._new_block(grid, index, math.inf, None) for index in range(blocks)])

    def _recipe(self, index: int, block: Block) -> Recipe:
        """Returns the recipe of a block that is trained by itself."""
        config, plan = self.run.config, self.plan
        divided = self.kind == rounds.BUILD and rounds.is_divided_single(config, plan)
        end = 1 - rounds.finetune_share(config, plan) if divided else 1.0
        last = index + 1 == self._round_blocks
        return self._at_planned_rate(
            recipe_of_block(block, config, self._columns, self.scale, end, last, self._more_steps)
        )

    def _at_planned_rate(self, recipe: Recipe) -> Recipe:
        """Returns the recipe with the rates for a training as long as the planned one, unless a rate is given."""
        if self.plan is None or self.run.config.learning_rate is not None:
            return recipe
        return recipe._replace(peak_rates=recipe.peak_rates.times(self.plan.rate_share))

    def _fit(self, index: int, block: Block | Chain, recipe: Recipe, state: FitState | None) -> Fit:
        """Returns a fit, restored from its saved state if there is one."""
        counters = FitCounters() if state is None else state.counters
        hooks = self._hooks(index)
        fit = Fit(index, block, self.samples, self.run.config, recipe, hooks, counters, self.number)
        if state is not None:
            fit.restore(state)
        return fit

    def _train_block(self, fit: Fit) -> None:
        """Trains a block and carries the samples through it."""
        fit.run()
        self._costs = fit.costs or self._costs
        block, kept = fit.block, fit.counters.kept_rows
        assert isinstance(block, Block)
        rows = self.samples.rows
        if kept < rows and not fit.recipe.last:
            self.run.progress.message(
                f"the time budget lets {kept} of {rows} training rows go on behind block {fit.index}; "
                "raise time_budget to keep more"
            )
        moved = self._push(block, kept)
        block.movement = moved.value
        self.flow.blocks.append(block)
        self.summaries.append(self._end_fit(fit, moved))
        self.run.save(None)

    def _train_together(self) -> list[float]:
        """Trains new blocks together, or fine-tunes a chain; returns the standard errors of its blocks' movements."""
        state, self._saved_fit = self._saved_fit, None
        is_new, config = self.kind == rounds.BUILD, self.run.config
        if state is not None:
            chain = Chain.from_description(state.block)
        else:
            chain = self._new_chain() if is_new else Chain(self.warm)
        chain.to(self.samples.train.device)
        share = 1.0 if is_new else rounds.finetune_share(config, self.plan)
        divided = rounds.is_divided_single(config, self.plan)
        recipe = recipe_of_chain(chain, config, self._columns, self.scale, share, divided)
        fit = self._fit(0, chain, self._at_planned_rate(recipe), state)
        if is_new and self._hidden == config.first_hidden:
            fit.hooks.holds = chain.cost == self._first_grid.cost
        fit.run()
        self._keep(fit.counters.kept_rows)
        before = self.samples.train
        errors = self.samples.push_through(chain.blocks)
        self.flow.blocks.extend(chain.blocks)
        self._end_fit(fit, self.samples.moved(before))
        return errors

    def _end_fit(self, fit: Fit, moved: Movement) -> dict[str, Any]:
        """Records and reports the result of a block, or of a chain under the number of its first block."""
        seconds = self.run.world.elapsed() - fit.counters.started
        summary = rounds.summary(self.number, fit, moved, self.samples.val_nll(), seconds)
        self.run.record(summary)
        self.run.progress.end_block(fit.index, summary)
        return summary

    def _push(self, block: Block, rows: int) -> Movement:
        """Carries the given number of training rows, and the validation rows, through a finished block."""
        self._keep(rows)
        return self.samples.push(block)

    def _keep(self, rows: int) -> None:
        self.samples.keep(rows, self.run.config.seed, self.samples.rows)

    @property
    def _columns(self) -> int:
        return self.samples.val.shape[1]

    # ---- Time

    @property
    def _hidden(self) -> tuple[int, ...]:
        """Returns the widths of the hidden layers of new blocks."""
        config = self.run.config
        planned = config.hidden is None and self.plan is not None
        return 2 * (self.plan.width,) if planned and self.plan is not None else config.first_hidden

    @property
    def _first_grid(self) -> Grid:
        """Returns the grid that a block begins with."""
        return first_grid(self.run.config, self.scale, self._more_steps)

    @property
    def _more_steps(self) -> int:
        return 0 if self.plan is None else self.plan.more_steps

    @property
    def _most_blocks(self) -> int:
        """Returns the largest number of blocks of a chain that is built."""
        return self.run.config.most_blocks if self.plan is None else self.plan.blocks

    @property
    def _round_blocks(self) -> int:
        """Returns the number of blocks that the round trains, at most; a chain that is trained together is one."""
        return 1 if self._is_together else len(self.warm) or self._most_blocks

    def _plan(self, first: Fit) -> RunPlan:
        """Plans the run from the times that its first fit measures."""
        config = self.run.config
        first.prepare()
        assert config.time_budget is not None
        left = config.time_budget - first.counters.started
        iteration = first.counters.iteration_seconds
        later = 1 + self.later_rounds
        blocks = config.most_blocks, config.max_blocks
        chooses = config.finetune is None and config.divide is None
        return plan_run(left, later, iteration, *blocks, config.free_block, self.scale, chooses)

    def outlook(self, index: int, grid: Grid) -> Outlook:
        """Returns the work of the run from the fit of a block on, given the block's present grid."""
        config, blocks = self.run.config, self._round_blocks
        free = not self.warm and math.isinf(self._next_jko_step() or 1.0)
        return Outlook(
            round_blocks=blocks,
            blocks_left=1 if free else blocks - index,
            later_rounds=self.later_rounds,
            children=1 if self.kind in (rounds.REFINE, rounds.FINETUNE) else config.refine,
            grid=finest([grid, training_grid(self.flow), *(block.grid for block in self.warm)]),
            finetune=rounds.finetune_share(config, self.plan),
            divide=1 if self.kind == rounds.FINETUNE else rounds.divide(config, self.plan),
            rows=wanted_rows(self.run.data, config.val_rows),
        )

    def _hooks(self, index: int) -> FitHooks:
        """Returns the functions and objects that the fit of a block calls."""
        run, budget = self.run, self.run.config.time_budget
        if budget is None:
            return FitHooks(run.world, run.record, run.save, None, run.progress)

        def seconds(measured: FitCounters, grid: Grid) -> float:
            return seconds_for_fit(budget, measured.started, self.outlook(index, grid), measured.row_step)

        return FitHooks(run.world, run.record, run.save, seconds, run.progress, self._costs)
