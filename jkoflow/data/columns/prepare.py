"""The way from a table as it comes to numbers and states to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jkoflow.callers import warn_caller
from jkoflow.data.checks import LARGEST, DataError, DataWarning, column_label
from jkoflow.data.columns.codec import Array, Floats, missing
from jkoflow.data.columns.dependence import Found, find_dependences
from jkoflow.data.columns.kinds import ColumnPlan, plan_column
from jkoflow.data.columns.lattice import find_spacing
from jkoflow.data.columns.numbers import Real
from jkoflow.data.columns.options import TableOptions
from jkoflow.data.columns.override import Override, parse_overrides
from jkoflow.data.columns.schema import Coded, Dependence, Schema
from jkoflow.data.dataset import Dataset
from jkoflow.data.repeats import warn_about_shared_rows
from jkoflow.data.splits import split_order, to_float32
from jkoflow.data.table import PARTS, Table
from jkoflow.links import Link

COPIES, ENOUGH_ROWS = 4, 20_000
"""Times, at most, that a training row is taken, each with noise of its own, until there are enough rows."""

MOST_TOLD = 8
"""Columns whose kinds are told in a line each."""

Columns = dict[str, Array]


@dataclass(frozen=True)
class TableData:
    """A table, prepared for training: its columns, and the numbers and states that they become.

    Arguments:
        numbers: The numbers to train a flow on, given the conditions and the states' indicators; None if no column has
            numbers.
        schema: Translation of the columns.
        plans: What was decided about every column, in the table's order, those of the context last.
        columns: The user's columns of the three parts, by name.
        states: States of the parts, each with shape (N, k), without copies.
        conditions: Conditions of the parts, each with shape (N, c), without copies.
        frames: Whether the rows came as a file or a DataFrame, and samples go as one.
    """

    name: str
    numbers: Dataset
    schema: Schema
    plans: tuple[ColumnPlan, ...]
    columns: Mapping[str, Columns]
    states: Mapping[str, NDArray[np.int64]]
    conditions: Mapping[str, Floats]
    frames: bool


@dataclass(frozen=True)
class Inspection:
    """The columns of a table with what is found out about them."""

    table: Table
    plans: tuple[ColumnPlan, ...]
    dependences: Mapping[str, Found]
    """Columns that are functions of others."""


def inspect_table(table: Table, options: TableOptions = TableOptions()) -> Inspection:  # noqa: B008 (frozen)
    """Decides about every column of a table, without refusing any.

    Raises:
        DataError: If the options name a column that is not there, or a kind that does not fit.
    """
    overrides = parse_overrides(options.columns, table.features)
    _check_names(table, options)
    _check_sizes(table)
    values = _joined(table)
    fit = np.arange(table.rows("train")) if table.is_split else None
    plans = []
    for name in table.features:
        override = overrides.get(name)
        if name in (options.group, options.split_by) and name not in overrides and name not in options.context_columns:
            override = Override("drop")
        label = column_label(table.features, table.features.index(name))
        plans.append(plan_column(name, label, values[name], fit, None if _is_dependent(override) else override))
    kept = {
        plan.name: values[plan.name]
        for plan in plans
        if _has_numbers(plan) and plan.name not in options.context_columns
    }
    full = {name: column for name, column in kept.items() if not missing(column).any()}
    found = find_dependences(full, {name: _rounding(column) for name, column in full.items()})
    for name, override in overrides.items():
        if _is_dependent(override) and name not in {hit.name for hit in found if hit.dependence is not None}:
            raise DataError(
                f"column {name!r} is no affine function of the columns before it; leave its kind out, or drop it"
            )
    return Inspection(table, tuple(plans), {hit.name: hit for hit in found})


def prepare(table: Table, name: str, seed: int, options: TableOptions, frames: bool) -> Dataset | TableData:
    """Prepares a table for training.

    Arguments:
        table: The table.
        name: Name of the data in reports.
        seed: Seed of the split and of the noise.
        options: What the user says about the table.
        frames: Whether samples are to be DataFrames.

    Returns:
        A `Dataset` if all columns are real numbers that need no translation, else a `TableData`.

    Raises:
        DataError: If the data cannot be used; the message tells the fix.
    """
    inspection = inspect_table(table, options)
    overrides = parse_overrides(options.columns, table.features)
    plans = [plan for plan in inspection.plans if plan.codec is not None]
    context = [_plan_named(plans, column) for column in options.context_columns]
    own = [plan for plan in plans if plan.name not in options.context_columns]
    if not own:
        raise DataError("no column is left to have a density; not all columns can be context or left out")
    values = _joined(table)
    if options.missing == "refuse":
        _refuse_missing(plans, values, table)
    _refuse_constants(plans, overrides, table)
    dependences = _dependences(inspection, overrides, options)
    parts = _parts(table, options, plans, seed)
    for plan in inspection.plans:
        if plan.codec is None and plan.reason != "as told" and plan.name not in (options.group, options.split_by):
            _warn(f"{column_label(table.features, table.features.index(plan.name))} is {plan.reason}: {plan.treatment}")
    if not dependences and all(_is_plain(plan, values[plan.name]) for plan in plans):
        return _plain_dataset(name, own, context, values, parts, overrides, not table.is_split)
    _tell([plan for plan in plans if plan.kind not in ("real", "log", "logit") and plan.name not in overrides], table)
    if table.is_split:
        warn_about_shared_rows(
            [table.take([table.features.index(plan.name) for plan in plans]).parts[part] for part in PARTS]
        )
    schema = Schema(
        tuple(plan.name for plan in own),
        tuple(None if plan.name in dependences else plan.codec for plan in own),
        tuple(plan.name for plan in context),
        tuple(plan.codec for plan in context if plan.codec is not None),
        dependences,
    )
    return encode_table(
        name, schema, (*own, *context), {part: _take(values, rows) for part, rows in parts.items()}, seed, frames
    )


def encode_table(
    name: str, schema: Schema, plans: tuple[ColumnPlan, ...], columns: Mapping[str, Columns], seed: int, frames: bool
) -> TableData:
    """Translates the columns of the three parts with seeded noise; the training rows several times if they are few."""
    states, conditions, tensors = {}, {}, {}
    for number, part in enumerate(PARTS):
        rows = columns[part]
        count = len(next(iter(rows.values())))
        conditions[part] = schema.conditions(rows) if schema.context_features else np.zeros((count, 0))
        copies = max(1, min(COPIES, ENOUGH_ROWS // count)) if part == "train" and schema.noisy else 1
        random = np.random.default_rng([seed, number])
        coded = [_encode_copy(schema, rows, (copy, copies), random) for copy in range(copies)]
        _check_possible(coded[0], part, count)
        states[part] = coded[0].states
        given = np.concatenate([conditions[part], schema.indicators(coded[0].states)], 1)
        tensors[part] = to_float32(np.concatenate([piece.numbers for piece in coded]))
        tensors[f"{part}_context"] = to_float32(np.tile(given, (copies, 1)))
        if not schema.numeric:  # the masses are all there is; a flow of noise stands in for that of the numbers
            tensors[part] = to_float32(random.standard_normal((count, 1)))
    features = tuple(schema.features[place] for place in schema.numeric) or ("noise",)
    width = tensors["train_context"].shape[1]
    if not schema.numeric or width == 0:
        for part in PARTS:
            del tensors[f"{part}_context"]
        width = 0
    given_names = tuple(f"given{place}" for place in range(width))
    numbers = Dataset(
        name, features=features, context_features=given_names, prepared=True, warned=True, _compared=True, **tensors
    )
    return TableData(name, numbers, schema, plans, columns, states, conditions, frames)


def _encode_copy(schema: Schema, rows: Columns, copy: tuple[int, int], random: np.random.Generator) -> Coded:
    """Encodes rows with noise of one of several equal parts of (0, 1), so that the copies of a row spread out."""
    count = len(next(iter(rows.values())))
    uniform = (copy[0] + random.random((count, len(schema.features)))) / copy[1]
    return schema.encode(rows, np.clip(uniform, 1e-9, 1 - 1e-9))


def _check_possible(coded: Coded, part: str, count: int) -> None:
    impossible = ~np.isfinite(coded.log_weights)
    if impossible.any():
        row = int(np.argmax(impossible))
        raise DataError(
            f"row {row} of {part} (counting from 0) has density zero under the kinds of its columns "
            f"({int(impossible.sum())} of {count} such rows); give other kinds, or drop these rows"
        )


def _tell(plans: Sequence[ColumnPlan], table: Table) -> None:
    """Warns of the kinds that were found, column by column, and of many columns in one line."""
    for plan in plans[:MOST_TOLD]:
        label = column_label(table.features, table.features.index(plan.name))
        _warn(f"{label} is taken for {plan.kind}: {plan.reason}; {plan.treatment}")
    if len(plans) > MOST_TOLD:
        rest = ", ".join(f"{plan.name} ({plan.kind})" for plan in plans[MOST_TOLD:])
        _warn(f"{len(plans) - MOST_TOLD} more columns are taken for other kinds than real: {rest}")


# ---- What is refused


def _check_names(table: Table, options: TableOptions) -> None:
    wanted = [*options.context_columns, *(name for name in (options.group, options.split_by) if name is not None)]
    unknown = [name for name in wanted if name not in table.features]
    if unknown:
        raise DataError(f"unknown column {', '.join(unknown)}; there are {', '.join(table.features)}")
    if len(set(options.context_columns)) != len(options.context_columns):
        raise DataError(f"the context columns must be different, got {', '.join(options.context_columns)}")


def _check_sizes(table: Table) -> None:
    """Refuses infinite and too large numbers."""
    for part, columns in table.parts.items():
        for place, values in enumerate(columns):
            if values.dtype.kind != "f":
                continue
            with np.errstate(invalid="ignore"):
                wrong = np.abs(values) > LARGEST
            if wrong.any():
                row = int(np.argmax(wrong))
                where = f"row {row}{'' if part == 'all' else f' of {part}'} (counting from 0), {column_label(table.features, place)}"
                if np.isinf(values[row]):
                    raise DataError(
                        f"{values[row]} in {where} ({int(wrong.sum())} such value{'s' if wrong.sum() > 1 else ''}); "
                        "drop or impute these rows"
                    )
                raise DataError(
                    f"value {values[row]:g} in {where} is beyond {LARGEST:g} ({int(wrong.sum())} such values); rescale "
                    "the column"
                )


def _refuse_missing(plans: Sequence[ColumnPlan], values: Columns, table: Table) -> None:
    counts = {plan.name: int(missing(values[plan.name]).sum()) for plan in plans}
    counts = {name: count for name, count in counts.items() if count}
    if not counts:
        return
    first = next(iter(counts))
    part, row = _first_missing(table, table.features.index(first))
    label = column_label(table.features, table.features.index(first))
    each = ", ".join(f"{column_label(table.features, table.features.index(n))}: {count}" for n, count in counts.items())
    raise DataError(
        f"NaN in row {row}{part} (counting from 0), {label} ({sum(counts.values())} such "
        f"value{'s' if sum(counts.values()) > 1 else ''}; {each}); drop or impute these rows, or model them with "
        "missing = 'indicator' (--missing indicator)"
    )


def _first_missing(table: Table, place: int) -> tuple[str, int]:
    for part, columns in table.parts.items():
        absent = missing(columns[place])
        if absent.any():
            return ("" if part == "all" else f" of {part}"), int(np.argmax(absent))
    raise AssertionError("no value is missing")


def _refuse_constants(plans: Sequence[ColumnPlan], overrides: Mapping[str, Override], table: Table) -> None:
    constant = [plan.name for plan in plans if plan.kind == "constant" and plan.name not in overrides]
    if constant:
        labels = ", ".join(column_label(table.features, table.features.index(name)) for name in constant)
        value = _joined(table)[constant[0]][0]
        shown = f"{value:g}" if isinstance(value, float | int | np.number) else repr(str(value))
        raise DataError(
            f"{labels} {'is' if len(constant) == 1 else 'are'} constant (value {shown}), so no density exists; remove "
            f"it from the data, or say {_as_told(constant[0], 'drop')}"
        )


def _dependences(
    inspection: Inspection, overrides: Mapping[str, Override], options: TableOptions
) -> dict[str, Dependence]:
    told: dict[str, Dependence] = {}
    for name, found in inspection.dependences.items():
        override = overrides.get(name)
        if _is_dependent(override) and found.dependence is not None:
            told[name] = found.dependence
        elif override is None:
            raise DataError(
                f"column {name!r} is a function of others ({name} = {found.formula}), so no density exists; remove it "
                f"from the data, or say {_as_told(name, 'drop')}"
            )
    return told


def _as_told(name: str, kind: str) -> str:
    return f"--columns {name}={kind} (in Python: columns={{{name!r}: {kind!r}}})"


# ---- Parts


def split_table(table: Table, seed: int, options: TableOptions) -> dict[str, NDArray[np.int64]]:
    """Returns the numbers of the rows of the three parts, as `prepare` splits the table."""
    plans = [plan for plan in inspect_table(table, options).plans if plan.codec is not None]
    return _parts(table, options, plans, seed)


def _parts(table: Table, options: TableOptions, plans: Sequence[ColumnPlan], seed: int) -> dict[str, NDArray[np.int64]]:
    """Returns the numbers of the rows of each part, in the table whose parts are joined."""
    if table.is_split:
        ends = np.cumsum([table.rows(part) for part in PARTS])
        return dict(zip(PARTS, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))
    values = _joined(table)
    named = {
        name: None if column is None else values[column]
        for name, column in (("group", options.group), ("by", options.split_by))
    }
    if all(plan.codec is not None and not plan.codec.numeric for plan in plans) and not any(
        v is not None for v in named.values()
    ):
        count = table.rows("all")  # rows of discrete columns repeat by their nature
        named["group"] = np.arange(count)
    order = split_order([values[plan.name] for plan in plans], seed, **named)
    return dict(zip(PARTS, order, strict=True))


def _joined(table: Table) -> Columns:
    """Returns the columns by name, those of several parts one after the other."""
    parts = [table.parts[part] for part in (PARTS if table.is_split else ("all",))]
    columns = {}
    for place, name in enumerate(table.features):
        pieces = [part[place] for part in parts]
        columns[name] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return columns


def _take(values: Columns, rows: NDArray[Any]) -> Columns:
    return {name: column[rows] for name, column in values.items()}


def _plan_named(plans: Sequence[ColumnPlan], name: str) -> ColumnPlan:
    plan = next((plan for plan in plans if plan.name == name), None)
    if plan is None:
        raise DataError(f"the context column {name!r} cannot be used: it is left out; give it a kind that it has")
    return plan


# ---- Plain numbers


def _is_plain(plan: ColumnPlan, values: Array) -> bool:
    """Tells whether float32 holds a column of numbers as it is, and nothing but a link is to be done."""
    if type(plan.codec) is not Real or plan.codec.step or plan.codec.link["kind"] == "asinh":
        return False
    spacing = float(np.spacing(np.float32(np.abs(values).max())))
    return float(values.std()) >= 100 * spacing


def _plain_dataset(
    name: str,
    own: Sequence[ColumnPlan],
    context: Sequence[ColumnPlan],
    values: Columns,
    parts: Mapping[str, NDArray[np.int64]],
    overrides: Mapping[str, Override],
    compared: bool,
) -> Dataset:
    arrays: dict[str, Any] = {}
    for part, rows in parts.items():
        arrays[part] = to_float32(np.stack([values[plan.name] for plan in own], 1))[torch.from_numpy(rows)]
        if context:
            stacked = to_float32(np.stack([values[plan.name] for plan in context], 1))
            arrays[f"{part}_context"] = stacked[torch.from_numpy(rows)]
    links = None
    if any(plan.name in overrides for plan in own):
        links = tuple(Link(**plan.codec.link) for plan in own if isinstance(plan.codec, Real))
    features, context_features = (tuple(plan.name for plan in chosen) for chosen in (own, context))
    return Dataset(
        name,
        features=features,
        context_features=context_features,
        links=links,
        warned=True,
        _compared=compared,
        **arrays,
    )


def _has_numbers(plan: ColumnPlan) -> bool:
    return plan.codec is not None and plan.codec.numeric and plan.kind != "date"


def _is_dependent(override: Override | None) -> bool:
    return override is not None and override.kind == "dependent"


def _rounding(values: Array) -> float:
    """Returns the size of a column's rounding: half a step of its lattice, or some digits of its type."""
    exact = np.asarray(values, np.float64)
    dtype = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
    digits = 8 * float(np.finfo(dtype).eps) * float(np.abs(exact).max())
    spacing = find_spacing(exact, values.dtype)
    return digits + (
        0.5 * spacing.step if spacing is not None and values.dtype.kind == "f" and not spacing.whole else 0.0
    )


def _warn(text: str) -> None:
    warn_caller(text, DataWarning)
