"""The finished models that the commands score and sample from, with what their runs know about the data."""

from __future__ import annotations

import shlex
from pathlib import Path

from jkoflow.checkpoint import CheckpointError
from jkoflow.data import TableOptions, default_features
from jkoflow.flow import MODEL_FILE
from jkoflow.surprise import seen_of
from jkoflow.table_flow import Model, TableFlow, load
from jkoflow.training.config import TrainConfig
from jkoflow.training.run_directory import PREVIEW_FILE, RunDirectory


def load_model(run: Path) -> Model:
    """Reads the model of a finished run, or of a model file.

    Raises:
        CheckpointError: If the run has not ended, or the file is missing or damaged.
    """
    _check_finished(run)
    return RunDirectory(run).model() if run.is_dir() else load(run)


def _check_finished(run: Path) -> None:
    """Refuses a directory without a model."""
    if run.is_dir() and not (run / MODEL_FILE).exists():
        if RunDirectory(run).holds_run():
            again = shlex.quote(str(run))
            raise CheckpointError(f"{run} is not finished; finish it with: jkoflow train --resume {again}")
        raise CheckpointError(f"{run} holds no run; train one with: jkoflow train DATA --out {shlex.quote(str(run))}")


def names_of(run: Path, model: Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of a model's columns and of its context columns; x0, ... if nothing knows them.

    Raises:
        CheckpointError: If the run's files contradict each other.
    """
    if isinstance(model, TableFlow):
        return model.features, model.context_features
    if not (run / PREVIEW_FILE).is_file():
        names = tuple(seen_of(model)) or default_features(model.dim + model.context_dim)
        return names[: model.dim], names[model.dim :]
    preview = RunDirectory(run).preview()
    features, context = preview.features, preview.context_features
    if (len(features), len(context)) != (model.dim, model.context_dim):
        raise CheckpointError(
            f"{run / PREVIEW_FILE} names {len(features)} columns and {len(context)} of the context, the flow beside it "
            f"has {model.dim} and {model.context_dim}: the files are of different runs; restore them, or train again"
        )
    return features, context


def seed_and_options(run: Path) -> tuple[int, TableOptions]:
    """Returns the seed that split a run's data and what was said about them; the defaults for a model file.

    Raises:
        CheckpointError: If the run has not ended, or its settings cannot be read.
    """
    _check_finished(run)
    if not run.is_dir():
        return TrainConfig().seed, TableOptions()
    settings = RunDirectory(run).settings()
    return settings.config.seed, settings.options
