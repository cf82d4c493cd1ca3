"""The command score, which writes the log-density of every row beside the columns that tell which row it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from jkoflow.cli import compare, console, models, table_options, unlikely
from jkoflow.cli.rows import Rows
from jkoflow.cli.settings import ConfigError, check_option
from jkoflow.data import Scored, check_output, load_scored, require, write_table
from jkoflow.data.table import Column
from jkoflow.metrics import bits_per_dim, mean_and_stderr, mean_log_scale
from jkoflow.surprise import seen_of
from jkoflow.table_flow import Model, TableFlow


def score(
    context: typer.Context,
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
    explain: Annotated[
        int, typer.Option(min=0, help="Print so many of the least likely rows, and the columns that make them so.")
    ] = 3,
    contributions: Annotated[
        bool,
        typer.Option(
            "--contributions", help="Also write by how many nats each column makes its row unlikely; much slower."
        ),
    ] = False,
    tol: Annotated[
        float | None,
        typer.Option(
            help="Largest error of a row's log-density in nats, by steps and rounding; found by refinement, on some of "
            "many rows unless --with-error checks each. Default: steps with which the mean is right.",
            show_default=False,
        ),
    ] = None,
    with_error: Annotated[
        bool,
        typer.Option("--with-error", help="Also write an estimate of each row's error in nats; 2 to 3 times as long."),
    ] = False,
    all_columns: Annotated[
        bool, typer.Option("--all-columns", help="Also write the columns that the model uses, as they came.")
    ] = False,
    precision: Annotated[
        str, typer.Option(help="auto or float64: rows, model and results in float64; up to 3 times as slow.")
    ] = "auto",
    header: table_options.Header = None,
    sep: table_options.Separator = None,
    decimal: table_options.Decimal = None,
    index_column: table_options.IndexColumn = None,
) -> None:
    """Write the log-density of every row, in nats and in the data's own units.

    Columns are found by name, in any order, the context columns of a conditional flow, too. Columns that the model does
    not use, such as identifiers, are written beside the log-densities, and so are the names of the columns in which a
    row lies outside of what the training has seen; .npy holds the log-densities alone. The means are over the rows with
    a finite density.
    """
    check_output(out, [data])
    if out.suffix.lower() == ".npy" and (contributions or all_columns or with_error):
        raise ConfigError(f"{out} holds log-densities alone; for more columns write .csv or .parquet")
    check_option(tol)
    if two_sample:
        require("sklearn", "--two-sample", "sklearn")
    if precision not in ("auto", "float64"):
        raise ConfigError(f"--precision must be auto or float64, got {precision!r}")
    model = models.load_model(run)
    if precision == "float64":
        model.double()
    names = models.names_of(run, model)
    seed, options = models.seed_and_options(run)
    told = table_options.mapping(context)
    scored = load_scored(data, (*names[0], *names[1]), split, seed, options, told)
    rows = Rows(model, data, scored.chosen, len(names[0]))
    log_prob, error = rows.log_prob_and_error(tol) if with_error else (rows.log_prob(tol), None)
    finite = torch.isfinite(log_prob)
    far = rows.outside()
    results: dict[str, Column] = {"log_prob": log_prob.numpy()}
    if error is not None:
        results["error"] = error.numpy()
    if far is not None:
        results["outside"] = _joined_names(far, len(log_prob))
    if contributions:
        found = rows.surprise(np.arange(len(log_prob))).numpy()
        results |= {f"surprise_{name}": found[:, place] for place, name in enumerate(names[0])}
    _write(out, scored, results, all_columns)
    _show(model, rows, log_prob[finite].double(), finite)
    if error is not None and bool(finite.any()):
        median, most = float(error[finite].median()), float(error[finite].max())
        print(f"error of a row: {median:.1e} nats (median), {most:.1e} (most)")
    if two_sample:
        compare.show_comparison(model, rows, finite)
    if explain and seen_of(model):
        unlikely.show_unlikely(model, rows, scored, log_prob.double(), explain)
    rows.tell_of_outside(far or {})
    rows.tell_of_impossible(out, finite)
    print(f"written: {out}")


def _write(out: Path, scored: Scored, results: dict[str, Column], all_columns: bool) -> None:
    if out.suffix.lower() == ".npy":
        write_table(out, results["log_prob"], ["log_prob"])
        return
    kept = scored.table.features if all_columns else scored.unused
    all_of = dict(zip(scored.table.features, scored.table.parts["all"], strict=True))
    columns = {name: all_of[name] for name in kept}
    for name, values in results.items():
        free = name
        while free in columns:
            free += "_"
        if free != name:
            console.note(f"{out} has a column {name!r} of the input, so the new one is called {free!r}")
        columns[free] = values
    write_table(out, list(columns.values()), list(columns))


def _show(model: Model, rows: Rows, log_prob: Tensor, finite: Tensor) -> None:
    """Prints the means of the log-densities (n,) of those rows that have a finite one, as ``finite`` (N,) tells."""
    count = len(finite)
    print(f"rows: {count}" + (f", {len(log_prob)} of them with a finite density" if len(log_prob) < count else ""))
    if len(log_prob) == 0:
        print("mean log-likelihood: not finite")
        return
    mean, stderr = mean_and_stderr(log_prob)
    error = f" ± {stderr:.4f}" if len(log_prob) > 1 else ""
    measure = " (masses and densities, see metrics.json columns)" if isinstance(model, TableFlow) else ""
    print(f"mean log-likelihood: {mean:.4f}{error} nats{measure or ' (standard error)'}")
    if isinstance(model, TableFlow):
        dim = len(model.features)
    else:
        assert rows.tensors is not None
        dim = model.dim
        standardised = mean + mean_log_scale(model, rows.tensors[0][finite])
        print(f"on standardised columns: {standardised:.4f}{error} nats")
    print(f"negative log-likelihood: {bits_per_dim(-mean, dim):.4f} bits per column")


def _joined_names(found: dict[str, Tensor], count: int) -> Column:
    names: list[list[str]] = [[] for _ in range(count)]
    for name, mask in found.items():
        for row in mask.nonzero()[:, 0].tolist():
            names[row].append(name)
    return np.array([";".join(those) for those in names], dtype=object)
