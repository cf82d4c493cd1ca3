"""The rows and conditions that the flow of a table is given: its columns by name, in types that it can encode."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from jkoflow.data import chosen_columns
from jkoflow.data.checks import DataError
from jkoflow.data.columns.codec import Array, Floats
from jkoflow.data.columns.impossible import fitting_columns
from jkoflow.data.columns.schema import Schema
from jkoflow.data.memory import as_rows, axes_of
from jkoflow.data.table import Table
from jkoflow.frames import is_frame


class GivenRows(NamedTuple):
    """Rows as the flow of a table reads them."""

    columns: dict[str, Array]
    """Columns (N,) by name."""
    conditions: Floats
    """Conditioning variables, coded, with shape (N, c)."""
    axes: tuple[int, ...]
    """The axes that the rows were given in, of which N is the product, and that results go back under."""


def given_rows(schema: Schema, x: Any, context: Any) -> GivenRows:
    """Returns rows and their conditions, which may be columns of the rows themselves.

    Raises:
        DataError: If a column is missing or of another type, or the conditions do not belong to the rows.
    """
    names = (*schema.features, *(schema.context_features if context is None else ()))
    table, axes = as_rows(x, names)
    columns = columns_of(schema, table, names)
    if context is not None or not schema.context_features:
        return GivenRows(columns, given_conditions(schema, context, axes), axes)
    return GivenRows(columns, schema.conditions(columns), axes)


def given_conditions(schema: Schema, context: Any, axes: tuple[int, ...]) -> Floats:
    """Returns coded conditions (N, c) of N rows in some axes: one for each of them, or one for all.

    Raises:
        DataError: If context is missing or superfluous, or does not belong to the rows.
    """
    names, count = schema.context_features, math.prod(axes)
    if context is None:
        if names:
            raise DataError(f"context must have the columns {', '.join(names)}, got None")
        return np.zeros((count, 0))
    if not names:
        raise DataError("context must be None for a flow without conditioning variables")
    one_for_all = is_frame(context) or axes_of(context) in ((), (len(names),))
    rows: Any = context
    if (
        not (isinstance(rows, Table) or is_frame(rows)) and len(names) == 1 and axes_of(context) in (axes, ())
    ):  # without an axis of columns
        context = context.reshape(-1) if hasattr(context, "reshape") else np.asarray(context).reshape(-1)
    table, given = as_rows(context, names, "context")
    conditions = schema.conditions(columns_of(schema, table, names, "context"))
    if len(conditions) == 1 and one_for_all:
        return np.repeat(conditions, count, 0)
    if given not in (axes, (count,)) or len(conditions) != count:
        raise DataError(f"context must have {count} rows, got {len(conditions)}")
    return conditions


def columns_of(schema: Schema, table: Table, names: tuple[str, ...], source: str = "x") -> dict[str, Array]:
    """Returns some of the columns of a table by name, in types that the flow can encode.

    Arguments:
        schema: Translation of the flow's columns.
        table: Rows; without names of their own, their columns are taken in this order.
        names: Names of the columns.
        source: What errors call the table.

    Raises:
        DataError: If a column is missing, or of another type.
    """
    chosen = chosen_columns(table, names, source)
    return fitting_columns(schema, dict(zip(names, chosen.parts[next(iter(chosen.parts))], strict=True)))
