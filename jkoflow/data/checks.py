"""Checks of a table of numbers, whose errors are one line that tells the fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow.callers import warn_caller
from jkoflow.data.columnwise import contiguous_columns, distinct_values
from jkoflow.errors import UserError
from jkoflow.frames import default_features

LARGEST = 1e18
"""Largest absolute value; the square of a larger one may overflow float32."""

VARYING_ROWS = 65_536
"""Rows that are looked at once for a column to vary."""

FEW_VALUES = 20
"""Largest number of distinct values with which a column is taken for a discrete one."""


class DataError(UserError, ValueError):
    """Raised if data cannot be used; the message is one line and tells the fix."""


class DataWarning(UserWarning):
    """Warns of data that can be used but should be looked at."""


def own_names(features: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the names of columns, or None if there are none but x0, x1, ... or c0, c1, ..."""
    names = tuple(features)
    unnamed = tuple(f"c{column}" for column in range(len(names)))
    return None if names in ((), default_features(len(names)), unnamed) else names


def column_label(features: Sequence[str], column: int) -> str:
    """Returns what messages call a column: its name, or its number (from 0) if there are no names."""
    named = tuple(features) != default_features(len(features))
    return f"column {features[column]!r}" if named else f"column {column}"


def check_finite(rows: NDArray[Any], features: Sequence[str], part: str = "") -> None:
    """Refuses NaN, inf and values beyond `LARGEST`.

    Arguments:
        rows: Numbers, with shape (N, d).
        features: Names of the d columns.
        part: The part of the data that the rows are, such as ``"train"``.

    Raises:
        DataError: If there are such values; the message names row (from 0) and column of the first, and counts all.
    """
    with np.errstate(invalid="ignore"):
        usable = np.abs(rows) <= LARGEST  # False for NaN
    if usable.all():
        return
    row, column = np.argwhere(~usable)[0].tolist()
    value = float(rows[row, column])
    where = f"row {row}{f' of {part}' if part else ''} (counting from 0), {column_label(features, column)}"
    count = int((~usable).sum())
    if np.isfinite(value):
        raise DataError(f"value {value:g} in {where} is beyond {LARGEST:g} ({count} such values); rescale the column")
    raise DataError(
        f"{'NaN' if np.isnan(value) else value} in {where} ({count} such value{'s' if count > 1 else ''}); "
        "drop or impute these rows"
    )


def check_unmasked(rows: Any, features: Sequence[str], part: str = "") -> None:
    """Refuses a masked array in which something is masked.

    Arguments:
        rows: Anything with shape (..., d), or (N,) for one column; other than a masked array it is let pass.
        features: Names of the d columns.
        part: The part of the data that the rows are, such as ``"train"``.

    Raises:
        DataError: If a value is masked; the message names row (from 0) and column of the first, and counts all.
    """
    if not isinstance(rows, np.ma.MaskedArray) or not (mask := np.ma.getmaskarray(rows)).any():
        return
    row, column = np.argwhere(mask.reshape(-1, mask.shape[-1] if mask.ndim > 1 else 1))[0].tolist()
    count = int(mask.sum())
    raise DataError(
        f"the value in row {row}{f' of {part}' if part else ''} (counting from 0), {column_label(features, column)} is "
        f"masked ({count} such value{'s' if count > 1 else ''}); drop or impute these rows"
    )


def check_varies(rows: NDArray[Any], features: Sequence[str], part: str = "") -> None:
    """Refuses columns that hold one value only, or do so once they are stored in float32.

    Raises:
        DataError: If a column is constant; the message names it.
    """
    # float32 already for a Dataset: the second look finds what the conversion destroyed in a file's float64
    exact, varies = np.zeros((2, rows.shape[1]), dtype=bool)
    first = rows[:1].astype(np.float32)
    for start in range(0, len(rows), VARYING_ROWS):  # most columns vary in the first part
        some: NDArray[Any] = rows[start : start + VARYING_ROWS]
        exact |= np.not_equal(some, rows[:1]).any(0)
        varies |= np.not_equal(some.astype(np.float32), first).any(0)
        if exact.all() and varies.all():
            return
    where = f" in {part}" if part else ""
    constant = np.flatnonzero(~exact).tolist()
    if constant:
        names = ", ".join(column_label(features, column) for column in constant)
        raise DataError(
            f"{names} {'is' if len(constant) == 1 else 'are'} constant{where} (value {rows[0, constant[0]]:g}), "
            "so no density exists; remove it from the data"
        )
    lost = np.flatnonzero(~varies).tolist()
    if lost:
        raise DataError(
            f"{column_label(features, lost[0])} is constant{where} once stored in float32 (all values are near "
            f"{rows[0, lost[0]]:g}); subtract a constant from it"
        )


def warn_about_columns(rows: NDArray[Any], features: Sequence[str]) -> None:
    """Warns of columns with few distinct values and of columns that lose their digits in float32.

    Arguments:
        rows: Finite numbers in the precision of their file, with shape (N, d).
        features: Names of the d columns.
    """
    for column, values in enumerate(contiguous_columns(rows)):
        label = column_label(features, column)
        if len(values) >= 10 * FEW_VALUES and len(distinct_values(values[:5000])) <= FEW_VALUES:
            count = len(distinct_values(values))
            if count <= FEW_VALUES:
                _warn(
                    f"{label} takes only {count} distinct values: its density is unbounded and the likelihood "
                    "will say little; remove it, or add noise of its rounding step"
                )
        warn_about_digits(values, label)


def warn_about_digits(values: NDArray[Any], label: str) -> None:
    """Warns of a column (N,) that loses its digits in float32."""
    largest, spread = np.abs(values).max(), float(values.std())
    spacing = float(np.spacing(np.float32(largest)))
    if spread < 100 * spacing:
        _warn(
            f"{label} loses digits in float32: values near {largest:g} are stored in steps of {spacing:.1g}, its "
            f"spread is {spread:.1g}; subtract a constant from it"
        )


def _warn(text: str) -> None:
    warn_caller(text, DataWarning)
