"""Training a flow block by block, with a run directory to look at and to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow import schedule
from jkoflow.block import Block
from jkoflow.data import Dataset, require_batch, split_rows
from jkoflow.environment import describe
from jkoflow.flow import JKOFlow
from jkoflow.metrics import first_num_steps, spread_rows
from jkoflow.training.config import TrainConfig
from jkoflow.training.evaluation import INVERSION_ROWS, evaluate
from jkoflow.training.fit import BlockFit, FitHooks, TrainingError, scale_output
from jkoflow.training.progress import Progress, Silent
from jkoflow.training.pushed import PushedSamples, generator
from jkoflow.training.run import MODEL_FILE, FitState, RunDirectory, RunError, RunState, fingerprint
from jkoflow.velocity import MLPVelocity

__all__ = ["Progress", "RunError", "TrainConfig", "TrainingError", "train"]


def train(
    data: Dataset | Tensor | NDArray[Any],
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    source: str | None = None,
) -> JKOFlow:
    """Trains a flow on data, one JKO step after the other.

    The columns are standardised, then blocks are added: each is trained on its own, on the samples that the blocks
    before it have pushed towards the noise, from the last one's parameters, for the JKO objective of its step size.
    The chain ends when a block moves or gains too little, or at ``config.max_blocks``; the last block is free of the
    movement penalty. At the end the number of Runge-Kutta steps for evaluation is calibrated on the validation rows.

    Arguments:
        data: A `Dataset`, or rows with shape (N, d) to be split 80/10/10 with the configuration's seed.
        config: Settings.
        run_dir: Where to leave the model, its metrics, the history and, until the end, the state to resume from;
            nothing is written if None.
        resume: Whether to go on with the run in ``run_dir``. On the same machine with as many threads it ends with the
            same numbers as a run that was never interrupted (without a time budget). A finished run is only loaded.
        progress: Is told what happens.
        source: What config.toml names as the data; the dataset's name if None.

    Returns:
        The trained flow, on ``config.device``, with ``eval_num_steps`` calibrated.

    Raises:
        jkoflow.data.DataError: If the data cannot be used: NaN or inf, a constant column, fewer rows than a batch.
        jkoflow.training.run.RunError: If run_dir holds another run already, or one that does not fit data and config.
        jkoflow.checkpoint.CheckpointError: If the saved state is damaged.
        jkoflow.training.fit.TrainingError: If the parameters overflow with the guard switched off.
        ValueError: If the device does not exist, or resume is asked for without a run_dir.
        jkoflow.data.MissingExtraError: If run_dir is given and tomli-w is missing.
        OSError: If run_dir cannot be written.

    References:
        | Normalizing flow neural networks by JKO scheme (Xu et al., 2022)
        | https://arxiv.org/abs/2212.14424

    Example:
        >>> config = TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=5, batch_size=100)
        >>> flow = train(torch.randn(500, 2), config)
        >>> flow.sample(3).shape
        torch.Size([3, 2])
    """
    started = time.monotonic()
    data = data if isinstance(data, Dataset) else split_rows(data, seed=config.seed)
    require_batch(data, config.batch_size)
    progress = Silent() if progress is None else progress
    device = _device(config.device)
    if run_dir is None:
        if resume:
            raise ValueError("resume needs the run_dir of the run to go on with, got None")
        return _Trainer(data, config, device, None, progress, started).run()
    run = RunDirectory(run_dir)
    state = None
    if resume:
        if not run.holds_run():
            raise RunError(f"{run.path} holds no run to resume; start one without resume")
        state = run.load_state()
        if state is not None:
            state.check_matches(config, data, run.path)
        elif run.is_finished():
            progress.message(f"the run in {run.path} has already ended; nothing to resume")
            return JKOFlow.load(run.path / MODEL_FILE).to(device)
        else:
            progress.message(f"the run in {run.path} had not saved anything yet; starting from the beginning")
        run.reopen(0 if state is None else state.history_bytes, describe())
    else:
        run.create(config, data.name if source is None else source, describe())
    try:
        return _Trainer(data, config, device, run, progress, started, state).run()
    finally:
        run.close()


class _Trainer:
    """The chain of blocks: which comes next, and everything around their training."""

    def __init__(
        self,
        data: Dataset,
        config: TrainConfig,
        device: torch.device,
        run: RunDirectory | None,
        progress: Progress,
        started: float,
        state: RunState | None = None,
    ) -> None:
        self.data, self.config, self.run_directory, self.progress = data, config, run, progress
        self._started, self._saved = started, started
        self._fingerprint = fingerprint(data) if run is not None else ""
        rows = data.train.double()
        mean, std = rows.mean(0).float(), rows.std(0, correction=0).float()
        self.flow = JKOFlow(data.dim, mean=mean, std=std).to(device)
        with torch.no_grad():
            train, _ = self.flow.standardize(data.train.to(device))
            val, _ = self.flow.standardize(spread_rows(data.val, config.val_rows).to(device))
        self.samples = PushedSamples(train, val, val.new_zeros(val.shape[0]))
        self.summaries: list[dict[str, Any]] = []
        self.guard_events = 0
        self.first_nll = self.samples.val_nll()
        self._past_seconds = 0.0
        self._fit: FitState | None = None
        if state is not None:
            self._restore(state, device)

    def run(self) -> JKOFlow:
        while (step_size := self._next_step_size()) is not None:
            self._train_block(step_size)
        seconds = self._elapsed()
        self.flow.requires_grad_(False).eval()
        results = evaluate(self.flow, self.data, self.config.val_rows)
        if not results["test_nll_converged"]:
            self.progress.message(
                f"the NLL still moves at {results['eval_num_steps']} Runge-Kutta steps per block: do not trust it; "
                "train with guard = true, more num_steps or a smaller learning_rate"
            )
        results |= {
            "movements": [summary["movement"] for summary in self.summaries],
            "guard_events": self.guard_events,
            "train_seconds": seconds,
            "seed": self.config.seed,
        }
        if self.run_directory is not None:
            self.run_directory.finish(self.flow, results, self.data)
        return self.flow

    def _next_step_size(self) -> float | None:
        """JKO step size of the next block, inf for the free one; None at the end of the chain."""
        config, done = self.config, len(self.summaries)
        if done and self.summaries[-1]["step_size"] is None:
            return None
        converged = schedule.has_converged(
            [summary["movement"] for summary in self.summaries],
            [self.first_nll, *(summary["val_nll"] for summary in self.summaries)],
            config.movement_tolerance,
            config.gain_tolerance,
        )
        if done == config.max_blocks or (converged and not config.free_block):
            return None
        if config.free_block and (converged or done == config.max_blocks - 1):
            return math.inf
        return schedule.jko_step_size(done, config.step_size, config.step_size_growth, config.step_size_max)

    def _train_block(self, step_size: float) -> None:
        index = len(self.summaries)
        fit = self._resumed_fit(index) or self._new_fit(index, step_size)
        fit.run()
        block, counters = fit.block, fit.counters
        movement = self.samples.push(block)
        summary = {
            "event": "block",
            "block": index,
            "step_size": None if math.isinf(step_size) else step_size,
            "num_steps": block.num_steps,
            "iterations": counters.iteration,
            "movement": movement,
            "val_nll": self.samples.val_nll(),
            "seconds": self._elapsed() - counters.started,
        }
        self.flow.blocks.append(block)
        self.summaries.append(summary)
        self._record(summary)
        self.progress.end_block(index, summary)
        self._save(None)

    def _new_fit(self, index: int, step_size: float) -> BlockFit:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(config.seed, index).initial_seed())
            velocity = MLPVelocity(
                self.data.dim, config.hidden, config.activation, time=config.time, linear=config.linear
            )
        block = Block(velocity, config.num_steps, config.method, step_size=step_size).to(self.samples.train.device)
        if index == 0:
            scale_output(block, 0.0)  # starts as the identity: an arbitrary velocity would first have to be unlearned
        else:
            last = self.flow.blocks[index - 1]
            assert isinstance(last, Block)
            velocity.load_state_dict(last.velocity.state_dict())
        return BlockFit(index, block, self.samples, config, self._hooks(index))

    def _resumed_fit(self, index: int) -> BlockFit | None:
        state, self._fit = self._fit, None
        if state is None:
            return None
        block = Block.from_description(state.block).to(self.samples.train.device)
        fit = BlockFit(index, block, self.samples, self.config, self._hooks(index), state.counters)
        device = self.samples.train.device
        fit.adam.restore(state.now)
        fit.good, fit.best = state.good.to(device), state.best.to(device)
        return fit

    def _hooks(self, index: int) -> FitHooks:
        def save(fit: BlockFit) -> None:
            if time.monotonic() - self._saved >= self.config.save_seconds:
                self._save(fit)

        def share(started: float, row_step: float, num_steps: int) -> float:
            config, data = self.config, self.data
            assert config.time_budget is not None
            evaluation = schedule.evaluation_seconds(
                row_step,
                config.max_blocks,
                config.num_steps,
                max(num_steps, first_num_steps(self.flow)),
                self.samples.val.shape[0],
                data.test.shape[0],
                min(INVERSION_ROWS, data.test.shape[0]),
            )
            left = 1 if math.isinf(self._next_step_size() or 1.0) else config.max_blocks - index
            # a fiftieth: plans are kept to within that much
            reserve = evaluation + 0.02 * config.time_budget
            return schedule.seconds_for_block(config.time_budget, started, reserve, left)

        budgeted = self.config.time_budget is not None
        return FitHooks(self._elapsed, self._record, save, share if budgeted else None, self.progress)

    def _elapsed(self) -> float:
        return self._past_seconds + time.monotonic() - self._started

    def _record(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "guard":
            self.guard_events += 1
        if self.run_directory is not None:
            self.run_directory.record(event)

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
            summaries=self.summaries,
            blocks=[block for block in self.flow.blocks if isinstance(block, Block)],
            fit=None
            if fit is None
            else FitState(fit.block.describe(), fit.counters, fit.adam.state(), fit.good, fit.best),
        )
        self.run_directory.save_state(state)

    def _restore(self, state: RunState, device: torch.device) -> None:
        self._past_seconds = state.elapsed
        self.summaries, self.guard_events, self.first_nll = state.summaries, state.guard_events, state.first_nll
        self._fit = state.fit
        for block in state.blocks:
            self.flow.blocks.append(block.to(device))
            self.samples.push(block)  # the same operations as before, so the same bits


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one that PyTorch can use here, got {name!r}: {reason}") from error
    return device
