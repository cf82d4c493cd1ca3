"""Rows in memory as data to train on: what the command line does with a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jkoflow.callers import warn_caller
from jkoflow.data import DataError, Dataset, DataWarning
from jkoflow.data.checks import check_unmasked
from jkoflow.data.columns.options import TableOptions
from jkoflow.data.columns.prepare import TableData, prepare
from jkoflow.data.memory import as_table, axes_of, check_paired
from jkoflow.data.readers.row_numbers import counts_rows, is_index
from jkoflow.data.streamed import ArraySource, load_streamed
from jkoflow.data.table import Column, Table
from jkoflow.frames import is_frame, library_of
from jkoflow.mapped import scratch_directory
from jkoflow.memory_limit import MemoryLimit

Labels = str | Tensor | Column | list[Any]
"""Values of the rows to split by: the name of a column, or one value for each row."""


def prepared(
    rows: Any,
    seed: int,
    context: Any = None,
    columns: Mapping[str, str] | None = None,
    missing: str = "refuse",
    group: Labels | None = None,
    split_by: Labels | None = None,
    memory: str | None = None,
    scratch: str | Path | None = None,
) -> tuple[Dataset | TableData, TableOptions]:
    """Prepares rows as `rows_in_memory` does, or in scratch files if they are an array that needs more memory.

    Arguments:
        rows: The rows, and what belongs to them, see `jkoflow.train`.
        seed: Seed of the split.
        context: Conditioning variables.
        columns: Kinds of columns.
        missing: What is done with missing values.
        group: What each row belongs to.
        split_by: Numbers or dates to split by.
        memory: Memory that the process may take, such as ``"2GB"``; no limit if None.
        scratch: Path beside or in which the scratch files lie; that of temporary files if None.

    Raises:
        DataError: If the rows cannot be used; the message tells the fix.
    """
    array = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else rows
    if memory is None or not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray) or array.ndim > 2:
        return rows_in_memory(rows, seed, context, columns, missing, group, split_by)
    limit = MemoryLimit.parse(memory)
    width = max(array[:1].size, len(array.dtype.names or ()))
    if array.dtype.kind not in "fiuV" or width == 0 or limit.holds(len(array), width):
        return rows_in_memory(rows, seed, context, columns, missing, group, split_by)
    for name, other in (("context", context), ("group", group), ("split_by", split_by)):
        if other is not None:
            raise DataError(
                f"{name} needs the rows in memory, and memory = {memory} does not hold {len(array):,} of them: raise "
                f"memory, leave {name} out, or train on a Parquet file"
            )
    options = TableOptions((), columns or {}, missing)
    return load_streamed(ArraySource(array), "data", seed, options, limit, scratch_directory(scratch)), options


def rows_in_memory(
    rows: Any,
    seed: int,
    context: Any = None,
    columns: Mapping[str, str] | None = None,
    missing: str = "refuse",
    group: Labels | None = None,
    split_by: Labels | None = None,
) -> tuple[Dataset | TableData, TableOptions]:
    """Prepares rows for training, see `jkoflow.train`; returns them with what was said about them.

    Raises:
        DataError: If the rows cannot be used; the message tells the fix.
    """
    for name, other in (("context", context), ("group", group), ("split_by", split_by)):
        check_paired(rows, other, name)
    labels = [label for label in (group, split_by) if isinstance(label, str)]
    texts = [name for name, kind in (columns or {}).items() if kind in ("category", "drop")]
    table = as_table(rows, texts=texts, any_axes=True)
    if missing == "refuse":
        check_unmasked(rows, table.features)
    table = _without_row_numbers(table, (*(columns or {}), *labels))
    context_names: tuple[str, ...] = ()
    axes = axes_of(rows)[:-1]
    if context is not None:
        context = _flat(context, axes)
        table, context_names = _joined(table, as_table(context, "context", texts=texts, any_axes=True))
        if missing == "refuse":
            check_unmasked(context, context_names)
    table, group_name = _with_labels(table, _flat(group, axes), "group")
    table, split_name = _with_labels(table, _flat(split_by, axes), "split_by")
    options = TableOptions(context_names, columns or {}, missing, group_name, split_name)
    frames = library_of(rows)
    if frames is None and any(values.dtype.kind in "OMb" for values in table.parts["all"]):
        frames = "pandas"  # text has no tensor
    return prepare(table, "data", seed, options, frames), options


def _without_row_numbers(table: Table, mentioned: Sequence[str]) -> Table:
    """Returns a table without the columns that number its rows, but for those that the user has named.

    The other columns keep their names, so that later rows may have the row numbers or not.
    """
    found = [
        place
        for place, (name, values) in enumerate(zip(table.features, table.parts["all"], strict=True))
        if name not in mentioned and (is_index(name, values) if table.is_named else not place and counts_rows(values))
    ]
    kept = [place for place in range(len(table.features)) if place not in found]
    if not found or not kept:
        return table
    names = [table.features[place] for place in found]
    told = f"columns={{{names[0]!r}: 'integer'}} keeps {names[0]!r}"
    warn_caller(f"left out row numbers: {', '.join(map(repr, names))}; {told}", DataWarning)
    return table.take(kept)


def _joined(table: Table, context: Table) -> tuple[Table, tuple[str, ...]]:
    """Returns rows and their context as one table, and the names of the context's columns."""
    if table.rows("all") != context.rows("all"):
        raise DataError(f"context must have {table.rows('all')} rows as rows has, got {context.rows('all')}")
    names = context.features
    if not context.is_named:
        names = tuple(f"c{column}" for column in range(len(names)))
    shared = [name for name in names if name in table.features]
    if shared:
        raise DataError(
            f"rows and context must be different columns, got {', '.join(shared)} in both; drop one of each"
        )
    return Table({"all": [*table.parts["all"], *context.parts["all"]]}, (*table.features, *names)), names


def _flat(values: Any, axes: tuple[int, ...]) -> Any:
    """Returns one value for each row without the axes, if several, that the rows are in; others as they are."""
    if len(axes) < 2 or axes_of(values) != axes:
        return values
    return values.reshape(-1) if hasattr(values, "reshape") else np.asarray(values).reshape(-1)


def _with_labels(table: Table, labels: Labels | Any, name: str) -> tuple[Table, str | None]:
    """Returns a table that has the labels as a column, and the column's name."""
    if labels is None or isinstance(labels, str):
        return table, labels
    if is_frame(labels):
        values = as_table(labels, name).parts["all"][0]
    else:
        values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        values = values.astype(object) if values.dtype.kind in "US" else values
    if values.shape != (table.rows("all"),):
        raise DataError(
            f"{name} must have one value for each of the {table.rows('all')} rows, got shape {values.shape}"
        )
    if name in table.features:
        raise DataError(f"the rows have a column {name!r} already; give {name} as the name of a column, or rename it")
    return Table({"all": [*table.parts["all"], values]}, (*table.features, name)), name
