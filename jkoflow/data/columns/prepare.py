"""The way from a table as it comes to numbers and states to train on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jkoflow.callers import warn_caller
from jkoflow.data.checks import DataError, DataWarning
from jkoflow.data.columns.codec import Array, Floats
from jkoflow.data.columns.decide import decide
from jkoflow.data.columns.inspection import inspect_table, joined
from jkoflow.data.columns.kinds import ColumnPlan
from jkoflow.data.columns.options import TableOptions
from jkoflow.data.columns.refusals import label_of
from jkoflow.data.columns.schema import Coded, Schema
from jkoflow.data.dataset import Dataset
from jkoflow.data.repeats import warn_about_shared_rows
from jkoflow.data.splits import split_order, to_float32
from jkoflow.data.table import PARTS, Table

COPIES, ENOUGH_ROWS = 4, 20_000
"""Times, at most, that a training row is taken, each with noise of its own, until there are enough rows."""

MOST_TOLD = 8
"""Columns whose kinds are told in a line each."""

Columns = dict[str, Array]


@dataclass(frozen=True)
class TableData:
    """A table, prepared for training: its columns, and the numbers and states that they become.

    Arguments:
        numbers: The numbers to train a flow on, given the conditions and the states' indicators; one column of noise if
            no column has numbers, since the masses are all there is then.
        schema: Translation of the columns.
        plans: What was decided about every column, in the table's order, those of the context last.
        columns: The user's columns of the three parts, by name.
        states: States of the parts, each with shape (N, k), without copies.
        conditions: Conditions of the parts, each with shape (N, c), without copies.
        frames: Library of the data frames that samples are, as the rows were, one of `jkoflow.frames.LIBRARIES`; None
            for tensors.
        dtype: Type of the tensors of samples.
    """

    numbers: Dataset
    schema: Schema
    plans: tuple[ColumnPlan, ...]
    columns: Mapping[str, Columns]
    states: Mapping[str, NDArray[np.int64]]
    conditions: Mapping[str, Floats]
    frames: str | None
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Returns the name of the data in reports, as a `Dataset` has it."""
        return self.numbers.name


def prepare(table: Table, name: str, seed: int, options: TableOptions, frames: str | None) -> Dataset | TableData:
    """Prepares a table for training.

    Arguments:
        table: The table.
        name: Name of the data in reports.
        seed: Seed of the split and of the noise.
        options: What the user says about the table.
        frames: Library of the data frames that samples are to be, one of `jkoflow.frames.LIBRARIES`; None for tensors.

    Returns:
        A `Dataset` if all columns are real numbers that need no translation, else a `TableData`.

    Raises:
        DataError: If the data cannot be used; the message tells the fix.
    """
    _check_rows(table)
    found = decide(table, options)
    parts = _parts(table, options, found.plans, seed)
    found.tell()
    plans, own, context, values, overrides = found.plans, found.own, found.context, found.values, found.overrides
    if found.is_plain:
        rows = _plain_rows(own, context, values, parts)
        return Dataset(name, frames=frames, _compared=not table.is_split, **found.fields(), **rows)
    _tell([plan for plan in plans if _is_doubtful(plan, values[plan.name]) and plan.name not in overrides], table)
    if table.is_split:
        warn_about_shared_rows(
            [table.take([table.features.index(plan.name) for plan in plans]).parts[part] for part in PARTS]
        )
    schema = Schema(
        tuple(plan.name for plan in own),
        tuple(None if plan.name in found.dependences else plan.codec for plan in own),
        tuple(plan.name for plan in context),
        tuple(plan.codec for plan in context if plan.codec is not None),
        found.dependences,
    )
    return encode_table(
        name, schema, (*own, *context), {part: _take(values, rows) for part, rows in parts.items()}, seed, frames
    )


def _check_rows(table: Table) -> None:
    """Refuses a table, or a part of one, without rows."""
    empty = [part for part in table.parts if table.rows(part) == 0]
    if empty == ["all"]:
        raise DataError("the table has 0 rows; give at least 10, so that each part of its split gets one")
    if empty:
        raise DataError(f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty; give at least one row")


def encode_table(
    name: str,
    schema: Schema,
    plans: tuple[ColumnPlan, ...],
    columns: Mapping[str, Columns],
    seed: int,
    frames: str | None,
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
    types = {values.dtype for values in columns["train"].values()}
    single = all(kind.kind == "f" and kind.itemsize <= 4 for kind in types)
    dtype = torch.float32 if single else torch.float64
    features = tuple(schema.features[place] for place in schema.numeric) or ("noise",)
    width = tensors["train_context"].shape[1]
    if not schema.numeric or width == 0:
        for part in PARTS:
            del tensors[f"{part}_context"]
        width = 0
    given_names = tuple(f"given{place}" for place in range(width))
    numbers = Dataset(
        name,
        origin=json.dumps(schema.describe()),
        features=features,
        context_features=given_names,
        prepared=True,
        warned=True,
        _compared=True,
        **tensors,
    )
    return TableData(numbers, schema, plans, columns, states, conditions, frames, dtype)


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


def _is_doubtful(plan: ColumnPlan, values: Array) -> bool:
    """Tells whether a column of numbers is taken for something else than real numbers."""
    return values.dtype.kind in "fiu" and plan.kind not in ("real", "log", "logit")


def _tell(plans: Sequence[ColumnPlan], table: Table) -> None:
    """Warns of the kinds that were found, column by column, and of many columns in one line."""
    for plan in plans[:MOST_TOLD]:
        label = label_of(table, plan.name)
        _warn(f"{label} is taken for {plan.kind}: {plan.reason}; {plan.treatment}")
    if len(plans) > MOST_TOLD:
        rest = ", ".join(f"{plan.name} ({plan.kind})" for plan in plans[MOST_TOLD:])
        _warn(f"{len(plans) - MOST_TOLD} more columns are taken for other kinds than real: {rest}")


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
    values = joined(table)
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


def _take(values: Mapping[str, Array], rows: NDArray[Any]) -> Columns:
    return {name: column[rows] for name, column in values.items()}


# ---- Plain numbers


def _plain_rows(
    own: Sequence[ColumnPlan],
    context: Sequence[ColumnPlan],
    values: Mapping[str, Array],
    parts: Mapping[str, NDArray[np.int64]],
) -> dict[str, Any]:
    """Returns the rows and the context of each part, under their names in a `Dataset`."""
    arrays: dict[str, Any] = {}
    for suffix, chosen in (("", own), ("_context", context)):
        if chosen:
            stacked = to_float32(np.stack([values[plan.name] for plan in chosen], 1))
            arrays |= {f"{part}{suffix}": stacked[torch.from_numpy(rows)] for part, rows in parts.items()}
    return arrays


def _warn(text: str) -> None:
    warn_caller(text, DataWarning)
