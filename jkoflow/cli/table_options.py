"""The options of the command line about a table: how its file is read, and what kinds its columns are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jkoflow.data import DataError
from jkoflow.data.columns.override import KINDS, split_overrides

Columns = Annotated[
    str | None,
    typer.Option(
        help=f"Kinds of columns, as age=integer,income=log: {', '.join(KINDS)}, perhaps with +spikes. Default: found.",
        show_default=False,
    ),
]
ContextColumns = Annotated[
    str | None,
    typer.Option(help="Columns, as a,b: learn the density of the others given these.", show_default=False),
]
Missing = Annotated[
    str | None,
    typer.Option(
        help="What to do with missing values: refuse, or indicator (a state of their own).", show_default=False
    ),
]
Group = Annotated[
    str | None,
    typer.Option(help="Column whose equal values stay in one part of the split.", show_default=False),
]
SplitBy = Annotated[
    str | None,
    typer.Option(help="Column, such as a time, by whose order the parts are split.", show_default=False),
]
Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether the first line names the columns.", show_default=False),
]
Separator = Annotated[
    str | None, typer.Option("--sep", help="Separator of a text file: , ; tab | blank.", show_default=False)
]
Decimal = Annotated[str | None, typer.Option(help="Decimal mark of a text file: . or ,", show_default=False)]
IndexColumn = Annotated[
    str | None,
    typer.Option(help="Column that numbers the rows, left out; none keeps all columns.", show_default=False),
]


def names(text: str | None) -> list[str]:
    """Reads names of columns that commas separate."""
    found = [name.strip() for name in (text or "").split(",") if name.strip()]
    if text is not None and not found:
        raise DataError(f"--context-columns must name columns, separated by commas, got {text!r}")
    return found


def mapping(context: typer.Context) -> dict[str, Any]:
    """Returns the options of a command that were given, under the names of `jkoflow.data.TableOptions`."""
    told = context.params
    values = {
        "context_columns": names(told.get("context_columns")) or None,
        "columns": None if told.get("columns") is None else split_overrides(told["columns"]),
        "separator": told.get("sep"),
        **{name: told.get(name) for name in ("missing", "group", "split_by", "header", "decimal", "index_column")},
    }
    return {name: value for name, value in values.items() if value is not None}
