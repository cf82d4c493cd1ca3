"""A training run from its data to its printed results, for the commands train and reproduce."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from jkoflow.cli import console, json_lines
from jkoflow.cli.settings import ConfigError
from jkoflow.data import Dataset, TableData, TableOptions, require
from jkoflow.flow import JKOFlow
from jkoflow.interop.tensorboard import TensorBoard
from jkoflow.ops import extension
from jkoflow.report import write_report
from jkoflow.training import train as train_flow
from jkoflow.training.config import TrainConfig
from jkoflow.training.events import Callback
from jkoflow.training.ranks import LostProcessError
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.world import World

Curves = Annotated[
    Path | None,
    typer.Option("--tensorboard", help="Directory for curves of this training, for TensorBoard.", show_default=False),
]
"""The option for curves of a command that trains."""


def require_for_run() -> None:
    """Checks, before a run begins, that the packages and kernels it needs at its end are available.

    Raises:
        MissingExtraError: If the package for the report is missing.
        ConfigError: If the environment asks for kernels that are not available.
    """
    require("matplotlib", "the report")
    if extension.BAD_ISA is not None:
        raise ConfigError(extension.BAD_ISA)


def train_and_report(
    dataset: Dataset | TableData,
    source: str,
    config: TrainConfig,
    run: Path,
    *,
    resume: bool,
    again: str,
    options: TableOptions | None = None,
    more: Callable[[JKOFlow, Mapping[str, Any]], Mapping[str, Any]] | None = None,
    world: World = World(),  # noqa: B008 (of this process)
    curves: Path | None = None,
) -> dict[str, Any]:
    """Trains, writes the report and prints the results.

    Arguments:
        dataset: The data.
        source: Source of the data, as the run records it.
        config: Settings.
        run: The run's directory.
        resume: Whether to go on with the run in that directory.
        again: The command that resumes the run after an interruption.
        options: What the run records about the data beside their source.
        more: Function of the finished flow and its metrics that returns further metrics.
        world: The processes that train; the first of them writes the report and prints.
        curves: Directory for TensorBoard; None for no curves.

    Returns:
        What there is to tell of the result; nothing in other processes than the first.
    """
    rows = dataset.numbers if isinstance(dataset, TableData) else dataset
    columns = dataset.schema.features if isinstance(dataset, TableData) else rows.features
    given = dataset.schema.context_features if isinstance(dataset, TableData) else rows.context_features
    count = len(dataset.states["train"]) if isinstance(dataset, TableData) else len(rows.train)
    print(
        f"{rows.name}: {count} rows to train on, {len(rows.val)} to choose by, {len(rows.test)} to report on, "
        f"{len(columns)} column{'s' if len(columns) > 1 else ''}" + (f" given {', '.join(given)}" if given else "")
    )
    if isinstance(dataset, TableData):
        print("columns: " + ", ".join(f"{plan.name} {plan.kind}" for plan in dataset.plans))
    if rows.attribution:
        print(rows.attribution)
    directory = RunDirectory(run)
    try:
        with console.training_progress() as progress, _callback(curves if world.leads else None, resume) as callback:
            flow = train_flow(
                dataset,
                config,
                run_dir=run,
                resume=resume,
                progress=progress,
                source=source,
                options=options,
                callback=callback,
            )
        if not world.leads:
            return {}
        metrics = directory.metrics()
        if more is not None:
            metrics = directory.add_metrics(more(flow, metrics))
        page = write_report(run)
    except KeyboardInterrupt as error:
        told = f"; continue with: {again}" if directory.holds_run() else " before the run began"
        if world.leads:
            console.error((str(error) or "interrupted") + told)
        raise typer.Exit(128 + getattr(error, "number", signal.SIGINT)) from None
    except LostProcessError as error:
        console.error(f"process {world.rank}: {error.reason}; continue with: {again}")
        raise typer.Exit(2) from None
    console.show_metrics(metrics)
    print(f"report: {page}")
    return {"run": run, "report": page, "metrics": metrics}


@contextmanager
def _callback(curves: Path | None, resume: bool) -> Iterator[Callback]:
    """Yields the callback of a training, which tells programs of it and writes curves into a directory, if any."""
    if curves is None:
        yield json_lines.record
        return
    with TensorBoard(curves) as board:
        if not resume:
            board.check_free()

        def both(event: Mapping[str, Any]) -> None:
            json_lines.record(event)
            board(event)

        yield both
