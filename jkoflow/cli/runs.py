"""One training run from its data to its printed results, as the commands train and reproduce have it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from jkoflow.cli import console
from jkoflow.cli.settings import ConfigError
from jkoflow.data import Dataset, require
from jkoflow.environment import describe
from jkoflow.flow import JKOFlow
from jkoflow.report import write_report
from jkoflow.training import train as train_flow
from jkoflow.training.config import TrainConfig
from jkoflow.training.run_directory import METRICS_FILE, RunDirectory


def require_for_run() -> None:
    """Makes sure, before a run begins, of what it cannot end without.

    Raises:
        MissingExtraError: If a package for the report or for the run's settings is missing.
        ConfigError: If the environment asks for kernels that are not there.
    """
    require("matplotlib", "the report")
    require("tomli_w", "a run directory")
    kernels = describe()["kernels"]["cpu"]
    if kernels is not None and "JKOFLOW_ISA" in kernels:
        raise ConfigError(kernels)


def run_training(
    dataset: Dataset,
    source: str,
    config: TrainConfig,
    run: Path,
    *,
    resume: bool,
    again: str,
    more: Callable[[JKOFlow], Mapping[str, Any]] | None = None,
) -> None:
    """Trains, writes the report and prints the results.

    Arguments:
        dataset: The data.
        source: What the run notes as its data.
        config: Settings.
        run: The run's directory.
        resume: Whether to go on with the run there.
        again: The command that goes on with it after an interruption.
        more: Measures more of the finished flow; what it returns is added to the run's metrics.
    """
    print(
        f"{dataset.name}: {dataset.train.shape[0]} rows to train on, {dataset.val.shape[0]} to choose by, "
        f"{dataset.test.shape[0]} to report on, {dataset.dim} column{'s' if dataset.dim > 1 else ''}"
        + (f" given {', '.join(dataset.context_features)}" if dataset.context_features else "")
    )
    if dataset.attribution:
        print(dataset.attribution)
    directory = RunDirectory(run)
    try:
        with console.training_progress() as progress:
            flow = train_flow(dataset, config, run_dir=run, resume=resume, progress=progress, source=source)
        if more is not None:
            directory.add_metrics(more(flow))
        page = write_report(run)
    except KeyboardInterrupt:
        told = f"; continue with: {again}" if directory.holds_run() else " before the run began"
        console.error(f"interrupted{told}")
        raise typer.Exit(130) from None
    except ValueError as error:
        if str(error).startswith("device "):  # from the settings, but only the training can tell
            raise ConfigError(str(error)) from error
        raise
    console.show_metrics(json.loads((run / METRICS_FILE).read_text(encoding="utf-8")))
    print(f"report: {page}")
