"""Rows that a model of a table cannot have: values of another type, missing ones, and values with density zero."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.checks import DataError
from jkoflow.data.columns.codec import Array, Category, Codec, Count, Lattice, lattice_places, missing
from jkoflow.data.columns.numbers import Constant, Date, Mixed, Real, Weekly, days
from jkoflow.data.columns.schema import Dependence, Schema


class Impossible(NamedTuple):
    """Values of a column whose density is zero."""

    rows: NDArray[np.bool_]
    """Which rows have such a value, with shape (N,)."""
    why: str
    """Why the first of them has density zero."""


def fitting_columns(schema: Schema, columns: Mapping[str, Array]) -> dict[str, Array]:
    """Returns columns (N,) by name in types that the schema can encode.

    Raises:
        DataError: If a column holds values of another type, or misses values that the training had.
    """
    codecs = dict(zip(schema.features, schema.codecs, strict=True))
    codecs |= dict(zip(schema.context_features, schema.context_codecs, strict=True))
    found = {name: _fitting(name, values, codecs[name]) for name, values in columns.items()}
    counts = {name: missing(values) for name, values in found.items() if not _takes_missing(codecs[name])}
    counts = {name: absent for name, absent in counts.items() if absent.any()}
    if counts:
        name, absent = next(iter(counts.items()))
        count = sum(int(absent.sum()) for absent in counts.values())
        others = "" if len(counts) == 1 else f", also in {', '.join(map(repr, list(counts)[1:]))}"
        raise DataError(
            f"NaN in row {int(np.argmax(absent))} (counting from 0), column {name!r} ({count} such "
            f"value{'s' if count > 1 else ''}{others}), where the training had none; drop or impute these rows, or "
            "train on rows with missing values and missing = 'indicator' (--missing indicator)"
        )
    return found


def impossible_values(schema: Schema, columns: Mapping[str, Array]) -> dict[str, Impossible]:
    """Finds the values that have density zero whatever the rest of their row is.

    Arguments:
        schema: The schema.
        columns: The columns by name, as `fitting_columns` returns them.

    Returns:
        The columns that have such values, by name.
    """
    found = {}
    for name, codec in zip(schema.features, schema.codecs, strict=True):
        values = columns[name]
        if codec is None:
            dependence = schema.dependences[name]
            off = np.abs(np.asarray(values, float) - dependence.value(columns))
            rows = ~(off <= dependence.tolerance)
        else:
            rows = codec.encode(values, np.full(len(values), 0.5)).states < 0
        if rows.any():
            first = values[int(np.argmax(rows))]
            why = _formula(schema.dependences[name]) if codec is None else _why(codec, first)
            found[name] = Impossible(rows, f"{_shown(first)} {why}")
    return found


def _fitting(name: str, values: Array, codec: Codec | None) -> Array:
    if isinstance(codec, Category | Constant):
        return values
    wanted, what = ("M", "dates") if isinstance(codec, Date) else ("fiub", "numbers")
    if values.dtype.kind in wanted:
        return values
    absent = missing(values)
    if absent.all():
        return np.full(len(values), "NaT", "datetime64[us]") if wanted == "M" else np.full(len(values), np.nan)
    row = _odd_one(values, absent)
    raise DataError(
        f"column {name!r} must hold {what}, as in the training, got {_shown(values[row])} in row {row} (counting from "
        "0); correct it"
    )


def _odd_one(values: Array, absent: NDArray[np.bool_]) -> int:
    """Returns the row of the first value that is written in another form than most, or else of the first value."""
    forms = np.array([re.sub("[0-9]", "0", str(value)) for value in values.tolist()])
    kinds, counts = np.unique(forms[~absent], return_counts=True)
    odd = ~absent & (forms != kinds[int(np.argmax(counts))])
    return int(np.argmax(odd if odd.any() else ~absent))


def _takes_missing(codec: Codec | None) -> bool:
    inner = codec.base if isinstance(codec, Date) else codec
    if isinstance(inner, Mixed):
        return inner.has_missing
    if isinstance(inner, Category):
        return None in inner.levels
    return isinstance(inner, Constant) and inner.value is None


def _why(codec: Codec, value: Any) -> str:
    """Returns why a value has density zero, as the end of a sentence."""
    if isinstance(codec, Weekly):
        return _why(codec.base, codec.lines(np.array([value]))[1][0])
    if isinstance(codec, Date):
        return _why(codec.base, days(np.array([value]))[0])
    if isinstance(codec, Mixed):
        return _why(codec.base, value)
    if isinstance(codec, Category):
        return "is a category that the training never had"
    if isinstance(codec, Constant):
        return f"is not {codec.value!r}, the one value that the training had"
    number = float(value)
    step = codec.step if isinstance(codec, Real | Count | Lattice) else 0.0
    if step and not lattice_places(np.array([number]), codec.first, step)[1][0]:  # type: ignore[attr-defined]
        return f"is off the lattice of steps of {step:g} that all values of the training lie on"
    edges = codec.link if isinstance(codec, Real) else {"lower": codec.first}  # type: ignore[attr-defined]
    if number <= edges.get("lower", -np.inf):
        return f"is beyond the edge {edges['lower']:g} of the column"
    if number >= edges.get("upper", np.inf):
        return f"is beyond the edge {edges['upper']:g} of the column"
    return "is too far outside the training data"


def _formula(dependence: Dependence) -> str:
    terms = " + ".join(f"{a:g} {name}" for a, name in zip(dependence.coefficients, dependence.sources, strict=True))
    return f"is not {dependence.intercept:g} + {terms}, as it was in the training"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else repr(str(value))
