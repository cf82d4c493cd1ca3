"""The command sample, which draws rows in the data's own units and types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from jkoflow.cli import models
from jkoflow.cli.settings import ConfigError, check_option
from jkoflow.data import check_numbers, check_output, load_scored, write_table
from jkoflow.data.columns.codec import Array
from jkoflow.data.memory import numbers_of
from jkoflow.data.splits import to_float32
from jkoflow.data.table import Table
from jkoflow.metrics import CHUNK
from jkoflow.table_flow import Model, TableFlow

PIECES_TO_A_SEARCH = 10
"""Number of pieces that are drawn together within a tolerance, so that the search for steps is little of the work."""


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
    tol: Annotated[
        float | None,
        typer.Option(
            help="Error, in nats, that the log-density of a sample may have; the steps are found by refinement. "
            "Default: steps with which the mean is right.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draw samples in the data's own units and types; those of a conditional flow are written beside their context."""
    check_output(out, [context] if context else [])
    check_option(tol)
    model = models.load_model(run)
    features, context_features = models.names_of(run, model)
    conditions = _conditions(run, model, context, context_features)
    check_numbers(out, {**_no_rows(model), **(conditions or {})})
    if conditions is not None:
        conditions = {name: np.repeat(values, number) for name, values in conditions.items()}
        number *= len(next(iter(conditions.values()))) // number
    generator = torch.Generator().manual_seed(seed)
    pieces = []
    most = CHUNK if tol is None else PIECES_TO_A_SEARCH * CHUNK
    for begin in range(0, number, most):
        size = min(most, number - begin)
        given = {name: values[begin : begin + size] for name, values in (conditions or {}).items()}
        pieces.append(_draw(model, size, given, generator, exact, tol))
    columns = [np.concatenate(values) for values in zip(*pieces, strict=True)] + list((conditions or {}).values())
    write_table(out, columns, (*features, *context_features))
    print(f"written: {out} ({number} rows, {len(columns)} column{'s' if len(columns) > 1 else ''})")


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
