"""What a user says about columns: their kinds, instead of those that are found."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jkoflow.data.checks import DataError
from jkoflow.data.columns.codec import Floats
from jkoflow.data.ordered_values import OrderedValues
from jkoflow.links import Link

KINDS = {
    "real": "any real number",
    "log": "greater than an edge, 0 or log:EDGE",
    "logit": "between two edges, those found or logit:LOW:HIGH",
    "asinh": "real, spread over orders of magnitude on both sides of its median",
    "integer": "whole numbers, such as counts",
    "grid": "multiples of a step, that found or grid:STEP",
    "category": "names, or numbers that are names",
    "boolean": "true or false",
    "date": "dates",
    "constant": "one value, that samples repeat",
    "dependent": "a function of other columns, that samples repeat",
    "drop": "left out",
}
"""The kinds that a user may name, and what they stand for."""

OTHERS = "*"
"""Stands for all columns that have no kind of their own."""

ARGUMENTS = {"log": (0, 1), "logit": (0, 2), "grid": (0, 1)}
"""Numbers of arguments that a kind allows; no others have any."""


@dataclass(frozen=True)
class Override:
    """The kind that a user gives to a column."""

    kind: str
    """One of `KINDS`."""
    arguments: tuple[float, ...] = ()
    """Edges or step."""
    spikes: bool = False
    """Whether repeated values are states of their own."""


def parse_override(column: str, text: str) -> Override:
    """Reads a kind as it is written: ``integer``, ``logit:0:100``, ``log+spikes``.

    Raises:
        DataError: If the kind is unknown or its arguments are wrong.
    """
    body, plus, extra = str(text).strip().partition("+")
    kind, *rest = body.split(":")
    if kind not in KINDS or (plus and extra != "spikes"):
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean {near[0]}? " if near and near[0] != kind else ""
        raise DataError(
            f"the kind of column {column!r} must be one of {', '.join(KINDS)}, perhaps with +spikes, got {text!r}"
            f"{'; ' + hint.strip() if hint else ''}"
        )
    try:
        arguments = tuple(float(number) for number in rest)
    except ValueError as error:
        raise DataError(f"the kind of column {column!r} has edges or a step that are not numbers: {text!r}") from error
    if len(arguments) not in ARGUMENTS.get(kind, (0,)) or sorted(set(arguments)) != list(arguments):
        raise DataError(f"the kind {kind} of column {column!r} is {KINDS[kind]}; got {text!r}")
    if kind == "grid" and arguments and not arguments[0] > 0:
        raise DataError(f"the step of column {column!r} must be positive, got {text!r}")
    if plus and kind not in ("real", "log", "logit", "asinh"):
        raise DataError(f"+spikes is for real numbers: real, log, logit or asinh; column {column!r} got {text!r}")
    return Override(kind, arguments, bool(plus))


def parse_overrides(columns: Mapping[str, str], features: Sequence[str]) -> dict[str, Override]:
    """Reads the kinds of columns by name; that of ``*`` goes for all columns without a kind of their own.

    Raises:
        DataError: If there is no such column, or a kind is wrong.
    """
    for name in columns:
        if name not in features and name != OTHERS:
            near = difflib.get_close_matches(str(name), features, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"there is no column {name!r} to be a {columns[name]}; {hint}there are {_some(features)}")
    own = {name: text for name, text in columns.items() if name != OTHERS or name in features}
    rest = dict.fromkeys(features, columns[OTHERS]) if len(own) < len(columns) else {}
    return {name: parse_override(name, text) for name, text in (rest | own).items()}


def told_link(override: Override, label: str, values: Floats, found: Link) -> Link:
    """Returns the link of a kind of real numbers, with the edges that are told or were found.

    Arguments:
        override: What the user says; its kind is real, log, logit or asinh.
        label: What messages call the column.
        values: Values of the column that are no spikes, with shape (N,).
        found: The link that would be chosen for them.

    Raises:
        DataError: If values are not between the edges.
    """
    low, high = float(values.min()), float(values.max())
    if override.kind == "log":
        edge = override.arguments[0] if override.arguments else (found.lower if found.kind == "log" else 0.0)
        if not low > edge:
            raise DataError(
                f"{label} has values down to {low:g}, not above the edge {edge:g}; give log:EDGE, log+spikes if the "
                "edge is repeated, or real"
            )
        return Link("log", lower=edge)
    if override.kind == "logit":
        edges = override.arguments
        if not edges:
            edges = (found.lower, found.upper) if found.kind == "logit" else (0.0, 1.0 if high < 1 else 100.0)
        if not edges[0] < low <= high < edges[1]:
            raise DataError(
                f"{label} has values from {low:g} to {high:g}, not between the edges {edges[0]:g} and {edges[1]:g}; "
                "give logit:LOW:HIGH, logit+spikes if an edge is repeated, or real"
            )
        return Link("logit", lower=edges[0], upper=edges[1])
    if override.kind == "asinh":
        ordered = OrderedValues.of(values)
        return Link("asinh", centre=ordered.quantile(0.5), scale=ordered.spread or float(values.std()) or 1.0)
    return Link("real")


def split_overrides(text: str) -> dict[str, str]:
    """Reads what the command line gives as ``age=integer,income=log``.

    Raises:
        DataError: If a part is not of that form.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, kind = part.rpartition("=")
        if not (equals and name.strip() and kind.strip()):
            raise DataError(f"--columns must be given as name=kind,name=kind, got {part.strip()!r}")
        found[name.strip()] = kind.strip()
    return found


def _some(names: Sequence[str], most: int = 20) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ..."
