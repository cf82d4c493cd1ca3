"""The command inspect, which shows a table's columns before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table as Grid

from jkoflow.cli import completion, console, json_lines, table_options
from jkoflow.data import DataError, TableOptions, read_table
from jkoflow.data.columns.codec import missing as missing_values
from jkoflow.data.columns.inspection import Inspection, inspect_table
from jkoflow.data.table import Column, Table


def inspect(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(help="File of a table, as for train.", show_default=False, autocompletion=completion.tables),
    ],
    context_columns: table_options.ContextColumns = None,
    columns: table_options.Columns = None,
    missing: table_options.Missing = None,
    group: table_options.Group = None,
    split_by: table_options.SplitBy = None,
    header: table_options.Header = None,
    sep: table_options.Separator = None,
    decimal: table_options.Decimal = None,
    index_column: table_options.IndexColumn = None,
    as_json: json_lines.Json = False,
) -> None:
    """Show what kind every column of a file is taken for, and why. It also tells what training would do with it."""
    told = table_options.mapping(context)
    options = TableOptions.from_mapping(told)
    table = read_table(data, options.reading)
    try:
        found = inspect_table(table, options)
    except DataError as error:
        raise DataError(f"{data}: {error}") from error
    rows = sum(table.rows(part) for part in table.parts)
    parts = f" in parts ({', '.join(f'{part} {table.rows(part)}' for part in table.parts)})" if table.is_split else ""
    print(f"{data}: {rows} rows{parts}, {len(table.features)} column{'s' if len(table.features) > 1 else ''}")
    shown = _show(found)
    for name, hit in found.dependences.items():
        if hit.share < 1:
            console.note(f"{name} is a function of others in {hit.share:.2%} of the rows ({name} = {hit.formula})")
            continue
        console.note(
            f"{name} is a function of others ({name} = {hit.formula}): train refuses it; leave it out with "
            f"--columns {name}=drop"
        )
    absent = [plan.name for plan in found.plans if plan.codec is not None and _missing(found.table, plan.name)]
    if absent and options.missing == "refuse":
        console.note(f"train refuses missing values ({', '.join(absent)}); --missing indicator models them")
    sizes = {part: table.rows(part) for part in table.parts} if table.is_split else {}
    json_lines.result("inspect", data=data, rows=rows, parts=sizes, columns=shown)


def _show(found: Inspection) -> list[dict[str, Any]]:
    """Prints a line about every column; returns what there is to know about each."""
    heads = ("column", "kind", "range", "missing", "repeats", "why", "what is done")
    lines, shown = [], list[dict[str, Any]]()
    for plan in found.plans:
        values = _joined(found.table, plan.name)
        absent = missing_values(values)
        known = values[~absent]
        repeats = 1 - len(set(known.tolist())) / max(len(known), 1)
        lines.append(
            (
                plan.name,
                plan.kind,
                _range(known),
                str(int(absent.sum())),
                f"{repeats:.0%}",
                plan.reason,
                plan.treatment,
            )
        )
        told = {"name": plan.name, "kind": plan.kind, "reason": plan.reason, "treatment": plan.treatment}
        shown.append({**told, "range": _range(known), "missing": int(absent.sum()), "repeats": repeats})
    terminal = Console(highlight=False, markup=False)
    if not terminal.is_terminal:
        print("\t".join(heads))
        for line in lines:
            print("\t".join(line))
        return shown
    grid = Grid(box=None, pad_edge=False)
    for head in heads:
        grid.add_column(head, overflow="fold")
    for line in lines:
        grid.add_row(*line)
    terminal.print(grid)
    return shown


def _range(values: Column) -> str:
    """Returns least, middle and largest value of a column of numbers or dates, and some values of another."""
    if len(values) == 0:
        return ""
    if values.dtype.kind in "fiu":
        return " .. ".join(f"{value:.6g}" for value in np.quantile(values.astype(float), (0, 0.5, 1)))
    if values.dtype.kind == "M":
        whole = values.astype("datetime64[s]")
        shown = whole.astype("datetime64[D]") if bool((whole.astype("datetime64[D]") == whole).all()) else whole
        return f"{shown.min()} .. {shown.max()}"
    levels: list[Any] = sorted(set(map(str, values.tolist())))
    return ", ".join(levels[:4]) + (", ..." if len(levels) > 4 else "")


def _missing(table: Table, name: str) -> bool:
    return bool(missing_values(_joined(table, name)).any())


def _joined(table: Table, name: str) -> Column:
    place = table.features.index(name)
    return np.concatenate([columns[place] for columns in table.parts.values()])
