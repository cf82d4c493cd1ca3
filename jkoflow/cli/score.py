"""The command score, which writes the log-density of every row beside the columns that tell which row it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from jkoflow.cli import compare, completion, console, json_lines, models, table_options, unlikely
from jkoflow.cli.row_bars import FolderBars, RowBars
from jkoflow.cli.rows import Rows
from jkoflow.cli.score_folder import Work, check_folders, input_files, score_folder
from jkoflow.cli.score_pieces import Asked, Scorer
from jkoflow.cli.settings import ConfigError, check_option
from jkoflow.cli.tally import Mean, Tally
from jkoflow.data import ReadOptions, check_output, load_scored, reading_of, require, write_table
from jkoflow.data.readers.pieces import comes_in_pieces, size_of
from jkoflow.data.writers import SUFFIXES
from jkoflow.flow import JKOFlow
from jkoflow.metrics import bits_per_dim, mean_log_scale
from jkoflow.surprise import seen_of
from jkoflow.table_flow import Model, TableFlow

LARGE = 64_000_000
"""Number of bytes of a file's cells beyond which it is read and written in pieces."""


def score(
    context: typer.Context,
    run: Annotated[
        Path,
        typer.Argument(
            help="Directory of a finished run, or its model file.", show_default=False, autocompletion=completion.runs
        ),
    ],
    data: Annotated[
        str, typer.Argument(help="Rows to score: as for train.", show_default=False, autocompletion=completion.data)
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="File to write: .npy, .csv or .parquet; or a folder, for one Parquet file for each file of a folder.",
            show_default=False,
        ),
    ],
    split: Annotated[
        str | None,
        typer.Option(
            help="train, val, test or all. Default: the test part of data that come in parts, every row of others.",
            show_default=False,
            autocompletion=completion.one_of("train", "val", "test", "all"),
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
        str,
        typer.Option(
            help="auto or float64: rows, model and results in float64; up to 3 times as slow.",
            autocompletion=completion.one_of("auto", "float64"),
        ),
    ] = "auto",
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that share the files of a folder, if --out is a folder.")
    ] = 1,
    header: table_options.Header = None,
    sep: table_options.Separator = None,
    decimal: table_options.Decimal = None,
    index_column: table_options.IndexColumn = None,
    as_json: json_lines.Json = False,
) -> None:
    """Write the log-density of every row. It is in nats, and in the data's own units.

    Columns are found by name, in any order, the context columns of a conditional flow, too. Columns that the model does
    not use, such as identifiers, are written beside the log-densities, and so are the names of the columns in which a
    row lies outside of what the training has seen; .npy holds the log-densities alone. The means are over the rows with
    a finite density.

    A folder that is scored into a folder is scored file by file: what is done is skipped, whoever has done it, so that
    the same command goes on after an interruption, and several may run at once. Large files are read and written in
    pieces.
    """
    asked = Asked(tol, with_error, contributions, all_columns)
    folder, source = is_folder(data, out), Path(data)
    if not folder:
        check_output(out, [data])
    if out.suffix.lower() == ".npy" and (contributions or all_columns or with_error):
        raise ConfigError(f"{out} holds log-densities alone; for more columns write .csv or .parquet")
    check_option(tol)
    if two_sample:
        require("sklearn", "--two-sample", "sklearn")
    if precision not in ("auto", "float64"):
        raise ConfigError(f"--precision must be auto or float64, got {precision!r}")
    seed, options = models.seed_and_options(run)
    told = table_options.mapping(context)
    if folder:
        refused = {"--split": split not in (None, "all"), "--two-sample": two_sample}
        if any(refused.values()):
            name = next(name for name, given in refused.items() if given)
            raise ConfigError(f"{name} is for one table; leave it out, or write one file with --out scores.parquet")
        score_files(Work(run, source, out, asked, precision, options, told), workers)
        return
    if workers != 1:
        raise ConfigError(f"--workers shares the files of a folder, {data} is scored by one process; leave it out")
    model = models.load_model(run)
    if precision == "float64":
        model.double()
    names = models.names_of(run, model)
    scorer = Scorer(model, names, asked)
    if split in (None, "all") and not two_sample and is_large(source):
        _score_in_pieces(scorer, source, out, reading_of(source, options, told), explain)
        return
    scored = load_scored(data, (*names[0], *names[1]), split, seed, options, told)
    rows = Rows(model, data, scored.chosen, len(names[0]))
    log_prob, error = rows.log_prob_and_error(tol) if with_error else (rows.log_prob(tol), None)
    finite = torch.isfinite(log_prob)
    far = rows.outside()
    notes: list[str] = []
    columns = scorer.columns(out, scored, scorer.results(rows, log_prob, error, far), notes)
    for text in notes:
        console.note(text)
    if out.suffix.lower() == ".npy":
        write_table(out, columns["log_prob"], ["log_prob"])
    else:
        write_table(out, list(columns.values()), list(columns))
    mean = Mean.of(log_prob[finite])
    scale = None
    if isinstance(model, JKOFlow) and rows.tensors is not None:
        scale = mean_log_scale(model, rows.tensors[0][finite])
    found = _show(model, len(log_prob), mean, scale)
    if error is not None and bool(finite.any()):
        median, most = float(error[finite].median()), float(error[finite].max())
        print(f"error of a row: {median:.1e} nats (median), {most:.1e} (most)")
        found |= {"error_median": median, "error_max": most}
    if two_sample:
        found |= compare.show_comparison(model, rows, finite)
    if explain and seen_of(model):
        found["least_likely"] = unlikely.show_unlikely(model, rows, scored, log_prob.double(), explain)
    rows.tell_of_outside(far or {})
    rows.tell_of_impossible(out, finite)
    print(f"written: {out}")
    json_lines.result("score", out=out, **found)


def is_folder(data: str, out: Path) -> bool:
    """Tells whether the files of a folder are to be scored into another one, file by file."""
    return Path(data).is_dir() and (out.is_dir() or not out.name.lower().endswith(SUFFIXES))


def is_large(source: Path) -> bool:
    """Tells whether a file is one of more rows than are read at once."""
    return source.is_file() and comes_in_pieces(source) and size_of(source) > LARGE


def _score_in_pieces(scorer: Scorer, source: Path, out: Path, reading: ReadOptions, explain: int) -> None:
    with RowBars(source.name) as bars:
        tally, worst = scorer.score(
            source, out, reading, least=explain if seen_of(scorer.model) else 0, advance=bars.advance
        )
    found = show_tally(scorer.model, tally)
    if worst is not None:
        rows, scored, least = worst
        log_prob = least.log_prob.double()
        found["least_likely"] = unlikely.show_unlikely(scorer.model, rows, scored, log_prob, explain, least.numbers)
    for text in tally.remarks():
        console.note(text)
    print(f"written: {out}")
    json_lines.result("score", out=out, **found)


def show_tally(model: Model, tally: Tally) -> dict[str, Any]:
    """Prints what has been found of rows that were scored in pieces; returns it by name."""
    found = _show(model, tally.rows, tally.log_prob, tally.scale.mean if tally.scale.count else None)
    if tally.error.count:
        print(f"error of a row: {tally.error.mean:.1e} nats (mean), {tally.largest_error:.1e} (most)")
        found |= {"error_mean": tally.error.mean, "error_max": tally.largest_error}
    return found


def score_files(work: Work, workers: int) -> None:
    """Scores the files of a folder, and prints what has become of them.

    Raises:
        DataError: If the folders do not fit.
        typer.Exit: If files could not be scored.
    """
    check_folders(work.folder, work.out)
    names = input_files(work.folder)
    model = models.load_model(work.run)
    with FolderBars(len(names)) as bars:
        results = score_folder(work, names, workers, bars.tell)
    whole, states = Tally(), Counter(done.state for done in results)
    whole.merge(done.tally for done in results if done.state == "scored" and done.tally is not None)
    for done in results:
        remarks = [] if done.tally is None else done.tally.remarks()
        for text in [*([done.text] if done.text and done.state == "scored" else []), *remarks]:
            console.note(f"{done.name}: {text}")
        if done.state == "held":
            console.note(f"{done.name}: left to {done.text}")
    found = show_tally(model, whole) if whole.rows else {"rows": 0}
    print(
        f"files: {states['scored']} scored, {states['skipped']} done before"
        + (f", {states['held']} left to other processes" if states["held"] else "")
    )
    print(f"written: {work.out}")
    json_lines.result("score", out=work.out, files=dict(states), **found)
    failed = [done for done in results if done.state == "failed"]
    for done in failed:
        console.error(f"{done.name}: {done.text}")
    if failed:
        raise typer.Exit(2)


def _show(model: Model, count: int, log_prob: Mean, scale: float | None) -> dict[str, Any]:
    """Prints the mean of the log-densities of those of some rows that have a finite one; returns what it prints."""
    finite = log_prob.count
    found: dict[str, Any] = {"rows": count, "finite_rows": finite, "log_likelihood": None}
    print(f"rows: {count}" + (f", {finite} of them with a finite density" if finite < count else ""))
    if finite == 0:
        print("mean log-likelihood: not finite")
        return found
    error = f" ± {log_prob.stderr:.4f}" if finite > 1 else ""
    measure = " (masses and densities, see metrics.json columns)" if isinstance(model, TableFlow) else ""
    print(f"mean log-likelihood: {log_prob.mean:.4f}{error} nats{measure or ' (standard error)'}")
    if scale is not None:
        print(f"on standardised columns: {log_prob.mean + scale:.4f}{error} nats")
    bits = bits_per_dim(-log_prob.mean, len(model.features) if isinstance(model, TableFlow) else model.dim)
    print(f"negative log-likelihood: {bits:.4f} bits per column")
    return found | {
        "log_likelihood": log_prob.mean,
        "log_likelihood_stderr": log_prob.stderr,
        "log_likelihood_standardized": None if scale is None else log_prob.mean + scale,
        "bits_per_column": bits,
    }
