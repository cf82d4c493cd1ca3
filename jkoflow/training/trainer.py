"""The training run: rounds over the chain of blocks, and everything around one fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from jkoflow.block import Block
from jkoflow.data import Dataset
from jkoflow.flow import JKOFlow
from jkoflow.metrics import Movement, movement, training_grid
from jkoflow.ops.grid import Grid, finest
from jkoflow.training import rounds
from jkoflow.training.chain import Chain
from jkoflow.training.config import TrainConfig
from jkoflow.training.evaluation import evaluate, wanted_rows
from jkoflow.training.finetune import recipe_of_chain
from jkoflow.training.fit import Fit, FitHooks, Recipe, recipe_of_block
from jkoflow.training.plan import Budget, Outlook, RunPlan, plan_run, seconds_for_fit
from jkoflow.training.progress import Progress
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.start import entering, new_block, plain_flow
from jkoflow.training.state import FitCounters, FitState, RunState, fingerprint
from jkoflow.training.world import World


class Trainer:
    """Decides what comes next, and keeps what has been reached.

    Arguments:
        data: The data.
        config: Settings.
        device: Where to train.
        world: The process, with its clock.
        run: Where to leave the results; nowhere if None.
        progress: Is told what happens.
        start: The flow to begin with; a new chain is built if None.
        state: Where to go on.
    """

    def __init__(
        self,
        data: Dataset,
        config: TrainConfig,
        device: torch.device,
        world: World,
        run: RunDirectory | None,
        progress: Progress,
        start: JKOFlow | None = None,
        state: RunState | None = None,
    ) -> None:
        self.data, self.config, self.world, self.run_directory, self.progress = data, config, world, run, progress
        self._saved = world.elapsed()
        self._fingerprint = fingerprint(data, start) if run is not None else ""
        if start is None:
            start = plain_flow(data, config)
        self.best = start.with_blocks(start.stack).to(device)  # the best flow so far
        self.flow = self.best.with_blocks([])  # the chain in training
        self.samples = entering(self.best, data, config.val_rows)
        self.first_nll = self.samples.val_nll()
        self.rounds: list[dict[str, Any]] = []
        self.summaries: list[dict[str, Any]] = []
        self.guard_events = 0
        self._plan: RunPlan | None = None  # of a time budget
        self._kind = ""  # of the present round, and the blocks that it begins with
        self._warm: list[Block] = []
        self._round_started = 0.0
        self._saved_fit: FitState | None = None
        if state is not None:
            self._restore(state, device)
        elif self.best.stack:
            self._measure_start()

    def run(self) -> JKOFlow:
        """Trains what is left to train, and evaluates the result."""
        while (kind := self._next_kind()) is not None:
            fit = self._begin_round(kind)
            if kind == rounds.FINETUNE:
                errors = self._train_together()
            else:
                while fit is not None:
                    self._train_block(fit)
                    fit = self._next_fit()
                errors = [summary["movement_stderr"] for summary in self.summaries]
            self._end_round(errors)
        return self._finish()

    def _finish(self) -> JKOFlow:
        """Evaluates the best flow and leaves the results."""
        seconds = self.world.elapsed()
        flow = self.best.requires_grad_(False).eval()
        results = evaluate(flow, self.data, self.config.val_rows, self._budget, self.progress.message)
        results |= {
            "movements": [block.movement for block in flow.stack],
            "movements_stderr": rounds.last_kept(self.rounds)["movements_stderr"],
            "guard_events": self.guard_events,
            "train_seconds": seconds,
            "seed": self.config.seed,
            "initial_map": flow.initial_map.recipe,
            "rounds": [{k: v for k, v in record.items() if k != "event"} for record in self.rounds],
        }
        if self.run_directory is not None:
            self.run_directory.finish(flow, results, self.data)
        return flow

    # ---- Rounds

    @property
    def _number(self) -> int:
        return len(self.rounds)

    def _next_kind(self) -> str | None:
        return rounds.next_kind(self.rounds, self.config, self._finetune > 0)

    def _begin_round(self, kind: str) -> Fit | None:
        """Lays out the round and returns its next fit; what a resumed run has trained of it is there already."""
        self._kind = kind
        self._warm = [] if kind == rounds.BUILD else rounds.warm_blocks(kind, self.best, self.config)
        if not self.summaries and self._saved_fit is None:
            self._round_started = self.world.elapsed()
        fit = None if kind == rounds.FINETUNE else self._next_fit()
        if self._budget is not None and self._plan is None and fit is not None:
            self._plan = self._plan_run(fit)
        self.progress.start_round(self._number, kind, len(self._warm) or self._most_blocks)
        return fit

    def _end_round(self, errors: list[float]) -> None:
        """Keeps or undoes what the round has trained, whose movements have these standard errors."""
        best = rounds.last_kept(self.rounds)["val_nll"] if self.rounds else None
        seconds = self.world.elapsed() - self._round_started
        record = rounds.record(self._number, self._kind, self.flow.stack, errors, self.samples.val_nll(), best, seconds)
        if record["kept"]:
            self.best = self.flow
        else:
            self.progress.message(
                f"round {self._number + 1} ({self._kind}) ended at a validation NLL of {record['val_nll']:.4f} nats, "
                f"no better than {best:.4f} before: undone"
            )
        self._record(record)
        self.rounds.append(record)
        self.flow, self.summaries = self.best.with_blocks([]), []
        if self._next_kind() is not None:
            self.samples = entering(self.best, self.data, self.config.val_rows)
        self._save(None)

    def _measure_start(self) -> None:
        """Takes the flow to begin with for a round of its own, for the next one to be compared with."""
        blocks = self.best.stack
        errors = self._measure_movements(blocks)
        seconds = self.world.elapsed()
        record = rounds.record(0, rounds.START, blocks, errors, self.samples.val_nll(), None, seconds)
        self._record(record)
        self.rounds.append(record)
        self.samples = entering(self.best, self.data, self.config.val_rows)

    def _measure_movements(self, blocks: list[Block]) -> list[float]:
        """Carries the samples through blocks, leaves the movement in each and returns the standard errors."""
        moved = [self.samples.push(block) for block in blocks]
        for block, measured in zip(blocks, moved, strict=True):
            block.movement = measured.value
        return [measured.stderr for measured in moved]

    # ---- Fits

    def _next_jko_step(self) -> float | None:
        """Returns the JKO step size of the next block, inf for the free one; None at the end of the round."""
        done = len(self.summaries)
        if self._kind != rounds.BUILD:
            return self._warm[done].jko_step if done < len(self._warm) else None
        return rounds.next_jko_step(self.summaries, self.first_nll, self._most_blocks, self.config)

    def _next_fit(self) -> Fit | None:
        """Returns the fit of the next block, or the one that a resumed run was in; None at the end of the round."""
        jko_step, index = self._next_jko_step(), len(self.summaries)
        if jko_step is None:
            return None
        state, self._saved_fit = self._saved_fit, None
        if state is not None:
            block = Block.from_description(state.block)
        elif self._warm:
            block = self._warm[index]
        else:
            before = self.flow.stack[index - 1] if index else None
            block = new_block(self.data, self.config, index, jko_step, before)
        columns = self.samples.val.shape[1]
        block = block.to(self.samples.train.device)
        return self._fit(index, block, recipe_of_block(block, self.config, columns), state)

    def _fit(self, index: int, block: Block | Chain, recipe: Recipe, state: FitState | None) -> Fit:
        """Returns a fit, put where it was if it is a resumed one."""
        counters = FitCounters() if state is None else state.counters
        fit = Fit(index, block, self.samples, self.config, recipe, self._hooks(index), counters, self._number)
        if state is not None:
            fit.restore(state)
        return fit

    def _train_block(self, fit: Fit) -> None:
        """Trains a block and carries the samples through it."""
        fit.run()
        block, counters = fit.block, fit.counters
        assert isinstance(block, Block)
        rows = len(self.samples.train)
        if counters.kept_rows < rows:
            self.progress.message(
                f"the time budget lets {counters.kept_rows} of {rows} training rows go on behind block {fit.index}; "
                "raise time_budget to keep more"
            )
        moved = self._push(block, counters.kept_rows)
        block.movement = moved.value
        self.flow.blocks.append(block)
        self.summaries.append(self._end_fit(fit, moved))
        self._save(None)

    def _train_together(self) -> list[float]:
        """Fine-tunes the chain; returns the standard errors of its movements."""
        state, self._saved_fit = self._saved_fit, None
        chain = Chain(self._warm) if state is None else Chain.from_description(state.block)
        chain.to(self.samples.train.device)
        fit = self._fit(0, chain, recipe_of_chain(chain, self.config, self.samples.val.shape[1]), state)
        fit.run()
        self._keep(fit.counters.kept_rows)
        before = self.samples.train
        errors = self._measure_movements(chain.blocks)
        moved = movement(before, self.samples.train)
        self.flow.blocks.extend(chain.blocks)
        self._end_fit(fit, moved)
        return errors

    def _end_fit(self, fit: Fit, moved: Movement) -> dict[str, Any]:
        """Records and tells what a block, or a chain under the number of its first, has achieved."""
        seconds = self.world.elapsed() - fit.counters.started
        summary = rounds.summary(self._number, fit, moved, self.samples.val_nll(), seconds)
        self._record(summary)
        self.progress.end_block(fit.index, summary)
        return summary

    def _push(self, block: Block, rows: int) -> Movement:
        """Carries the samples on to the next block, ``rows`` of them."""
        self._keep(rows)
        return self.samples.push(block)

    def _keep(self, rows: int) -> None:
        self.samples.keep(rows, self.config.seed, len(self.samples.train))

    # ---- Time

    @property
    def _budget(self) -> Budget | None:
        seconds = self.config.time_budget
        return None if seconds is None else Budget(self.world.elapsed, seconds)

    @property
    def _most_blocks(self) -> int:
        """Largest number of blocks of the chain that is built."""
        return self.config.most_blocks if self._plan is None else self._plan.blocks

    @property
    def _finetune(self) -> float:
        """Share of the training that goes to the fine-tuning round."""
        if self.config.finetune is not None:
            return self.config.finetune
        return 0.0 if self._plan is None else self._plan.finetune

    def _plan_run(self, first: Fit) -> RunPlan:
        """Plans the run from what its first fit measures."""
        config = self.config
        first.prepare()
        assert config.time_budget is not None
        left = config.time_budget - first.counters.started
        later = rounds.rounds_after(self._kind, self.rounds, config)
        return plan_run(left, 1 + later, first.counters.iteration_seconds, config.most_blocks, config.max_blocks)

    def _outlook(self, index: int, grid: Grid) -> Outlook:
        """Returns what there is to do from a fit on, whose block has this grid now."""
        config = self.config
        blocks = 1 if self._kind == rounds.FINETUNE else len(self._warm) or self._most_blocks  # a chain is one
        free = not self._warm and math.isinf(self._next_jko_step() or 1.0)
        return Outlook(
            round_blocks=blocks,
            blocks_left=1 if free else blocks - index,
            later_rounds=rounds.rounds_after(self._kind, self.rounds, config),
            children=1 if self._kind in (rounds.REFINE, rounds.FINETUNE) else config.refine,
            grid=finest([grid, training_grid(self.flow), *(block.grid for block in self._warm)]),
            finetune=self._finetune,
            rows=wanted_rows(self.data, config.val_rows),
        )

    def _hooks(self, index: int) -> FitHooks:
        def save(fit: Fit) -> None:
            if self.world.elapsed() - self._saved >= self.config.save_seconds:
                self._save(fit)

        budget = self.config.time_budget

        def seconds(measured: FitCounters, grid: Grid) -> float:
            assert budget is not None
            return seconds_for_fit(budget, measured.started, self._outlook(index, grid), measured.row_step)

        return FitHooks(self.world, self._record, save, None if budget is None else seconds, self.progress)

    # ---- What is kept

    def _record(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "guard":
            self.guard_events += 1
        if self.run_directory is not None:
            self.run_directory.record({"event": event["event"], "round": self._number, **event})

    def _save(self, fit: Fit | None) -> None:
        self._saved = self.world.elapsed()
        if self.run_directory is None:
            return
        blocks, finetune = (None, 0.0) if self._plan is None else self._plan
        state = RunState(
            settings=self.config.to_mapping(),
            fingerprint=self._fingerprint,
            elapsed=self.world.elapsed(),
            history_bytes=self.run_directory.flush(),
            guard_events=self.guard_events,
            first_nll=self.first_nll,
            planned_blocks=blocks,
            planned_finetune=finetune,
            rounds=self.rounds,
            accepted=self.best.stack,
            round_started=self._round_started,
            summaries=self.summaries,
            blocks=self.flow.stack,
            fit=None if fit is None else fit.state(),
        )
        self.run_directory.save_state(state)

    def _restore(self, state: RunState, device: torch.device) -> None:
        self.world.go_on_after(state.elapsed)
        self._saved = self.world.elapsed()
        self._round_started = state.round_started
        self.rounds, self.summaries = state.rounds, state.summaries
        self.guard_events, self.first_nll = state.guard_events, state.first_nll
        if state.planned_blocks is not None:
            self._plan = RunPlan(state.planned_blocks, state.planned_finetune)
        self._saved_fit = state.fit
        self.best = self.best.with_blocks([block.to(device) for block in state.accepted])
        for block, summary in zip(state.blocks, self.summaries, strict=True):
            self.flow.blocks.append(block.to(device))
            self._push(block, summary["train_rows"])  # the same operations as before, so the same bits
