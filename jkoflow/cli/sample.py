"""The command sample, which draws rows in the data's own units and types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from jkoflow.cli import completion, json_lines, models
from jkoflow.cli.row_bars import RowBars
from jkoflow.cli.settings import ConfigError, check_option
from jkoflow.data import DataError, check_numbers, check_output, load_scored
from jkoflow.data.columns.codec import Array
from jkoflow.data.memory import numbers_of
from jkoflow.data.piecewise import writing
from jkoflow.data.splits import to_float32
from jkoflow.data.table import Table
from jkoflow.data.writers import SUFFIXES
from jkoflow.metrics import CHUNK
from jkoflow.table_flow import Model, TableFlow

PART = 10_000_000
"""Rows of a file of a folder of samples, a multiple of every size of a piece."""

PIECES_TO_A_SEARCH = 10
"""Number of pieces that are drawn together within a tolerance, so that the search for steps is little of the work."""


def sample(
    run: Annotated[
        Path,
        typer.Argument(
            help="Directory of a finished run, or its model file.", show_default=False, autocompletion=completion.runs
        ),
    ],
    number: Annotated[
        int, typer.Option("-n", "--number", min=1, help="How many; of each row with --context.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="File to write: .npy, .csv or .parquet; or an empty folder, for Parquet files of 10 million rows.",
            show_default=False,
        ),
    ],
    context: Annotated[
        str | None,
        typer.Option(
            help="For a conditional flow: a file with its context columns, one row for each condition to sample under.",
            show_default=False,
            autocompletion=completion.tables,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed; the same seed gives the same samples.")] = 0,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Invert the flow's map to rounding, instead of integrating backwards; slower."),
    ] = False,
    tol: Annotated[
        float | None,
        typer.Option(
            help="Error, in nats, that the log-density of a sample may have; the steps are found by refinement. "
            "Default: steps with which the mean is right.",
            show_default=False,
        ),
    ] = None,
    as_json: json_lines.Json = False,
) -> None:
    """Draw samples in the data's own units and types. Those of a conditional flow are written beside their context.

    They are drawn and written in pieces, so that memory does not grow with their number, nor do the first ones depend
    on it.
    """
    into_folder = not out.name.lower().endswith(SUFFIXES) and (out.is_dir() or not out.suffix)
    if into_folder:
        _check_folder(out)
    else:
        check_output(out, [context] if context else [])
    check_option(tol)
    model = models.load_model(run)
    features, context_features = models.names_of(run, model)
    conditions = _conditions(run, model, context, context_features)
    if not into_folder:
        check_numbers(out, {**_no_rows(model), **(conditions or {})})
    total = number * (1 if conditions is None else len(next(iter(conditions.values()))))
    size = CHUNK if tol is None else PIECES_TO_A_SEARCH * CHUNK
    pieces = _pieces(model, number, total, size, conditions or {}, torch.Generator().manual_seed(seed), exact, tol)
    names = (*features, *context_features)
    with RowBars("samples") as bars:
        for first in range(0, total, PART) if into_folder else (0,):
            rows = min(PART, total - first) if into_folder else total
            target = out / f"part-{first // PART:05d}.parquet" if into_folder else out
            with writing(target, rows) as write:
                done = 0
                while done < rows:
                    piece = next(pieces)
                    write(dict(zip(names, piece, strict=True)))
                    done += len(piece[0])
                    bars.advance(first + done, total)
    print(f"written: {out} ({total} rows, {len(names)} column{'s' if len(names) > 1 else ''})")
    json_lines.result("sample", out=out, rows=total, columns=names)


def _check_folder(out: Path) -> None:
    """Makes a folder for samples, which may hold nothing.

    Raises:
        DataError: If there is something in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    held = next(out.iterdir(), None)
    if held is not None:
        raise DataError(f"cannot write {out}: it holds {held.name}; choose an empty folder, or name a file")


def _pieces(
    model: Model,
    number: int,
    total: int,
    size: int,
    conditions: dict[str, Array],
    generator: torch.Generator,
    exact: bool,
    tol: float | None,
) -> Iterator[list[Array]]:
    """Draws rows as columns (n,) with their conditions beside them, in pieces of one size.

    Each condition is that of ``number`` rows. The pieces do not depend on what they are written to.
    """
    for begin in range(0, total, size):
        rows = np.arange(begin, min(begin + size, total)) // number
        given = {name: values[rows] for name, values in conditions.items()}
        yield [*_draw(model, len(rows), given, generator, exact, tol), *given.values()]


@torch.no_grad()
def _draw(
    model: Model, size: int, given: dict[str, Array], generator: torch.Generator, exact: bool, tol: float | None
) -> list[Array]:
    """Returns samples as columns (size,), given conditions (size,) by name."""
    if isinstance(model, TableFlow):
        table = Table({"all": list(given.values())}, tuple(given)) if given else None
        return list(model.sample_columns(size, table, generator=generator, exact=exact, tol=tol).values())
    context = torch.from_numpy(np.stack(list(given.values()), 1)) if given else None
    return list(model.rsample(size, context, generator=generator, exact=exact, tol=tol).numpy().T)


def _conditions(run: Path, model: Model, context: str | None, names: tuple[str, ...]) -> dict[str, Array] | None:
    """Reads the context columns to sample under, by name; None for a flow that is not conditional."""
    if not names:
        if context is not None:
            raise ConfigError(f"the flow of {run} is not conditional; leave --context out")
        return None
    if context is None:
        raise ConfigError(f"the flow of {run} is conditional; add --context FILE with the columns {', '.join(names)}")
    seed, options = models.seed_and_options(run)
    table = load_scored(context, names, None, seed, options).chosen
    if isinstance(model, TableFlow):
        return model.columns_of(table, names, context)
    rows = to_float32(numbers_of(table)).to(model.standardize.mean.dtype)
    return dict(zip(names, rows.numpy().T, strict=True))


def _no_rows(model: Model) -> dict[str, Array]:
    """Returns the columns of a table's samples without any row, for their types."""
    if not isinstance(model, TableFlow):
        return {}
    states = np.zeros((0, len(model.schema.discrete)), np.int64)
    return model.schema.decode(states, np.zeros((0, len(model.schema.numeric))))
