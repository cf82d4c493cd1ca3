"""Training of a flow, block by block, with a run directory that can be looked at and resumed from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jkoflow.data import Dataset, TableData, TableOptions, warn_once
from jkoflow.data.memory import axes_of
from jkoflow.environment import describe, usable_device
from jkoflow.flow import JKOFlow
from jkoflow.mapped import directory_of
from jkoflow.ops.autocast import without_autocast
from jkoflow.table_flow import Model, TableFlow
from jkoflow.training.config import TrainConfig
from jkoflow.training.events import Callback, Events, Told, start_event
from jkoflow.training.memory import Labels, prepared
from jkoflow.training.plan import Budget
from jkoflow.training.progress import Progress, Silent
from jkoflow.training.ranks import Ranks, is_group
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.start import given_flow
from jkoflow.training.state import (
    ConvergenceWarning,
    RunError,
    RunState,
    TrainingError,
    check_same_data,
    check_same_settings,
)
from jkoflow.training.tables import completed, fit_masses, settings_for
from jkoflow.training.trainer import Trainer
from jkoflow.training.world import Clock, World

__all__ = ["ConvergenceWarning", "Progress", "RunError", "TrainConfig", "TrainingError", "train", "usable_device"]


@without_autocast
def train(
    data: Dataset | TableData | Any,
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    source: str | None = None,
    start: Model | None = None,
    context: Any = None,
    columns: Mapping[str, str] | None = None,
    missing: str = "refuse",
    group: Labels | None = None,
    split_by: Labels | None = None,
    options: TableOptions | None = None,
    clock: Clock | None = None,
    return_history: bool = False,
    callback: Callback | None = None,
) -> Any:
    """Trains a flow on data, one JKO step after the other.

    The columns are standardised, then blocks are added. Each block is trained on its own for the JKO objective of its
    JKO step size h. It is trained on the samples that the blocks before it have pushed towards the noise, and starts
    from the parameters of the block before it. The chain ends when a block moves or gains too little, or at
    ``config.max_blocks`` (None: as many as a time budget is enough for, at most 4). The last block is free of the
    movement penalty.

    Then come the rounds of reparametrisation and refinement that the configuration asks for. If it asks for
    fine-tuning, or if a time budget is long enough, a last round trains all blocks together on the likelihood. A round
    that does not improve the validation NLL is undone. At the end the number of Runge-Kutta steps for evaluation is
    calibrated on the validation rows.

    Where PyTorch's default process group has several processes, all of them make this call, with the same arguments,
    and train one flow together (docs/distributed.md): each on the rows that it holds, with the numbers of one process
    but for rounding.

    Arguments:
        data: Rows with shape (N, d), or (N,) for one column, to be split 80/10/10 with the configuration's seed, equal
            rows into the same part: an array, a tensor, nested lists, a Series or a data frame (of pandas, polars or
            what speaks Arrow), whose columns may be numbers, text, true or false, and dates. The last of several axes
            (..., d) are the columns, the others are rows. Or data that are prepared: a `Dataset`, whose columns are
            taken as real numbers, or what `jkoflow.data.load_dataset` makes of a file.
        config: Settings.
        run_dir: Where to leave the model, its metrics, the history and, until the end, the state to resume from;
            nothing is written if None.
        resume: Whether to go on with the run in ``run_dir``. On the same machine with as many threads it ends with the
            same numbers as a run that was never interrupted (without a time budget). A finished run is only loaded.
            Data and settings must be those that the run began with; the number of processes may be another.
        progress: Receives the run's news, of several processes that of the first; None means that nothing is reported.
        source: Name of the data for config.toml; the dataset's name if None.
        start: A flow whose blocks are trained again, each for its own JKO step size, instead of building a new chain.
            `JKOFlow.reparametrize` and `JKOFlow.refine` return such a flow. Networks and Runge-Kutta steps are the
            flow's, not the configuration's. It is not changed.
        context: Conditioning variables of the rows, with shape (N, c), or (N,) for one, in their own units and of any
            kind: the flow then learns the density of a row given its context. A `Dataset` brings its own, see
            `Dataset.condition_on`.
        columns: Kinds of columns by name, such as ``{"age": "integer", "income": "log"}``, see
            `jkoflow.data.columns.override.KINDS`; those of the other columns are found, and told by a `DataWarning`.
        missing: What is done with missing values: ``"refuse"``, or ``"indicator"`` to make them a state of their own.
        group: What each row belongs to, such as a person or a place, with shape (N,), or the name of a column: all rows
            of a group go to the same part of the split.
        split_by: Numbers or dates to split by, such as a time, with shape (N,), or the name of a column: the smallest
            80 % are for training, the largest 10 % for the test. Not with ``group``.
        options: What config.toml is to say about the data, if they are prepared.
        clock: A function that returns the seconds by which ``config.time_budget`` is measured, such as
            ``time.process_time``; elapsed real time if None.
        return_history: Whether to return the history, too: a list of records, the oldest first, which are the lines of
            the run's history.jsonl, those from before a resume included. Each is a plain dict with an ``"event"``:
            ``"iteration"`` (loss and its terms), ``"validation"`` (loss and nll), ``"guard"``, ``"block"`` or
            ``"round"``; and with the ``"round"`` and, but for that of a round, the ``"block"`` and the ``"iteration"``
            that it is of, and the ``"global_step"``: the number of iterations before it, those of all blocks and rounds
            together. What is not finite is None.
        callback: A function that is called with each event of the run, a plain dict, in the first of several processes:
            the records of the history as they come about, and others before, between and after them (docs/logging.md).
            An error that it raises ends the training as soon as the state is saved, and is raised here; a resumed run
            goes on from there. `jkoflow.interop.tensorboard.TensorBoard` is one.

    Returns:
        The trained flow, on ``config.device``, with ``eval_num_steps`` calibrated and its ``metrics``, in evaluation
        mode and with parameters that need no gradient, as `JKOFlow.load` returns it. If ``flow.converged`` is False, a
        `ConvergenceWarning` tells what to do. Its samples come as the rows did: in a data frame of the same library if
        ``data`` was one, and else in a tensor. With ``return_history``, a pair of the flow and the history.

    Raises:
        jkoflow.data.DataError: If the data cannot be used: NaN or inf, a constant column, fewer rows than a batch.
        jkoflow.training.state.RunError: If run_dir holds another run already, or one that does not fit data and config.
        jkoflow.checkpoint.CheckpointError: If the saved state is damaged.
        jkoflow.training.state.TrainingError: If the parameters overflow with the guard switched off.
        jkoflow.training.ranks.LostProcessError: If another process of the training has ended.
        jkoflow.training.ranks.DriftError: If the processes have different rows, or do not compute the same from them.
        ValueError: If the device does not exist, resume is asked for without a run_dir, or start does not fit the data.
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
    world = Ranks(clock) if is_group() else World(clock)
    events = Events(callback if world.leads else None)
    progress = Told(Silent() if progress is None or not world.leads else progress, events)
    with (
        torch.inference_mode(False),  # whatever mode the caller is in
        torch.enable_grad(),
        nullcontext() if world.leads else _silence(),
        closing(world),
    ):
        world.check_memory(config.memory)
        if not isinstance(data, Dataset | TableData):
            if len(axes := axes_of(data)) > 2:
                rows = math.prod(axes[:-1])
                progress.message(f"rows of shape {axes} are taken for {rows} rows of {axes[-1]} columns")
            data, told = prepared(data, config.seed, context, columns, missing, group, split_by, config.memory, run_dir)
            options = told if options is None else options
        elif context is not None or columns or missing != "refuse" or group is not None or split_by is not None:
            raise ValueError(
                "context must be None with a Dataset, which brings its own, see Dataset.condition_on; columns, "
                "missing, group and split_by must be left out: it is prepared and split already"
            )
        history: list[dict[str, Any]] | None = [] if return_history and run_dir is None else None
        model = _train(data, config, world, run_dir, resume, progress, source, start, options, history, events)
        if return_history and run_dir is not None:
            history = world.first(RunDirectory(run_dir).history)
        world.meet()  # what the first process has written is there for all
        events.check()
        return (model, history) if return_history else model


@contextmanager
def _silence() -> Iterator[None]:
    """Has a process warn of nothing, since another warns of the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _train(
    data: Dataset | TableData,
    config: TrainConfig,
    world: World,
    run_dir: str | Path | None,
    resume: bool,
    progress: Progress,
    source: str | None,
    start: Model | None,
    options: TableOptions | None,
    history: list[dict[str, Any]] | None,
    events: Events,
) -> Model:
    rows = data if isinstance(data, Dataset) else data.numbers
    if (directory := directory_of(rows.train)) is not None:
        if torch.device(config.device).type != "cpu":
            raise ValueError(f"memory bounds training on the CPU, got device = {config.device!r}; leave memory out")
        progress.message(
            f"{len(rows.train) + len(rows.val) + len(rows.test):,} rows are more than memory = {config.memory} holds: "
            f"they lie in scratch files in {directory}, which go with the run"
        )
    config = config if isinstance(data, Dataset) else settings_for(data, config)
    warn_once(rows)
    begin = None if start is None else given_flow(start.flow if isinstance(start, TableFlow) else start, rows)
    device = world.device(config.device)
    name = rows.name if source is None else source
    make = partial(_train_rows, data, rows, name, config, world, device, progress, start, begin, history, events)
    if run_dir is None:
        if resume:
            raise ValueError("resume needs the run_dir of the run to go on with, got None")
        return make(None, None)
    run, about = RunDirectory(run_dir), _about(data, options)
    with ExitStack() as held:
        state, model = world.first(partial(_open, held, run, config, rows, begin, resume, name, about, progress))
        return make(run, state) if model is None else model.to(device)


def _open(
    held: ExitStack,
    run: RunDirectory,
    config: TrainConfig,
    rows: Dataset,
    begin: JKOFlow | None,
    resume: bool,
    name: str,
    about: Mapping[str, Any],
    progress: Progress,
) -> tuple[RunState | None, Model | None]:
    """Opens the files of a run until ``held`` ends; returns the state to go on from, or the model if it has ended."""
    if not resume:
        run.check_free("resume it", "choose another directory")
    elif not run.holds_run():
        raise RunError(f"{run.path} holds no run to resume; start one without resume")
    held.enter_context(run.locked(progress))
    state = None
    if resume:
        state = run.load_state()
        if state is not None:
            check_same_data(state.fingerprint, rows, begin, run.path)
            check_same_settings(state.settings, config, run.path)
        elif run.is_finished():
            return None, _finished_model(run, config, rows, begin, progress)
        else:
            progress.message(f"the run in {run.path} had not saved anything yet; starting from the beginning")
        run.reopen(state, config, name, describe(), about, progress)
    else:
        run.create(config, name, describe(), about)
    held.callback(run.close)
    return state, None


def _train_rows(
    data: Dataset | TableData,
    rows: Dataset,
    name: str,
    config: TrainConfig,
    world: World,
    device: torch.device,
    progress: Progress,
    start: Model | None,
    begin: JKOFlow | None,
    history: list[dict[str, Any]] | None,
    events: Events,
    run: RunDirectory | None,
    state: RunState | None,
) -> Model:
    """Trains from the beginning, or from a state, with the files of the run open."""
    events.tell(start_event(data, name, config, world, run, state))
    directory, keeps = run if world.leads else None, run is not None
    complete = None
    if isinstance(data, TableData):
        masses = start.masses if isinstance(start, TableFlow) else fit_masses(data, config, world, progress.message)
        budget = None if config.time_budget is None else Budget(world.elapsed, config.time_budget)
        complete = completed(data, masses, budget, progress.message)
    return Trainer(
        rows, config, device, world, directory, progress, begin, state, complete, history, keeps, events
    ).run()


def _about(data: Dataset | TableData, options: TableOptions | None) -> dict[str, Any]:
    """Returns what config.toml says about the data."""
    if options is not None:
        return options.to_mapping()
    if isinstance(data, Dataset) and data.context_features:
        return {"context_columns": list(data.context_features)}
    return {}


def _finished_model(
    run: RunDirectory, config: TrainConfig, data: Dataset, start: JKOFlow | None, progress: Progress
) -> Model:
    """Returns the model of a finished run, if the run began with these data and settings."""
    metrics = run.metrics()
    saved, ended = metrics.get("fingerprint"), f"the run in {run.path} has already ended; nothing to resume"
    if isinstance(saved, str):
        check_same_data(saved, data, start, run.path)
    elif metrics["dim"] != data.dim:
        raise RunError(
            f"the data have changed since the run in {run.path} began: they have {data.dim} columns, they had "
            f"{metrics['dim']}; resume with the same data"
        )
    else:
        ended += ". It is of version 0.1, which kept nothing to compare the data with"
    check_same_settings(run.settings().config.to_mapping(), config, run.path)
    progress.message(ended)
    return run.model()
