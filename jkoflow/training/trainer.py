"""The training run: rounds over the chain of blocks, and everything around the training of one block."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jkoflow import schedule
from jkoflow.block import Block
from jkoflow.data import Dataset
from jkoflow.flow import JKOFlow
from jkoflow.metrics import Movement, first_num_steps, mean_nll, movement_with_error, spread_rows
from jkoflow.training import rounds
from jkoflow.training.chain import Chain
from jkoflow.training.choose_map import fit_map
from jkoflow.training.config import TrainConfig
from jkoflow.training.evaluation import EXACT_ROWS, INVERSION_ROWS, TWO_SAMPLE_ROWS, evaluate, spread
from jkoflow.training.finetune import ChainFit
from jkoflow.training.fit import BlockFit, FitHooks
from jkoflow.training.progress import Progress
from jkoflow.training.pushed import PushedSamples, generator
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.state import FitCounters, FitState, RunState, fingerprint
from jkoflow.velocity import MLPVelocity

EVALUATION_SHARE = 0.2
"""Share of a time budget that may be set aside to score more than `LEAST_TEST_ROWS` test rows."""

LEAST_TEST_ROWS = 10_000
"""Test rows that are scored whatever the time budget; all if there are fewer."""


class Trainer:
    """Decides what comes next, and keeps what has been reached.

    Arguments:
        data: The data.
        config: Settings.
        device: Where to train.
        run: Where to leave the results; nowhere if None.
        progress: Is told what happens.
        started: `time.monotonic` at the start.
        start: The flow to begin with; a new chain is built if None.
        state: Where to go on.
    """

    def __init__(
        self,
        data: Dataset,
        config: TrainConfig,
        device: torch.device,
        run: RunDirectory | None,
        progress: Progress,
        started: float,
        start: JKOFlow | None = None,
        state: RunState | None = None,
    ) -> None:
        self.data, self.config, self.run_directory, self.progress = data, config, run, progress
        self._started, self._saved = started, started
        self._fingerprint = fingerprint(data, start) if run is not None else ""
        if start is None:
            start = self._plain_flow()
        self.best = start.with_blocks(start.stack).to(device)  # the best flow so far
        self.flow = self.best.with_blocks([])  # the chain in training
        self.samples = self._enter()
        self.first_nll = self.samples.val_nll()
        self.rounds: list[dict[str, Any]] = []
        self.summaries: list[dict[str, Any]] = []
        self.guard_events = 0
        self._planned_blocks: int | None = None
        self._planned_finetune = 0.0
        self._kind = ""  # of the present round, and the blocks that it begins with
        self._warm: list[Block] = []
        self._round_started, self._past_seconds = 0.0, 0.0
        self._fit: FitState | None = None
        if state is not None:
            self._restore(state, device)
        elif self.best.stack:
            self._measure_start()

    def run(self) -> JKOFlow:
        """Trains what is left to train, and evaluates the result."""
        while (kind := self._next_kind()) is not None:
            self._begin_round(kind)
            if kind == rounds.FINETUNE:
                errors = self._train_together()
            else:
                while (jko_step := self._next_jko_step()) is not None:
                    self._train_block(jko_step)
                errors = [summary["movement_stderr"] for summary in self.summaries]
            self._end_round(errors)
        seconds = self._elapsed()
        flow = self.best.requires_grad_(False).eval()
        results = evaluate(flow, self.data, self.config.val_rows, self._test_rows(flow))
        if not results["test_nll_converged"]:
            self.progress.message(
                f"the NLL still moves at {results['eval_num_steps']} Runge-Kutta steps per block: do not trust it; "
                "train with guard = true, more num_steps or a smaller learning_rate"
            )
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

    # ---- The beginning

    def _plain_flow(self) -> JKOFlow:
        """A flow without blocks."""
        data = self.data
        context = (None, None) if data.train_context is None else _moments(data.train_context)
        flow = JKOFlow(data.dim, (), *_moments(data.train), None, *context)
        flow.initial_map = fit_map(flow.standardize(data.train)[0], self.config.initial_map)
        return flow

    # ---- Rounds

    @property
    def _number(self) -> int:
        return len(self.rounds)

    def _next_kind(self) -> str | None:
        return rounds.next_kind(self.rounds, self.config, self._finetune > 0)

    def _begin_round(self, kind: str) -> None:
        """Lays out the round; blocks that a resumed run has trained in it are there already."""
        self._kind = kind
        self._warm = [] if kind == rounds.BUILD else rounds.warm_blocks(kind, self.best, self.config)
        if not self.summaries and self._fit is None:
            self._round_started = self._elapsed()
        self.progress.start_round(self._number, kind, len(self._warm) or self._most_blocks)

    def _end_round(self, errors: list[float]) -> None:
        """Keeps or undoes what the round has trained, whose movements have these standard errors."""
        best = rounds.last_kept(self.rounds)["val_nll"] if self.rounds else None
        seconds = self._elapsed() - self._round_started
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
            self.samples = self._enter()
        self._save(None)

    def _enter(self) -> PushedSamples:
        """The data before the first block."""
        flow, data, limit = self.best, self.data, self.config.val_rows
        device = flow.standardize.mean.device
        with torch.no_grad():
            train, _ = flow.enter(data.train.to(device))
            val, logdet = flow.initial_map(flow.standardize(spread_rows(data.val, limit).to(device))[0])
            contexts: tuple[Tensor | None, Tensor | None] = (None, None)
            if data.train_context is not None and data.val_context is not None:
                val_context = spread_rows(data.val_context, limit).to(device)
                contexts = (
                    flow.standardized_context(data.train_context.to(device), train.shape[0]),
                    flow.standardized_context(val_context, val.shape[0]),
                )
        return PushedSamples(train, val, logdet, *contexts)

    def _measure_start(self) -> None:
        """Takes the flow to begin with for a round of its own, for the next one to be compared with."""
        blocks = self.best.stack
        errors = self._measure_movements(blocks)
        record = rounds.record(0, rounds.START, blocks, errors, self.samples.val_nll(), None, self._elapsed())
        self._record(record)
        self.rounds.append(record)
        self.samples = self._enter()

    def _measure_movements(self, blocks: list[Block]) -> list[float]:
        """Carries the samples through blocks, leaves the movement in each and returns the standard errors."""
        moved = [self.samples.push(block) for block in blocks]
        for block, movement in zip(blocks, moved, strict=True):
            block.movement = movement.value
        return [movement.stderr for movement in moved]

    # ---- Blocks

    def _next_jko_step(self) -> float | None:
        """JKO step size of the next block, inf for the free one; None at the end of the round."""
        config, done = self.config, len(self.summaries)
        if self._kind != rounds.BUILD:
            return self._warm[done].jko_step if done < len(self._warm) else None
        if done and self.summaries[-1]["step_size"] is None:
            return None
        converged = schedule.has_converged(
            [summary["movement"] for summary in self.summaries],
            [self.first_nll, *(summary["val_nll"] for summary in self.summaries)],
            config.movement_tolerance,
            config.gain_tolerance,
        )
        if done == self._most_blocks or (converged and not config.free_block):
            return None
        if config.free_block and (converged or done == self._most_blocks - 1):
            return math.inf
        return schedule.jko_step(done, config.jko_step, config.jko_step_growth, config.jko_step_max)

    def _train_block(self, jko_step: float) -> None:
        index = len(self.summaries)
        fit = self._resumed_fit(index) or self._new_fit(index, jko_step)
        fit.run()
        block, counters = fit.block, fit.counters
        assert isinstance(block, Block)
        rows = len(self.samples.train)
        if counters.kept_rows < rows:
            self.progress.message(
                f"the time budget lets {counters.kept_rows} of {rows} training rows go on behind block {index}; "
                "raise time_budget to keep more"
            )
        movement = self._push(block, counters.kept_rows)
        block.movement = movement.value
        self.flow.blocks.append(block)
        self.summaries.append(self._end_fit(fit, movement))
        self._save(None)

    def _train_together(self) -> list[float]:
        """Fine-tunes the chain; returns the standard errors of its movements."""
        state, self._fit = self._fit, None
        samples = self.samples
        chain = Chain(self._warm) if state is None else Chain.from_description(state.block)
        chain.to(samples.train.device)
        counters = FitCounters() if state is None else state.counters
        fit = ChainFit(0, chain, samples, self.config, self._hooks(0), counters, self._number)
        self._recall(fit, state)
        fit.run()
        self._keep(counters.kept_rows)
        before = samples.train
        errors = self._measure_movements(chain.blocks)
        movement = movement_with_error(before, samples.train)
        self.flow.blocks.extend(chain.blocks)
        self._end_fit(fit, movement)
        return errors

    def _end_fit(self, fit: BlockFit, movement: Movement) -> dict[str, Any]:
        """Records and tells what a block, or a chain under the number of its first, has achieved."""
        counters, jko_step = fit.counters, fit.block.jko_step
        summary = {
            "event": "block",
            "round": self._number,
            "block": fit.index,
            "step_size": None if math.isinf(jko_step) else jko_step,
            "num_steps": fit.block.grid.num_steps,
            "iterations": counters.iteration,
            "movement": movement.value,
            "movement_stderr": movement.stderr,
            "train_rows": counters.kept_rows,
            "val_nll": self.samples.val_nll(),
            "seconds": self._elapsed() - counters.started,
        }
        self._record(summary)
        self.progress.end_block(fit.index, summary)
        return summary

    def _push(self, block: Block, rows: int) -> Movement:
        """Carries the samples on to the next block, ``rows`` of them."""
        self._keep(rows)
        return self.samples.push(block)

    def _keep(self, rows: int) -> None:
        self.samples.keep(rows, self.config.seed, len(self.samples.train))

    def _new_fit(self, index: int, jko_step: float) -> BlockFit:
        block = self._warm[index] if self._warm else self._new_block(index, jko_step)
        block = block.to(self.samples.train.device)
        return BlockFit(index, block, self.samples, self.config, self._hooks(index), round_number=self._number)

    def _new_block(self, index: int, jko_step: float) -> Block:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(config.seed, index).initial_seed())
            velocity = MLPVelocity(
                self.data.dim, config.hidden, config.activation, config.time, self.data.context_dim, config.linear
            )
        block = Block(velocity, config.num_steps, config.method, jko_step=jko_step)
        if index == 0:
            block.velocity.scale_output(
                0.0
            )  # starts as the identity: an arbitrary velocity would first have to be unlearned
        else:
            velocity.load_state_dict(self.flow.stack[index - 1].velocity.state_dict())
        return block

    def _resumed_fit(self, index: int) -> BlockFit | None:
        state, self._fit = self._fit, None
        if state is None:
            return None
        device = self.samples.train.device
        block = Block.from_description(state.block).to(device)
        hooks = self._hooks(index)
        fit = BlockFit(index, block, self.samples, self.config, hooks, state.counters, self._number)
        self._recall(fit, state)
        return fit

    def _recall(self, fit: BlockFit, state: FitState | None) -> None:
        """Puts a resumed fit where it was."""
        if state is not None:
            device = self.samples.train.device
            fit.adam.restore(state.now)
            fit.good, fit.best = state.good.to(device), state.best.to(device)

    # ---- Time

    def _hooks(self, index: int) -> FitHooks:
        def save(fit: BlockFit) -> None:
            if time.monotonic() - self._saved >= self.config.save_seconds:
                self._save(fit)

        def share(measured: FitCounters, num_steps: int) -> float:
            return self._share(index, measured, num_steps)

        budgeted = self.config.time_budget is not None
        return FitHooks(self._elapsed, self._record, save, share if budgeted else None, self.progress)

    @property
    def _most_blocks(self) -> int:
        """Largest number of blocks of the chain that is built."""
        return self.config.most_blocks if self._planned_blocks is None else self._planned_blocks

    @property
    def _finetune(self) -> float:
        """Share of the training that goes to the fine-tuning round."""
        return self._planned_finetune if self.config.finetune is None else self.config.finetune

    def _share(self, index: int, measured: FitCounters, num_steps: int) -> float:
        """Seconds for a block: every round gets as much time as any other, every block of a round too."""
        config, data = self.config, self.data
        assert config.time_budget is not None
        later_rounds = rounds.rounds_after(self._kind, self.rounds, config)
        if self._planned_blocks is None:
            within = (config.time_budget - measured.started) / (1 + later_rounds) / measured.iteration_seconds
            self._planned_finetune = schedule.finetune_share(within)
            self._planned_blocks = config.max_blocks or schedule.blocks_within(within, config.most_blocks)
        blocks = 1 if self._kind == rounds.FINETUNE else len(self._warm) or self._most_blocks  # a chain is one
        most = max([num_steps, first_num_steps(self.flow), *(block.num_steps for block in self._warm)])
        # the children of a refinement to come share their parents' Runge-Kutta steps
        children = 1 if self._kind in (rounds.REFINE, rounds.FINETUNE) else config.refine

        def evaluation(test_rows: int) -> float:
            return self._evaluation_seconds(measured.row_step, blocks * children, -(-most // children), test_rows)

        share = EVALUATION_SHARE * config.time_budget
        # a fiftieth: plans are kept to within that much
        reserve = min(evaluation(len(data.test)), max(evaluation(LEAST_TEST_ROWS), share)) + 0.02 * config.time_budget
        if blocks * children > 1:
            reserve += self._finetune * max(config.time_budget - reserve, 0.0)
        last = not self._warm and math.isinf(self._next_jko_step() or 1.0)
        left = (1 if last else blocks - index) + blocks * later_rounds
        return schedule.seconds_for_block(config.time_budget, measured.started, reserve, left)

    def _evaluation_seconds(self, row_step: float, blocks: int, num_steps: int, test_rows: int) -> float:
        """What the evaluation will take on so many of the test rows, at most all of them."""
        available = len(self.data.test)
        return schedule.evaluation_seconds(
            row_step,
            blocks,
            num_steps,
            self.samples.val.shape[0],
            *(min(rows, available) for rows in (test_rows, INVERSION_ROWS, EXACT_ROWS, TWO_SAMPLE_ROWS)),
        )

    def _test_rows(self, flow: JKOFlow) -> int:
        """How many test rows there is time to score: all of them without a time budget."""
        budget, available = self.config.time_budget, len(self.data.test)
        if budget is None:
            return available
        steps = first_num_steps(flow)
        device = flow.standardize.mean.device
        rows, context = spread(self.data.val, self.data.val_context, self.config.guard_rows, device)
        began = time.monotonic()
        mean_nll(flow, rows, steps, context)
        row_step = (time.monotonic() - began) / (len(rows) * steps * max(len(flow.stack), 1))
        without, with_one = (self._evaluation_seconds(row_step, len(flow.stack), steps, count) for count in (0, 1))
        left = budget - self._elapsed() - without
        affordable = int(min(left / max(with_one - without, 1e-12), available))
        if affordable >= available or available <= LEAST_TEST_ROWS:
            return available
        count = max(affordable, LEAST_TEST_ROWS)
        self.progress.message(
            f"the time budget lets {count} of {available} test rows be scored; raise time_budget to score more"
        )
        return count

    def _elapsed(self) -> float:
        return self._past_seconds + time.monotonic() - self._started

    # ---- What is kept

    def _record(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "guard":
            self.guard_events += 1
        if self.run_directory is not None:
            self.run_directory.record({"event": event["event"], "round": self._number, **event})

    def _save(self, fit: BlockFit | None) -> None:
        self._saved = time.monotonic()
        if self.run_directory is None:
            return
        state = RunState(
            settings=self.config.to_mapping(),
            fingerprint=self._fingerprint,
            elapsed=self._elapsed(),
            history_bytes=self.run_directory.flush(),
            guard_events=self.guard_events,
            first_nll=self.first_nll,
            planned_blocks=self._planned_blocks,
            planned_finetune=self._planned_finetune,
            rounds=self.rounds,
            accepted=self.best.stack,
            round_started=self._round_started,
            summaries=self.summaries,
            blocks=self.flow.stack,
            fit=None
            if fit is None
            else FitState(fit.block.describe(), fit.counters, fit.adam.state(), fit.good, fit.best),
        )
        self.run_directory.save_state(state)

    def _restore(self, state: RunState, device: torch.device) -> None:
        self._past_seconds, self._round_started = state.elapsed, state.round_started
        self.rounds, self.summaries = state.rounds, state.summaries
        self.guard_events, self.first_nll = state.guard_events, state.first_nll
        self._planned_blocks, self._planned_finetune = state.planned_blocks, state.planned_finetune
        self._fit = state.fit
        self.best = self.best.with_blocks([block.to(device) for block in state.accepted])
        for block, summary in zip(state.blocks, self.summaries, strict=True):
            self.flow.blocks.append(block.to(device))
            self._push(block, summary["train_rows"])  # the same operations as before, so the same bits


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column (N, d), computed in float64, with shapes (d,)."""
    exact = rows.double()
    return exact.mean(0).float(), exact.std(0, correction=0).float()
