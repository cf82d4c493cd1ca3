"""What values of each column the training has seen, and which values of other rows lie outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.data.columns.codec import Category, Codec, Count, factorise, missing
from jkoflow.data.columns.numbers import Constant, Date, Mixed
from jkoflow.data.columns.schema import Schema
from jkoflow.data.table import Column
from jkoflow.mapped import gather, parts

QUANTILES = 33
"""Number of quantiles, from the least to the largest value."""

MOST_ROWS = 50_000
"""Rows from which the inner quantiles are taken; the least and the largest value are those of all rows."""


def quantiles(values: Column) -> list[Any]:
    """Returns `QUANTILES` of values (N,), all of them values that occur; dates as ISO text, none if all are missing."""
    known = values[~missing(values)]
    if len(known) == 0:
        return []
    return _quantiles(known[:: len(known) // MOST_ROWS + 1], known.min(), known.max())


def quantiles_of_columns(rows: Tensor) -> list[list[Any]]:
    """Returns the `quantiles` of every column of rows (N, d), of which none is missing."""
    some = gather(rows, torch.arange(0, len(rows), len(rows) // MOST_ROWS + 1))
    ends = torch.stack([torch.stack(part.aminmax(dim=0)) for part in parts(rows)])
    columns = some.numpy().T, ends[:, 0].amin(0).numpy(), ends[:, 1].amax(0).numpy()
    return [_quantiles(*column) for column in zip(*columns, strict=True)]


def _quantiles(some: Column, least: Any, largest: Any) -> list[Any]:
    some = np.sort(some)
    found = some[np.rint(np.linspace(0, len(some) - 1, QUANTILES)).astype(int)]
    found[[0, -1]] = least, largest
    return np.datetime_as_string(found).tolist() if found.dtype.kind == "M" else found.tolist()


def seen_values(values: Column, codec: Codec | None) -> list[Any]:
    """Returns what a model keeps of a column's training values (N,), as JSON values.

    These are the different values where each has a mass of its own, else `quantiles` of the values that are neither
    missing nor states of their own, which the codec knows.
    """
    if isinstance(codec, Constant):
        return [codec.value]
    if isinstance(codec, Category | Count):
        levels = factorise(values)[0]
        return sorted(level for level in levels if level is not None) + [None] * (None in levels)
    return quantiles(values[~special(values, codec)])


def special(values: Column, codec: Codec | None) -> NDArray[np.bool_]:
    """Tells which of values (N,) are repeated ones or missing ones that are states of their own."""
    inner = codec.base if isinstance(codec, Date) else codec
    if not isinstance(inner, Mixed):
        return np.zeros(len(values), dtype=bool)
    assert codec is not None
    return codec.encode(values, np.full(len(values), 0.5)).states > 0


def seen_columns(schema: Schema, columns: Mapping[str, Column]) -> dict[str, list[Any]]:
    """Returns the `seen_values` of all columns and conditioning variables, by name."""
    names, codecs = (*schema.features, *schema.context_features), (*schema.codecs, *schema.context_codecs)
    return {name: seen_values(columns[name], codec) for name, codec in zip(names, codecs, strict=True)}


def outside(values: Column, seen: list[Any], codec: Codec | None = None) -> NDArray[np.bool_]:
    """Tells which of values (N,) lie outside of what the training has seen.

    Arguments:
        values: Values of a column in its own units.
        seen: What `seen_values` returned for the column.
        codec: Translation of the column; None for a column of real numbers.

    Returns:
        Whether a value is less than the least or more than the largest one, or a category that was not seen. Repeated
        values are never outside; missing ones are if they have no state.
    """
    if isinstance(codec, Category):
        levels, places = factorise(values)
        return np.array([level not in seen for level in levels], dtype=bool)[places]
    absent, own = missing(values), special(values, codec)
    if not seen:
        return ~own
    if values.dtype.kind == "M":
        least, largest = np.array([seen[0], seen[-1]], dtype="datetime64[us]")
        found = (values < least) | (values > largest)
    else:
        exact, ends = values.astype(np.float64), np.array([seen[0], seen[-1]], dtype=np.float64)
        if (ends.astype(np.float32) == ends).all():  # the training's rows may have come in float32, and these not
            exact = exact.astype(np.float32)
        found = (exact < ends[0]) | (exact > ends[1])
    return (found | absent) & ~own
