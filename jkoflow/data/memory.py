"""Tables in memory: arrays, tensors, lists, Series and data frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow.arrays import InputError, as_numbers, stacked
from jkoflow.data.checks import DataError, default_features
from jkoflow.data.readers.frames import columns_of
from jkoflow.data.readers.options import KEEP, ReadOptions
from jkoflow.data.table import Column, Table
from jkoflow.frames import as_pandas, is_pandas
from jkoflow.inputs import is_row_of
from jkoflow.optional import require


def as_table(
    data: Any, name: str = "rows", row_numbers: bool = True, texts: Sequence[str] = ("*",), any_axes: bool = False
) -> Table:
    """Returns an object in memory as a table.

    Arguments:
        data: Rows with shape (N, d), or (N,) for one column: an array or a tensor of any dtype of real numbers or
            truth values, nested lists, or a Series or data frame of pandas, polars or whatever speaks Arrow. What is
            masked or missing becomes NaN.
        name: Name of the data in errors.
        row_numbers: Whether a data frame's columns of row numbers are kept.
        texts: Names of a data frame's columns that may hold numbers and text; ``*`` stands for all.
        any_axes: Whether rows may have any axes (..., d).

    Returns:
        The columns, under the names of a data frame or Series, or x0, x1, ...

    Raises:
        DataError: If the shape is another one, or an array holds other things than real numbers.
    """
    data = as_pandas(data)
    if is_pandas(data):
        return _of_pandas(data, name, ReadOptions(index_column=KEEP if row_numbers else None, texts=tuple(texts)))
    try:
        rows = as_numbers(data, name)
    except InputError as error:
        if _holds_text(data):
            table = _of_pandas(require("pandas", "rows of text").DataFrame(data), name, ReadOptions(texts=tuple(texts)))
            return Table(table.parts, default_features(len(table.features)))
        raise DataError(str(error)) from error
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim < 2 or (rows.ndim > 2 and not any_axes) or rows.shape[-1] == 0:
        raise DataError(f"{name} must be real numbers with shape (N, d), got {rows.dtype} with shape {rows.shape}")
    rows = rows.reshape(-1, rows.shape[-1])
    return Table.of_array(rows, default_features(rows.shape[1]))


def as_rows(data: Any, names: Sequence[str], name: str = "x") -> tuple[Table, tuple[int, ...]]:
    """Returns rows in memory whose columns are known as a table, and the axes that the rows are in.

    Arguments:
        data: Rows as for `as_table`, or a table already; if there are several columns, also one row of shape (d,), in
            a Series by its labels if they are the names.
        names: Names of the columns.
        name: Name of the data in errors.

    Returns:
        The table and the axes, of which its number of rows is the product: (...) for shape (..., d), () for one row.

    Raises:
        DataError: See `as_table`.
    """
    data = data if isinstance(data, Table) else as_pandas(stacked(data))
    if is_pandas(data) and not hasattr(data, "columns"):
        if is_row_of(data, names):
            return as_table(data.to_frame().T.infer_objects(), name), ()
        data = data.tolist() if len(names) > 1 else data
    if isinstance(data, Table) or is_pandas(data):
        table = data if isinstance(data, Table) else as_table(data, name)
        return table, (table.rows(next(iter(table.parts))),)
    axes = axes_of(data)
    if len(axes) == 1 and len(names) > 1:
        return as_table([data] if isinstance(data, list | tuple) else data[None], name), ()
    return as_table(data, name, any_axes=True), axes if len(axes) == 1 else axes[:-1]


def axes_of(data: Any) -> tuple[int, ...]:
    """Returns the shape of an array, a tensor or nested lists of one length."""
    axes: list[int] = []
    while isinstance(data, list | tuple):
        axes.append(len(data))
        data = data[0] if data else None
    return (*axes, *getattr(data, "shape", ()))


def _holds_text(data: Any) -> bool:
    """Tells whether an array or nested lists hold text, true or false, or dates, which a data frame sorts out."""
    try:
        array = np.asarray(data, dtype=None if isinstance(data, np.ndarray) else object)
    except ValueError:
        return False
    cells = array.ravel().tolist()
    return array.ndim in (1, 2) and array.size > 0 and all(isinstance(cell, str | int | float | None) for cell in cells)


def numbers_of(table: Table, part: str = "all") -> NDArray[Any]:
    """Returns a part as one array (N, d) of numbers, in which true and false are 1 and 0.

    Raises:
        DataError: If a column holds anything else; the message names it.
    """
    columns = [_numeric(values) for values in table.parts[part]]
    others = [
        f"{feature!r} ({values.dtype if values.dtype.kind != 'O' else 'text'})"
        for feature, values in zip(table.features, columns, strict=True)
        if values.dtype.kind not in "fiu"
    ]
    if others:
        raise DataError(
            f"the column{'s' if len(others) > 1 else ''} {', '.join(others)} must hold numbers; encode as numbers, or "
            "leave out"
        )
    return Table({part: columns}, table.features).numbers(part)


def _numeric(values: Column) -> Column:
    """Returns truth values as 0.0 and 1.0, missing ones as NaN, and any other column as it is."""
    truth = values.dtype.kind == "O" and all(value is None or isinstance(value, bool | np.bool_) for value in values)
    return values.astype(np.float64) if truth or values.dtype.kind == "b" else values


def check_paired(rows: Any, other: Any, name: str = "context") -> None:
    """Refuses rows and what belongs to them if both are of pandas and line by line may belong to other rows.

    Raises:
        DataError: If both have an index, and these are not the same in the same order.
    """
    if all(is_pandas(given) and hasattr(given, "index") for given in (rows, other)) and not rows.index.equals(
        other.index
    ):
        raise DataError(
            f"rows and {name} have different indexes; order one by the other, as {name}.loc[rows.index], or pass "
            f"{name}.to_numpy() if they match line by line"
        )


def _of_pandas(data: Any, name: str, reading: ReadOptions) -> Table:
    labels = list(data.columns) if hasattr(data, "columns") else [data.name]
    if not labels:
        raise DataError(f"{name} must have at least one column, got none")
    try:
        table = columns_of(data, reading)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    named = not all(isinstance(label, int) or label is None for label in labels)
    return table if named else Table(table.parts, default_features(len(table.features)))
