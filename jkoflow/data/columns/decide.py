"""What is decided about a table before it is split: the columns that are used, and as what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jkoflow.callers import warn_caller
from jkoflow.data.checks import DataError, DataWarning, warn_about_digits
from jkoflow.data.columns.codec import Array, missing
from jkoflow.data.columns.inspection import inspect_table, joined
from jkoflow.data.columns.kinds import ColumnPlan
from jkoflow.data.columns.numbers import Real
from jkoflow.data.columns.options import TableOptions
from jkoflow.data.columns.override import Override
from jkoflow.data.columns.refusals import chosen_dependences, label_of, refuse_constants, refuse_missing
from jkoflow.data.columns.schema import Dependence
from jkoflow.data.table import Column, Table
from jkoflow.links import Link


@dataclass(frozen=True)
class Decided:
    """What is decided about the columns of a table that can be used."""

    table: Table
    options: TableOptions
    inspected: tuple[ColumnPlan, ...]
    """The plans of all columns."""
    plans: list[ColumnPlan]
    """Those of the columns that are not left out."""
    own: list[ColumnPlan]
    """Those of the columns that have a density."""
    context: list[ColumnPlan]
    """Those of the conditioning variables."""
    values: Mapping[str, Column]
    """All columns by name."""
    dependences: Mapping[str, Dependence]
    """Columns that are functions of others."""
    overrides: Mapping[str, Override]
    """What the user says about columns, by name."""

    def fields(self) -> dict[str, Any]:
        """Returns what a `Dataset` of plain columns is told beside its rows."""
        return {
            "features": tuple(plan.name for plan in self.own),
            "context_features": tuple(plan.name for plan in self.context),
            "links": _told_links(self.own, self.overrides),
            "context_links": _told_links(self.context, self.overrides),
            "warned": True,
        }

    @property
    def is_plain(self) -> bool:
        """Tells whether all columns are real numbers that need no translation."""
        return not self.dependences and not self.others

    @property
    def others(self) -> list[ColumnPlan]:
        """Returns the plans of the columns that need a translation."""
        return [plan for plan in self.plans if not _is_plain(plan, self.values[plan.name])]

    def tell(self) -> None:
        """Warns of columns that are left out, and of those that lose digits."""
        for plan in self.inspected:
            if plan.codec is None and plan.reason != "as told" and plan.name not in self._labels:
                _warn(f"{label_of(self.table, plan.name)} is {plan.reason}: {plan.treatment}")
        for plan in self.plans:
            values = self.values[plan.name]
            if values.dtype.kind == "f" and values.dtype.itemsize <= 4:
                warn_about_digits(values[~missing(values)], label_of(self.table, plan.name))

    @property
    def _labels(self) -> tuple[str | None, str | None]:
        return self.options.group, self.options.split_by


def decide(table: Table, options: TableOptions) -> Decided:
    """Decides about the columns of a table, and refuses what cannot be used.

    Raises:
        DataError: If the data cannot be used; the message tells the fix.
    """
    inspection = inspect_table(table, options)
    overrides = inspection.overrides
    plans = [plan for plan in inspection.plans if plan.codec is not None]
    context = [_plan_named(plans, column) for column in options.context_columns]
    own = [plan for plan in plans if plan.name not in options.context_columns]
    if not own:
        refuse_missing(table, [plan.name for plan in inspection.plans if plan.reason != "as told"])
        raise DataError("no column is left to have a density; not all columns can be context or left out")
    if all(plan.kind == "constant" for plan in own):
        raise DataError(f"has no column that varies (it has {', '.join(repr(plan.name) for plan in own)}); give others")
    values = joined(table)
    if options.missing == "refuse":
        refuse_missing(table, [plan.name for plan in plans])
    refuse_constants(plans, overrides, table, values)
    dependences = chosen_dependences(inspection.dependences, overrides, values)
    return Decided(table, options, inspection.plans, plans, own, context, values, dependences, overrides)


def _plan_named(plans: Sequence[ColumnPlan], name: str) -> ColumnPlan:
    plan = next((plan for plan in plans if plan.name == name), None)
    if plan is None:
        raise DataError(f"the context column {name!r} cannot be used: it is left out; give it a kind that it has")
    return plan


def _is_plain(plan: ColumnPlan, values: Array) -> bool:
    """Tells whether float32 holds a column of numbers as it is, and nothing but a link is to be done."""
    if type(plan.codec) is not Real or plan.codec.step:
        return False
    spacing = float(np.spacing(np.float32(np.abs(values).max())))
    return float(values.std()) >= 100 * spacing


def _told_links(plans: Sequence[ColumnPlan], overrides: Mapping[str, Override]) -> tuple[Link | None, ...] | None:
    """Returns the links of the columns whose kinds are told; those of the others are chosen."""
    told = [plan.codec if plan.name in overrides else None for plan in plans]
    links = tuple(Link(**codec.link) if isinstance(codec, Real) else None for codec in told)
    return links if any(link is not None for link in links) else None


def _warn(text: str) -> None:
    warn_caller(text, DataWarning)
