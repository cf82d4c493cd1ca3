"""Training of a flow, block by block, with a run directory that can be looked at and resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from jkoflow.data import Dataset, require_batch, split_rows
from jkoflow.environment import describe, usable_device
from jkoflow.flow import JKOFlow
from jkoflow.training.config import TrainConfig
from jkoflow.training.progress import Progress, Silent
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.start import given_flow
from jkoflow.training.state import RunError, TrainingError, check_same_data, check_same_settings
from jkoflow.training.trainer import Trainer
from jkoflow.training.world import Clock, World

__all__ = ["Progress", "RunError", "TrainConfig", "TrainingError", "train", "usable_device"]


def train(
    data: Dataset | Tensor | NDArray[Any],
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    *,
    run_dir: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    source: str | None = None,
    start: JKOFlow | None = None,
    context: Tensor | NDArray[Any] | None = None,
    group: Tensor | NDArray[Any] | None = None,
    split_by: Tensor | NDArray[Any] | None = None,
    clock: Clock | None = None,
) -> JKOFlow:
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

    Arguments:
        data: A `Dataset`, or rows with shape (N, d) to be split 80/10/10 with the configuration's seed; equal rows go
            to the same part.
        config: Settings.
        run_dir: Where to leave the model, its metrics, the history and, until the end, the state to resume from;
            nothing is written if None.
        resume: Whether to go on with the run in ``run_dir``. On the same machine with as many threads it ends with the
            same numbers as a run that was never interrupted (without a time budget). A finished run is only loaded.
            Data and settings must be those that the run began with.
        progress: Receives the run's news; None means that nothing is reported.
        source: Name of the data for config.toml; the dataset's name if None.
        start: A flow whose blocks are trained again, each for its own JKO step size, instead of building a new chain.
            `JKOFlow.reparametrize` and `JKOFlow.refine` return such a flow. Networks and Runge-Kutta steps are the
            flow's, not the configuration's. It is not changed.
        context: Conditioning variables of the rows, with shape (N, c), finite, in their own units: the flow then learns
            the density of a row given its context. A `Dataset` brings its own, see `Dataset.condition_on`.
        group: What each row belongs to, such as a person or a place, with shape (N,): all rows of a group go to the
            same part of the split. Rows only; a `Dataset` is split already.
        split_by: Numbers or dates to split by, such as a time, with shape (N,): the smallest 80 % are for training, the
            largest 10 % for the test. Rows only, and not with ``group``.
        clock: A function that returns the seconds by which ``config.time_budget`` is measured, such as
            ``time.process_time``; elapsed real time if None.

    Returns:
        The trained flow, on ``config.device``, with ``eval_num_steps`` calibrated.

    Raises:
        jkoflow.data.DataError: If the data cannot be used: NaN or inf, a constant column, fewer rows than a batch.
        jkoflow.training.state.RunError: If run_dir holds another run already, or one that does not fit data and config.
        jkoflow.checkpoint.CheckpointError: If the saved state is damaged.
        jkoflow.training.state.TrainingError: If the parameters overflow with the guard switched off.
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
    world = World(clock)
    if not isinstance(data, Dataset):
        data = split_rows(data, seed=config.seed, context=context, group=group, split_by=split_by)
    elif context is not None:
        raise ValueError("context must be None with a Dataset, which brings its own; see Dataset.condition_on")
    elif group is not None or split_by is not None:
        raise ValueError("group and split_by must be None with a Dataset, which is split already; see data.split_rows")
    require_batch(data, config.batch_size)
    if start is not None:
        start = given_flow(start, data)
    progress = Silent() if progress is None else progress
    device = usable_device(config.device)
    if run_dir is None:
        if resume:
            raise ValueError("resume needs the run_dir of the run to go on with, got None")
        return Trainer(data, config, device, world, None, progress, start).run()
    run = RunDirectory(run_dir)
    state = None
    if resume:
        if not run.holds_run():
            raise RunError(f"{run.path} holds no run to resume; start one without resume")
        state = run.load_state()
        if state is not None:
            check_same_data(state.fingerprint, data, start, run.path)
            check_same_settings(state.settings, config, run.path)
        elif run.is_finished():
            return _finished_flow(run, config, data, start, progress).to(device)
        else:
            progress.message(f"the run in {run.path} had not saved anything yet; starting from the beginning")
        run.reopen(0 if state is None else state.history_bytes, describe())
    else:
        run.create(config, data.name if source is None else source, describe(), data.context_features)
    try:
        return Trainer(data, config, device, world, run, progress, start, state).run()
    finally:
        run.close()


def _finished_flow(
    run: RunDirectory, config: TrainConfig, data: Dataset, start: JKOFlow | None, progress: Progress
) -> JKOFlow:
    """Returns the flow of a finished run, if the run began with these data and settings."""
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
    return run.flow()
