"""What kind of column each column is, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jkoflow.data.checks import DataError
from jkoflow.data.columns.codec import (
    REPEATED,
    Array,
    Category,
    Codec,
    Count,
    Floats,
    Lattice,
    factorise,
    fit_lattice,
    is_sparse,
    missing,
)
from jkoflow.data.columns.lattice import FINE, Spacing, find_spacing, tail_ratio
from jkoflow.data.columns.numbers import Constant, Date, Mixed, Real, Weekly, days, weeks, without_cells
from jkoflow.data.columns.override import Override, told_link
from jkoflow.data.columns.spikes import (
    LEAST_OTHERS,
    MOST_SPIKES,
    bounded_by,
    far_codes,
    frequent_values,
    values_apart,
)
from jkoflow.data.columnwise import distinct_values
from jkoflow.data.continuous import Scale, choose_link
from jkoflow.links import Link

FEW_VALUES = 20
"""Largest number of different numbers that are taken for the names of things."""

MOST_COUNTS = 32
"""Largest number of equally spaced values of which each is a state of its own."""

MOST_LEVELS = 100
"""Largest number of different texts that are taken for categories."""

CLEAR = 20
"""Steps that a fine lattice keeps away from an edge, so that its cells are narrow there, too."""

LEAST_WEEKS, WEEKLY = 4, 50.0
"""Dates have a weekly pattern if they span so many weeks and chi-squared of the days of the week, which has six degrees
of freedom, is so large; by chance it is in one of 10^8 cases."""

_IDENTIFIER = re.compile(r"(?i:(^|[_\W])(id|uuid|key|nr|no))$|[a-z](Id|ID)$")

UNITS = ("D", "h", "m", "s", "ms", "us")
"""Units of dates, the coarsest first."""


@dataclass(frozen=True)
class ColumnPlan:
    """What is found out and decided about a column."""

    name: str
    codec: Codec | None
    """Translation of the column; None if it is left out."""
    kind: str
    """Name of the kind, as the user may write it."""
    reason: str
    """Why the column is taken for that kind, in a few words."""
    treatment: str
    """What is done with it, in a few words."""
    robust: bool = False
    """Whether the column has outliers or tails that mean and deviation would mislead about."""


class _Decision:
    """The kind of one column, from all its values; numbers are estimated from the training values alone."""

    def __init__(self, name: str, label: str, values: Array, fit: NDArray[Any], override: Override | None) -> None:
        self.name, self.label, self.override = name, label, override
        self.absent = missing(values)
        self.values, self.dtype = values[~self.absent], values.dtype
        self.fit = self.values if fit is None else values[fit][~self.absent[fit]]
        self.has_missing = bool(self.absent.any())

    def plan(self) -> ColumnPlan:
        kind = None if self.override is None else self.override.kind
        if kind == "drop":
            return ColumnPlan(self.name, None, "drop", "as told", "left out")
        if len(self.values) == 0:
            return ColumnPlan(self.name, None, "drop", "no value at all", "left out")
        if kind == "constant" or (kind is None and self._is_constant()):
            return self._constant()
        if kind in ("category", "boolean") and self.dtype.kind != "M":
            return self._names(kind)
        if self.dtype.kind == "b":
            self._refuse_numbers(kind)
            return self._category("true or false", "boolean")
        if self.dtype.kind == "O":
            return self._text(kind)
        if self.dtype.kind == "M":
            return self._date(kind)
        return self._numbers(np.asarray(self.values, np.float64), np.asarray(self.fit, np.float64), None)

    # ---- Kinds without numbers

    def _is_constant(self) -> bool:
        return not self.has_missing and len(factorise(self.values)[0]) == 1

    def _constant(self) -> ColumnPlan:
        levels = factorise(self.values)[0]
        if len(levels) > 1 or self.has_missing:
            raise DataError(
                f"{self.label} is not constant: it has {len(levels) + self.has_missing} different values; "
                "leave its kind out, or drop it"
            )
        value = levels[0] if self.dtype.kind != "M" else str(self.values[0])
        return ColumnPlan(
            self.name,
            Constant(value, self.dtype.kind == "M"),
            "constant",
            "one value in all rows",
            "repeated by samples",
        )

    def _category(self, reason: str, kind: str = "category") -> ColumnPlan:
        levels = factorise(self.values)[0]
        levels.sort(key=lambda level: (isinstance(level, str), level))
        if self.has_missing:
            levels.append(None)
        return ColumnPlan(self.name, Category(levels), kind, reason, f"{len(levels)} states with masses of their own")

    def _names(self, kind: str) -> ColumnPlan:
        levels = factorise(self.values)[0]
        if kind == "boolean" and len(levels) > 2:
            raise DataError(
                f"{self.label} is not true or false: it has {len(levels)} different values; give category, or drop it"
            )
        return self._category("as told")

    def _refuse_numbers(self, kind: str | None) -> None:
        if kind is not None:
            raise DataError(f"{self.label} is true or false, which cannot be {kind}; make numbers of it or drop it")

    def _text(self, kind: str | None) -> ColumnPlan:
        levels = factorise(self.values)[0]
        if set(map(type, levels)) == {bool}:
            self._refuse_numbers(kind)
            return self._category("true or false", "boolean")
        if kind is not None:
            raise DataError(
                f"{self.label} is text, such as {levels[0]!r}, which cannot be {kind}; correct it or drop it"
            )
        if len(levels) > min(MOST_LEVELS, max(2, len(self.values) // 2)):
            reason = f"text with {len(levels)} different values, an identifier or free text"
            return ColumnPlan(self.name, None, "drop", reason, f"left out; {self.name}=category takes it in")
        return self._category(f"text with {len(levels)} different values")

    def _date(self, kind: str | None) -> ColumnPlan:
        if kind not in (None, "date"):
            raise DataError(f"{self.label} holds dates, which cannot be {kind}; make numbers of them or drop it")
        ticks = self.values.astype("datetime64[us]")
        unit = next(
            unit for unit in UNITS if unit == "us" or bool((ticks.astype(f"datetime64[{unit}]") == ticks).all())
        )
        step = float(np.timedelta64(1, unit) / np.timedelta64(1, "D"))
        inner = self._numbers(days(self.values), days(self.fit), step if unit == "D" else None)
        assert inner.codec is not None
        weekly = self._weekly(inner.codec, unit)
        shown = ticks.astype("datetime64[D]" if unit == "D" else "datetime64[s]")
        reason = f"dates from {shown.min()} to {shown.max()}"
        if weekly is not None:
            treatment = "the day of the week is a state of its own; the weeks are numbers"
            return ColumnPlan(self.name, weekly, "date", f"{reason}, with a weekly pattern", treatment)
        return ColumnPlan(self.name, Date(inner.codec, unit), "date", reason, f"days: {inner.treatment}", inner.robust)

    def _weekly(self, plain: Codec, unit: str) -> Weekly | None:
        """Returns the codec of dates of which some days of the week are more frequent; None if there is no pattern."""
        exact = days(self.values)
        origin = float(np.floor(exact.min()))
        if not isinstance(plain, Real | Lattice) or np.ptp(exact) < 7 * LEAST_WEEKS or is_sparse(np.floor(exact), 1.0):
            return None
        lines, (weekdays, fit_lines) = weeks(exact - origin)[1], weeks(days(self.fit) - origin)
        counts = np.bincount(weekdays, minlength=7)
        excess = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        if excess < WEEKLY:
            return None
        spacing = None if unit != "D" else find_spacing(lines, self.dtype, 1.0)
        if spacing is not None and spacing.fineness <= FINE:
            return Weekly(fit_lattice(fit_lines, spacing.first, spacing.step, natural=False), unit, origin)
        codec = self._real(lines, fit_lines, [], spacing).codec
        return None if codec is None else Weekly(codec, unit, origin)

    # ---- Numbers

    def _numbers(self, values: Floats, fit: Floats, step: float | None) -> ColumnPlan:
        override = self.override
        kind = None if override is None else override.kind
        if kind == "date" and self.dtype.kind == "M":
            kind = None
        if kind == "date":
            raise DataError(f"{self.label} holds numbers, not dates; give dates as text such as 2024-05-31, or drop it")
        if kind in ("real", "log", "logit", "asinh"):
            assert override is not None
            spikes = self._told_spikes(values) if override.spikes else []
            return self._mixed(self._real(values, fit, spikes, None), spikes)
        distinct = distinct_values(values)
        given = override.arguments[0] if override is not None and override.arguments else None
        spacing = find_spacing(values, self.dtype, given if kind == "grid" else step)
        if kind == "integer" and (spacing is None or not spacing.whole):
            raise DataError(
                f"{self.label} has values that are not whole, such as {_first_broken(distinct):g}; give grid or real"
            )
        if kind == "grid" and spacing is None:
            raise DataError(f"{self.label} is not a grid: its values are no multiples of {given or 'a common step'}")
        if kind is None and spacing is not None and not self._matters(values, distinct, spacing):
            spacing = None
        if kind is None and len(distinct) == 2 and len(values) >= 10:
            return self._category("two different numbers")
        if kind is None and self._are_names(values, spacing):
            return self._category(f"only {len(distinct)} different numbers, irregularly spaced")
        if kind is None and spacing is not None and self._identifies(distinct, spacing):
            reason = "whole numbers that are all different, under the name of an identifier"
            return ColumnPlan(self.name, None, "drop", reason, f"left out; {self.name}=integer takes it in")
        if spacing is not None:
            return self._spaced(values, fit, spacing)
        spikes = frequent_values(values, spacing is not None)
        return self._mixed(self._real(values, fit, spikes, None), spikes)

    def _identifies(self, distinct: Floats, spacing: Spacing) -> bool:
        """Tells whether a column of whole numbers tells the rows from each other, and is named so."""
        return spacing.whole and len(distinct) == len(self.values) > REPEATED and bool(_IDENTIFIER.search(self.name))

    def _told_spikes(self, values: Floats) -> list[float]:
        """Returns the repeated values of a column that is said to have some, on a lattice or off it."""
        spacing = find_spacing(values, self.dtype)
        apart = [] if spacing is None else values_apart(values, spacing.step)
        found = sorted({*frequent_values(values, False), *apart})[:MOST_SPIKES]
        if not found:
            raise DataError(f"{self.label} has no value that far more rows share than others; leave +spikes out")
        return found

    def _are_names(self, values: Floats, spacing: Spacing | None) -> bool:
        """Tells whether a column has so few, often repeated and irregularly spaced numbers that they are names."""
        if self.dtype.kind == "M":
            return False  # other dates will come
        distinct, counts = np.unique(values, return_counts=True)
        codes = far_codes(distinct, counts)
        if codes and len(counts) - len(codes) >= LEAST_OTHERS:
            rest = values[~np.isin(values, codes)]
            return self._are_names(rest, find_spacing(rest, self.dtype))
        if len(counts) * 10 > len(values) or float(np.median(counts)) < REPEATED:
            return False  # among rare values there may be more that have not been seen
        if spacing is None:
            return len(counts) <= FEW_VALUES
        if len(counts) <= FEW_VALUES and counts.min() >= REPEATED:
            return len(counts) * 2 <= spacing.cells
        return len(counts) <= MOST_LEVELS and is_sparse(values, spacing.step) and spacing.fineness > FINE

    def _matters(self, values: Floats, distinct: Floats, spacing: Spacing) -> bool:
        """Tells whether a lattice is coarse enough for its values to be masses, or one of whole numbers."""
        if spacing.whole:
            return True
        if len(distinct) * 5 > len(values) * 4:
            return False  # hardly a value repeats
        return (
            spacing.fineness <= FINE or len(frequent_values(values, spacing is not None, MOST_SPIKES + 1)) > MOST_SPIKES
        )

    def _spaced(self, values: Floats, fit: Floats, spacing: Spacing) -> ColumnPlan:
        kind = "integer" if spacing.whole and spacing.step == 1 else "grid"
        reason = f"{spacing.words} from {spacing.first:g} to {values.max():g}"
        natural = spacing.first in (0.0, spacing.step)
        if spacing.cells <= MOST_COUNTS:
            codec: Codec = Count(spacing.first, spacing.step, spacing.cells, not natural, tail_ratio(fit, spacing))
            states = f"{codec.states} states with masses of their own"
            if not self.has_missing:
                return ColumnPlan(self.name, codec, kind, reason, states)
            codec = Category([*factorise(values)[0], None])
            return ColumnPlan(self.name, codec, f"{kind}+missing", reason, states)
        heaped = len(frequent_values(values, spacing is not None, MOST_SPIKES + 1)) > MOST_SPIKES
        spikes = [] if heaped else values_apart(values, spacing.step)
        rest, rest_fit = (part[~np.isin(part, spikes)] for part in (values, fit))
        rest_fit = rest_fit if len(rest_fit) else rest
        natural = float(rest.min()) in (0.0, spacing.step)
        rest, rest_fit = (without_cells(part, spikes, spacing.step) for part in (rest, rest_fit))
        spacing = spacing._replace(first=float(rest.min()))
        if spacing.fineness > FINE and not heaped and not is_sparse(rest, spacing.step):
            plan = self._real(rest, rest_fit, [], spacing, spikes)
            if isinstance(plan.codec, Real) and _is_clear(plan.codec, rest):
                return self._mixed(ColumnPlan(self.name, plan.codec, kind, reason, plan.treatment, plan.robust), spikes)
        codec = fit_lattice(rest_fit, spacing.first, spacing.step, natural)
        plan = ColumnPlan(self.name, codec, kind, reason, "cells filled with noise, the masses are integrals over them")
        return self._mixed(plan, spikes)

    def _real(
        self,
        values: Floats,
        fit: Floats,
        spikes: list[float],
        spacing: Spacing | None,
        bounds: list[float] | None = None,
    ) -> ColumnPlan:
        """Plans real numbers beside spikes; bounds are the spikes of a lattice, which values and fit are without."""
        override = self.override
        told = override is not None and override.kind in ("real", "log", "logit", "asinh")
        rest, rest_fit = values[~np.isin(values, spikes)], fit[~np.isin(fit, spikes)]
        rest_fit = rest_fit if len(np.unique(rest_fit)) > 1 else rest
        choice = choose_link(rest)
        link, reason, robust = choice.link, choice.reason, choice.scale is not Scale.MOMENTS
        step = 0.0 if spacing is None else spacing.step
        bound = bounded_by(rest, spikes if bounds is None else bounds, step) if link.kind in ("real", "asinh") else None
        if bound is not None:
            link, robust, reason = bound, False, "all other values lie beside a repeated one that is a bound"
        if told:
            assert override is not None
            link, robust = told_link(override, self.label, rest, link), robust or override.kind == "asinh"
            reason = "as told"
        if (
            link.kind == "asinh" and not told
        ) or self.dtype.kind == "M":  # the flow finds tails by itself; later dates will come
            link = Link("real")
        linked = _through(link, rest_fit)
        centre, scale = float(np.median(linked)), float(np.subtract(*np.quantile(linked, (0.75, 0.25)))) / 1.349
        if not robust or scale <= 0:
            centre, scale = float(linked.mean()), float(linked.std())
        description = link.describe()
        kind = {"log": "log", "reflected": "log", "logit": "logit", "asinh": "asinh"}.get(link.kind, "real")
        treatment = {"real": "scaled", "log": "logarithm, scaled", "logit": "logit, scaled", "asinh": "asinh, scaled"}[
            kind
        ]
        first = 0.0 if spacing is None else spacing.first
        codec = Real(description, centre, scale or 1.0, first, step)
        return ColumnPlan(self.name, codec, kind, reason, treatment, robust)

    def _mixed(self, plan: ColumnPlan, spikes: list[float]) -> ColumnPlan:
        """Returns the plan with states for repeated and for missing values."""
        if not spikes and not self.has_missing:
            return plan
        assert plan.codec is not None
        share = float(np.isin(self.values, spikes).mean()) if spikes else 0.0
        shown = ", ".join(f"{value:g}" for value in spikes)
        reason = plan.reason + (f"; {share:.2%} of the rows are exactly {shown}" if spikes else "")
        extra = f"{'+spikes' if spikes else ''}{'+missing' if self.has_missing else ''}"
        treatment = f"{plan.treatment}; {'repeated' if spikes else 'missing'} values are states of their own"
        codec = Mixed(plan.codec, spikes, self.has_missing)
        return ColumnPlan(self.name, codec, plan.kind + extra, reason, treatment, plan.robust)


def plan_column(
    name: str,
    label: str,
    values: Array,
    fit: NDArray[Any] | None = None,
    override: Override | None = None,
) -> ColumnPlan:
    """Decides what kind a column is and how it is translated.

    Arguments:
        name: Name of the column.
        label: What messages call it.
        values: All its values, with shape (N,), NaN or None where one is missing.
        fit: Numbers of the rows that masses, centres and scales are estimated from; all if None.
        override: What the user says about it.

    Raises:
        DataError: If the values do not fit what the user says.
    """
    rows = np.arange(len(values)) if fit is None else fit
    return _Decision(name, label, values, rows, override).plan()


def _is_clear(codec: Real, rest: Floats) -> bool:
    """Tells whether no cell of a fine lattice is near an edge, where its width would matter."""
    gaps = [rest.min() - codec.link.get("lower", -np.inf), codec.link.get("upper", np.inf) - rest.max()]
    return min(gaps) >= CLEAR * codec.step


def _through(link: Link, values: Floats) -> Floats:
    return link.forward(torch.from_numpy(values.copy()))[0].numpy()


def _first_broken(distinct: Floats) -> float:
    return float(distinct[np.argmax(distinct != np.floor(distinct))])
