"""The command reproduce, which compares an experiment with the published figures."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jkoflow import experiments
from jkoflow.cli import completion, json_lines, settings, training_run
from jkoflow.cli.settings import ConfigError
from jkoflow.data import DataError, TableData, load_dataset, place
from jkoflow.data.idx import PictureSet, read_pictures
from jkoflow.experiments import Experiment
from jkoflow.flow import JKOFlow
from jkoflow.images import LATENTS_FILE, prepare_latents, show_samples
from jkoflow.training.config import TrainConfig

AUTOENCODER_SHARE = 1 / 3
"""Share of a time budget for the autoencoder of an experiment with pictures."""


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            help="The experiment; see --list.", show_default=False, autocompletion=completion.names_of_experiments
        ),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the experiments and exit.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run; made if it is not there.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Directory of the experiment's files; see docs/experiments.md.", show_default=False),
    ] = None,
    time_budget: Annotated[
        float | None,
        typer.Option(help="Seconds for all training, instead of a number of iterations.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the data and of the training.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of settings; they win over the experiment's, flags over both.",
            show_default=False,
            autocompletion=completion.settings,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    tensorboard: training_run.Curves = None,
    as_json: json_lines.Json = False,
) -> None:
    """Train one of the paper's experiments. Its NLL is compared with the published figures.

    RUN then holds what train leaves, with the comparison in metrics.json and in the report.
    """
    if show_list:
        summaries = {known: experiments.load(known).summary for known in experiments.names()}
        for known, summary in summaries.items():
            print(f"{known:<14} {summary}")
        json_lines.result("reproduce", experiments=summaries)
        return
    if name is None:
        raise ConfigError("name the experiment: jkoflow reproduce NAME --out RUN; jkoflow reproduce --list shows them")
    experiment = experiments.load(name)
    started = time.monotonic()
    training_run.require_for_run()
    if out is None:
        raise ConfigError(f"name the run's directory: jkoflow reproduce {name} --out RUN")
    flags = {"time_budget": time_budget, "seed": seed}
    given = settings.given(config, {key: value for key, value in flags.items() if value is not None})
    if given.source is not None or given.table:
        raise ConfigError(
            f"{config} must not name data, nor say anything about their columns: those are the experiment's"
        )
    where = experiment.source(data)
    pictures = None if experiment.autoencoder is None else read_pictures(where)
    if resume:
        run, source, resolved = settings.for_resume(None, out, given)
        _check_source(experiment, run, source.data)
        where = source.data if pictures is not None or data is None else where
    else:
        both = dataclasses.replace(given, values={**experiment.settings, **given.values})
        run, _, resolved = settings.for_start(where, out, both)
        if pictures is not None:
            where, resolved = _latents(experiment, pictures, run, resolved, started)
    dataset = load_dataset(where, resolved.seed)
    if isinstance(dataset, TableData):
        raise DataError(f"{where} must hold plain numbers; its columns are {', '.join(p.kind for p in dataset.plans)}")

    def more(flow: JKOFlow, measured: Mapping[str, Any]) -> Mapping[str, Any]:
        found = experiments.comparison(experiment, measured)
        return found if pictures is None else found | show_samples(pictures, flow, run, resolved.seed)

    words = ["jkoflow", "reproduce", name, "--out", str(run), *(["--data", str(data)] if data else []), "--resume"]
    again = shlex.join(words)
    found = training_run.train_and_report(
        dataset, place(where), resolved, run, resume=resume, again=again, more=more, curves=tensorboard
    )
    json_lines.result("reproduce", **found)


def _latents(
    experiment: Experiment, pictures: PictureSet, run: Path, config: TrainConfig, started: float
) -> tuple[str, TrainConfig]:
    """Trains the autoencoder; returns the path of the vectors' file, and the settings with the time that is left."""
    assert experiment.autoencoder is not None
    if len(pictures.train) < config.batch_size:
        raise DataError(
            f"{experiment.name} has {len(pictures.train)} training pictures, fewer than a batch of "
            f"{config.batch_size}; set a smaller batch_size in a --config file"
        )
    seconds = None if config.time_budget is None else AUTOENCODER_SHARE * config.time_budget
    path = prepare_latents(
        pictures, experiment.autoencoder, run, seed=config.seed, seconds=seconds, device=config.device, report=_say
    )
    if config.time_budget is not None:
        left = config.time_budget - (time.monotonic() - started)
        config = dataclasses.replace(config, time_budget=max(left, 0.1 * config.time_budget))
    return str(path), config


def _check_source(experiment: Experiment, run: Path, source: str) -> None:
    """Refuses to resume a run that is not one of the experiment."""
    if experiment.autoencoder is not None:
        fits = Path(source).name == LATENTS_FILE
    elif experiment.needs_files:
        wanted = experiment.data.partition("{directory}")
        fits = source.startswith(wanted[0]) and source.endswith(wanted[2])
    else:
        fits = source == experiment.data
    if not fits:
        raise ConfigError(f"{run} is not a run of {experiment.name}: its data are {source}; choose another --out")


def _say(text: str) -> None:
    print(text, flush=True)
    json_lines.tell("note", text=text)
