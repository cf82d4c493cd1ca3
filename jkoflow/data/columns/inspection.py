"""What is found out about the columns of a table before any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jkoflow.data.checks import DataError
from jkoflow.data.columns.codec import missing
from jkoflow.data.columns.dependence import Found, Rounding, find_dependences
from jkoflow.data.columns.kinds import ColumnPlan, plan_column
from jkoflow.data.columns.lattice import find_spacing
from jkoflow.data.columns.options import TableOptions
from jkoflow.data.columns.override import Override, parse_overrides
from jkoflow.data.columns.refusals import check_names, check_sizes, label_of
from jkoflow.data.table import PARTS, Column, Table


@dataclass(frozen=True)
class Inspection:
    """The columns of a table with what is found out about them."""

    table: Table
    plans: tuple[ColumnPlan, ...]
    dependences: Mapping[str, Found]
    """Columns that are functions of others."""
    overrides: Mapping[str, Override]
    """What the user says about columns, by name."""


def inspect_table(table: Table, options: TableOptions = TableOptions()) -> Inspection:  # noqa: B008 (frozen)
    """Decides about every column of a table, without refusing any.

    Raises:
        DataError: If the options name a column that is not there, or a kind that does not fit.
    """
    overrides = parse_overrides(options.columns, table.features)
    check_names(table, options)
    check_sizes(table)
    values = joined(table)
    fit = np.arange(table.rows("train")) if table.is_split else None
    plans = []
    for name in table.features:
        override = overrides.get(name)
        if name in (options.group, options.split_by) and name not in overrides and name not in options.context_columns:
            override = Override("drop")
        label = label_of(table, name)
        plans.append(plan_column(name, label, values[name], fit, None if _is_dependent(override) else override))
    # the context comes first: a column that is a function of it has no density given it either
    ordered = sorted(
        (plan for plan in plans if _has_numbers(plan)), key=lambda plan: plan.name not in options.context_columns
    )
    hits = find_dependences(*_complete({plan.name: values[plan.name] for plan in ordered}))
    found = [hit for hit in hits if hit.name not in options.context_columns]
    for name, override in overrides.items():
        if _is_dependent(override) and name not in {hit.name for hit in found if hit.dependence is not None}:
            raise DataError(
                f"column {name!r} is no affine function of the columns before it; leave its kind out, or drop it"
            )
    return Inspection(table, tuple(plans), {hit.name: hit for hit in found}, overrides)


def joined(table: Table) -> dict[str, Column]:
    """Returns the columns by name, those of several parts one after the other."""
    parts = [table.parts[part] for part in (PARTS if table.is_split else ("all",))]
    columns = {}
    for place, name in enumerate(table.features):
        pieces = [part[place] for part in parts]
        columns[name] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return columns


def _complete(columns: Mapping[str, Column]) -> tuple[dict[str, Column], dict[str, Rounding]]:
    """Returns columns of numbers in the rows where none is missing, and the rounding of each.

    If fewer than half of the rows have no missing value, all rows of the columns without missing values are returned.
    """
    if not columns:
        return {}, {}
    absent = {name: missing(column) for name, column in columns.items()}
    kept, rows = dict(columns), ~np.logical_or.reduce([*absent.values()], axis=0)
    if rows.mean() < 0.5:
        kept = {name: column for name, column in kept.items() if not absent[name].any()}
        rows = np.ones(len(rows), bool)
    full = {name: column if rows.all() else column[rows] for name, column in kept.items()}
    return full, {name: _rounding(column) for name, column in full.items()}


def _has_numbers(plan: ColumnPlan) -> bool:
    return plan.codec is not None and plan.codec.numeric and plan.kind != "date"


def _is_dependent(override: Override | None) -> bool:
    return override is not None and override.kind == "dependent"


def _rounding(values: Column) -> Rounding:
    """Returns the rounding of values (N,): half a step of their lattice, and some digits of their type."""
    if values.dtype.kind != "f":
        return Rounding(8 * float(np.finfo(np.float64).eps), 0.0)
    spacing = find_spacing(np.asarray(values, np.float64), values.dtype)
    return Rounding(
        8 * float(np.finfo(values.dtype).eps), 0.0 if spacing is None or spacing.whole else 0.5 * spacing.step
    )
