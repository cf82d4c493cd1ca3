"""The commands train, score, sample, report and doctor; reproduce and bench have modules of their own."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from typer.core import TyperGroup

from jkoflow._version import __version__
from jkoflow.checkpoint import CheckpointError
from jkoflow.cli import console, settings, table_options, training_run
from jkoflow.cli.bench import bench
from jkoflow.cli.inspect import inspect
from jkoflow.cli.reproduce import reproduce
from jkoflow.cli.settings import ConfigError
from jkoflow.data import (
    DataError,
    DataWarning,
    TableData,
    check_output,
    default_features,
    load_dataset,
    load_rows,
    place,
    require,
    require_batch,
    write_table,
)
from jkoflow.environment import describe
from jkoflow.errors import UserError
from jkoflow.flow import MODEL_FILE, JKOFlow
from jkoflow.left_out import RowNames, warn_of_left_out
from jkoflow.metrics import CHUNK, bits_per_dim, chunks, mean_and_stderr, mean_log_scale
from jkoflow.ops import FallbackWarning
from jkoflow.report import write_report
from jkoflow.training import ConvergenceWarning
from jkoflow.training.config import TrainConfig
from jkoflow.training.evaluation import compared_samples, two_sample_distances
from jkoflow.training.run_directory import PREVIEW_FILE, RunDirectory
from jkoflow.two_sample import classifier_accuracy

# click's own, wherever this version of typer keeps it
_CLICK_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class OneLineErrors(TyperGroup):
    """The command group, which turns errors into one line on stderr, with exit code 2, or 130 after Ctrl-C."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Runs a command and exits, or returns the exit code if not ``standalone_mode``."""
        try:
            with _warnings_as_notes():
                code = super().main(*args, standalone_mode=False, **extra) or 0
        except _CLICK_ERROR as error:
            console.error(error.format_message())
            code = 2
        except UserError as error:
            console.error(str(error))
            code = 2
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            console.error(f"{place}{error.strerror or error}; choose a place that can be read and written")
            code = 2
        except (typer.Abort, KeyboardInterrupt):
            console.error("interrupted")
            code = 130
        if standalone_mode:
            sys.exit(code)
        return code


app = typer.Typer(
    cls=OneLineErrors,
    help="Exact densities and samples from neural-ODE flows trained block by block.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def group(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Exact densities and samples from neural-ODE flows trained block by block."""
    if version:
        print(f"jkoflow {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def train(
    data: Annotated[
        str | None,
        typer.Argument(
            help="A built-in name (rose, fractal_tree, checkerboard, rings, pinwheel, spirals, moons, gasturbine) or a "
            "file of a table (.csv, .tsv, .txt, also packed; .parquet, .feather, .npy, .npz, .mat, .fits); rose:100000 for another number of rows; power:DIRECTORY (gas, hepmass, "
            "miniboone, bsds300) for the MAF benchmark's files. With --resume and without --out: the run to resume.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run; made if it is not there.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; flags win over it.", show_default=False)
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Largest number of blocks.", show_default=False)] = None,
    time_budget: Annotated[
        float | None, typer.Option(help="Seconds for the whole training.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the data's split and of the training.", show_default=False)
    ] = None,
    context_columns: table_options.ContextColumns = None,
    columns: table_options.Columns = None,
    missing: table_options.Missing = None,
    group: table_options.Group = None,
    split_by: table_options.SplitBy = None,
    header: table_options.Header = None,
    sep: table_options.Separator = None,
    decimal: table_options.Decimal = None,
    index_column: table_options.IndexColumn = None,
    reparam_rounds: Annotated[
        int | None,
        typer.Option(min=0, help="Rounds that even out the blocks' movements and train again.", show_default=False),
    ] = None,
    refine: Annotated[
        int | None,
        typer.Option(min=1, help="Parts that every block is divided into at the end.", show_default=False),
    ] = None,
    finetune: Annotated[
        float | None,
        typer.Option(help="Share of the training for a last round of all blocks at once.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
) -> None:
    """Train a flow, measure it and write its report.

    RUN then holds the model, its metrics, the history and report.html.
    """
    training_run.require_for_run()
    flags = {
        "max_blocks": blocks,
        "time_budget": time_budget,
        "seed": seed,
        "reparam_rounds": reparam_rounds,
        "refine": refine,
        "finetune": finetune,
    }
    chosen = {name: value for name, value in flags.items() if value is not None}
    told = table_options.mapping(
        context_columns=context_columns,
        columns=columns,
        missing=missing,
        group=group,
        split_by=split_by,
        header=header,
        sep=sep,
        decimal=decimal,
        index_column=index_column,
    )
    given = settings.given(config, chosen, told)
    if resume:
        run, source, resolved = settings.for_resume(data, out, given)
    else:
        run, source, resolved = settings.for_start(data, out, given)
    dataset = load_dataset(source.data, resolved.seed, options=source.options)
    require_batch(dataset.numbers if isinstance(dataset, TableData) else dataset, resolved.batch_size)
    again = f"jkoflow train --resume {shlex.quote(str(run))}"
    training_run.train_and_report(
        dataset, place(source.data), resolved, run, resume=resume, again=again, options=source.options
    )


@app.command()
def score(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run, or its model file.", show_default=False)],
    data: Annotated[str, typer.Argument(help="Rows to score: as for train.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File to write: .npy, .csv or .parquet.", show_default=False)],
    split: Annotated[
        str | None,
        typer.Option(
            help="train, val, test or all. Default: the test part of data that come in parts, every row of others.",
            show_default=False,
        ),
    ] = None,
    two_sample: Annotated[
        bool,
        typer.Option(
            "--two-sample", help="Also compare the rows with samples: MMD, energy distance and a classifier's accuracy."
        ),
    ] = False,
) -> None:
    """Write the log-density of every row, in nats and in the data's own units.

    A conditional flow finds its context columns in the data, too. The means are over the rows with a finite density.
    """
    check_output(out, [data])
    if two_sample:
        require("sklearn", "--two-sample", "sklearn")
    flow = _load_flow(run)
    features, context_features = _features(run, flow)
    table = load_rows(data, split, _seed(run), (*features, *context_features)).to(flow.standardize.mean.dtype)
    rows, context = table[:, : flow.dim], table[:, flow.dim :] if flow.context_dim else None
    with torch.no_grad():
        log_prob = torch.cat([flow.log_prob(*part) for part in chunks(rows, context)])
    write_table(out, log_prob.numpy(), ["log_prob"])
    log_prob = log_prob.double()
    finite = torch.isfinite(log_prob)
    _show_scores(flow, log_prob[finite], len(log_prob), rows[finite])
    if two_sample:
        _compare(flow, rows[finite], None if context is None else context[finite])
    print(f"written: {out}")
    warn_of_left_out(flow, rows, finite, RowNames(f"rows of {out}"))


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run, or its model file.", show_default=False)],
    number: Annotated[
        int, typer.Option("-n", "--number", min=1, help="How many; of each row with --context.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="File to write: .npy, .csv or .parquet.", show_default=False)],
    context: Annotated[
        str | None,
        typer.Option(
            help="For a conditional flow: a file with its context columns, one row for each condition to sample under.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed; the same seed gives the same samples.")] = 0,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Invert the flow's map to rounding, instead of integrating backwards; slower."),
    ] = False,
) -> None:
    """Draw samples in the data's own units; those of a conditional flow are written beside their context."""
    check_output(out, [context] if context else [])
    flow = _load_flow(run)
    features, context_features = _features(run, flow)
    conditions = _conditions(run, flow, context, context_features)
    if conditions is not None:
        conditions = conditions.repeat_interleave(number, 0)
        number = len(conditions)
    generator = torch.Generator().manual_seed(seed)
    samples = []
    with torch.no_grad():
        for begin in range(0, number, CHUNK):
            size = min(CHUNK, number - begin)
            given = None if conditions is None else conditions[begin : begin + size]
            samples.append(flow.sample(size, given, generator=generator, exact=exact))
    table = torch.cat(samples)
    if conditions is not None:
        table = torch.cat([table, conditions], 1)
    write_table(out, table.numpy(), (*features, *context_features))
    columns = table.shape[1]
    print(f"written: {out} ({number} rows, {columns} column{'s' if columns > 1 else ''})")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.", show_default=False)],
) -> None:
    """Write the report of a run again."""
    require("matplotlib", "the report")
    print(f"report: {write_report(run)}")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, processor, threads and kernels, and why a kernel is missing."""
    environment = describe()
    if as_json:
        print(json.dumps(environment, indent=2))
    else:
        console.show_environment(environment)


app.command()(inspect)
app.command()(reproduce)
app.command()(bench)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Prints jkoflow's own warnings in one line, without their place in the source."""
    with warnings.catch_warnings():
        for kind in (DataWarning, FallbackWarning):
            warnings.simplefilter("always", kind)
        warnings.simplefilter("ignore", ConvergenceWarning)  # the progress of the training shows its text
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, DataWarning | FallbackWarning):
                console.note(str(message))
            else:
                shown(message, category, *rest, **named)

        warnings.showwarning = show
        yield


def _load_flow(run: Path) -> JKOFlow:
    if run.is_dir() and not (run / MODEL_FILE).exists():
        if RunDirectory(run).holds_run():
            again = shlex.quote(str(run))
            raise CheckpointError(f"{run} is not finished; finish it with: jkoflow train --resume {again}")
        raise CheckpointError(f"{run} holds no run; train one with: jkoflow train DATA --out {shlex.quote(str(run))}")
    return RunDirectory(run).flow() if run.is_dir() else JKOFlow.load(run)


def _show_scores(flow: JKOFlow, log_prob: Tensor, count: int, rows: Tensor) -> None:
    """Prints the means of finite log-densities (n,), of so many rows."""
    print(f"rows: {count}" + (f", {len(log_prob)} of them with a finite density" if len(log_prob) < count else ""))
    if len(log_prob) == 0:
        print("mean log-likelihood: not finite")
        return
    mean, stderr = mean_and_stderr(log_prob)
    error = f" ± {stderr:.4f}" if len(log_prob) > 1 else ""
    standardised = mean + mean_log_scale(flow, rows)
    print(f"mean log-likelihood: {mean:.4f}{error} nats (standard error)")
    print(f"on standardised columns: {standardised:.4f}{error} nats")
    print(f"negative log-likelihood: {bits_per_dim(-mean, flow.dim):.4f} bits per column")


def _compare(flow: JKOFlow, rows: Tensor, context: Tensor | None) -> None:
    """Prints how well a classifier and distances tell samples from rows."""
    if len(rows) < 20:
        raise DataError(f"--two-sample needs at least 20 rows, got {len(rows)}; leave it out, or give more rows")
    real, drawn = compared_samples(flow, rows, context)
    measured = two_sample_distances(real, drawn)
    for name, text in console.distances(measured).items():
        print(f"{name}: {text}")
    accuracy = classifier_accuracy(real, drawn)
    print(f"classifier accuracy: {accuracy.value:.3f} ± {accuracy.stderr:.3f} (0.5 if it cannot tell them apart)")


def _conditions(run: Path, flow: JKOFlow, context: str | None, names: tuple[str, ...]) -> Tensor | None:
    """Reads the context rows to sample under, with shape (N, c); None for a flow that is not conditional."""
    if flow.context_dim == 0:
        if context is not None:
            raise ConfigError(f"the flow of {run} is not conditional; leave --context out")
        return None
    if context is None:
        raise ConfigError(f"the flow of {run} is conditional; add --context FILE with the columns {', '.join(names)}")
    return load_rows(context, None, _seed(run), names).to(flow.standardize.mean.dtype)


def _features(run: Path, flow: JKOFlow) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of the flow's columns and of its context columns; x0, ... without a run directory."""
    if not (run / PREVIEW_FILE).is_file():
        names = default_features(flow.dim + flow.context_dim)
        return names[: flow.dim], names[flow.dim :]
    preview = RunDirectory(run).preview()
    features, context = preview.features, preview.context_features
    if (len(features), len(context)) != (flow.dim, flow.context_dim):
        raise CheckpointError(
            f"{run / PREVIEW_FILE} names {len(features)} columns and {len(context)} of the context, the flow beside it "
            f"has {flow.dim} and {flow.context_dim}: the files are of different runs; restore them, or train again"
        )
    return features, context


def _seed(run: Path) -> int:
    """Returns the seed that split the run's data; the default seed without a run directory."""
    return RunDirectory(run).settings().config.seed if run.is_dir() else TrainConfig().seed
