"""Data frames, in memory or from a file, as tables."""

from __future__ import annotations

import datetime
import decimal
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from jkoflow.callers import warn_caller
from jkoflow.data.checks import DataError, DataWarning
from jkoflow.data.readers.cells import refuse_spoilt
from jkoflow.data.readers.dates import dates_of, is_date
from jkoflow.data.readers.options import ReadOptions
from jkoflow.data.readers.row_numbers import without_row_numbers
from jkoflow.data.table import Column, Table
from jkoflow.frames import arrow_series
from jkoflow.optional import require


def columns_of(frame: Any, options: ReadOptions = ReadOptions()) -> Table:  # noqa: B008 (frozen)
    """Returns the columns of a data frame; its index is not one of them.

    Arguments:
        frame: A pandas DataFrame, or a Series for one column. Nullable, categorical, decimal and Arrow types become
            numpy's; times with a zone become UTC, spans of time become seconds.
        options: May say what column numbers the rows.

    Returns:
        The columns, each with shape (N,). A `DataWarning` tells what was changed or left out.

    Raises:
        DataError: If a column cannot be understood, or none is left.

    Example:
        >>> import pandas
        >>> columns_of(pandas.DataFrame({"a": [1, 2], "b": ["x", None]})).parts["all"]
        [array([1, 2]), array(['x', None], dtype=object)]
    """
    notes: list[str] = []
    table = frame_table(frame.to_frame() if frame.ndim == 1 else frame, options, notes)
    for note in notes:
        warn_caller(note, DataWarning)
    return table


def frame_table(frame: Any, options: ReadOptions, notes: list[str]) -> Table:
    """Returns the columns of a data frame as `columns_of` does; ``notes`` takes what it would warn of."""
    names = different([_name(label) for label in frame.columns], notes)
    columns: list[Column] = []
    kept: list[str] = []
    left_out: list[str] = []
    for place, name in enumerate(names):
        column = _column(frame.iloc[:, place], name, notes, options.takes_text(name))
        if column is None:
            left_out.append(repr(name))
        else:
            columns.append(column)
            kept.append(name)
    if left_out:
        notes.append(f"left out the columns that hold neither numbers nor text: {', '.join(left_out)}")
    if not columns:
        raise DataError(f"has no columns of numbers or text{f' (it has {chr(44).join(left_out)})' if left_out else ''}")
    return without_row_numbers(Table({"all": columns}, tuple(kept)), True, options, notes)


def different(names: Sequence[str], notes: list[str]) -> list[str]:
    """Returns names that are all different, with .1, .2, ... after repeated ones, and notes that."""
    taken, found = set(names), []
    for place, name in enumerate(names):
        count, unique = 0, name
        while unique in found or (count and unique in taken):
            count += 1
            unique = f"{name}.{count}"
        if count:
            notes.append(f"the name {name!r} stands over more than one column; column {place} is called {unique!r}")
        found.append(unique)
    return found


def _name(label: Any) -> str:
    return " ".join(str(part) for part in label).strip() if isinstance(label, tuple) else str(label).strip()


def _column(column: Any, name: str, notes: list[str], takes_text: bool = False) -> Column | None:
    """Returns the values of a Series; None if they are nothing that a table can hold."""
    pandas = require("pandas", "reading tables")
    types = pandas.api.types
    column, dtype = column.reset_index(drop=True), column.dtype
    if isinstance(dtype, pandas.SparseDtype):
        return _column(column.sparse.to_dense(), name, notes)
    if isinstance(dtype, pandas.CategoricalDtype):
        plain = column.astype(dtype.categories.dtype if column.notna().all() else object)
        return _column(plain, name, notes, takes_text)
    if isinstance(dtype, pandas.PeriodDtype):
        return _column(column.dt.to_timestamp(), name, notes)
    if isinstance(dtype, getattr(pandas, "ArrowDtype", ())):
        pyarrow = require("pyarrow", "reading Arrow columns")
        plain = pyarrow.Array.from_pandas(column)
        return _column(arrow_series(plain), name, notes)
    if isinstance(dtype, pandas.DatetimeTZDtype):
        return column.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
    if types.is_datetime64_dtype(dtype):
        return column.to_numpy()
    if types.is_timedelta64_dtype(dtype):
        notes.append(f"column {name!r} holds spans of time; took them in seconds")
        return column.dt.total_seconds().to_numpy(np.float64)
    if types.is_complex_dtype(dtype):
        raise DataError(f"column {name!r} holds complex numbers; give real and imaginary parts as two columns")
    if types.is_bool_dtype(dtype):
        return column.to_numpy(bool) if column.notna().all() else _objects(column)
    if types.is_numeric_dtype(dtype):
        if column.notna().all():
            return column.to_numpy(getattr(dtype, "numpy_dtype", dtype))
        return column.to_numpy(np.result_type(getattr(dtype, "numpy_dtype", dtype), np.float32), na_value=np.nan)
    if isinstance(dtype, pandas.StringDtype):
        return _dates_or_text(column, name, notes)
    return _of_objects(column, name, notes, takes_text) if dtype.kind == "O" else None


def _of_objects(column: Any, name: str, notes: list[str], takes_text: bool) -> Column | None:
    """Returns the values of a Series of Python objects: all numbers, all dates, all true or false, or text."""
    pandas = require("pandas", "reading tables")
    filled = column[column.notna().to_numpy()]
    if filled.empty:
        return np.full(len(column), np.nan)
    if all(isinstance(value, bool | np.bool_) for value in filled):
        return filled.to_numpy(bool) if len(filled) == len(column) else _objects(column)
    if all(isinstance(value, numbers.Real | decimal.Decimal) for value in filled):
        return np.array([np.nan if missing else float(value) for missing, value in _with_missing(column)], np.float64)
    if all(isinstance(value, datetime.date) for value in filled):
        return _column(pandas.to_datetime(column, utc=True), name, notes)
    if all(isinstance(value, datetime.time) for value in filled):
        notes.append(f"column {name!r} holds times of day; took them in seconds since midnight")
        seconds = [np.nan if missing else _seconds(value) for missing, value in _with_missing(column)]
        return np.array(seconds, np.float64)
    if all(isinstance(value, datetime.timedelta) for value in filled):
        return _column(pandas.to_timedelta(column), name, notes)
    if all(isinstance(value, bytes) for value in filled):
        return _objects(column.map(lambda value: value.decode("utf-8", "replace"), na_action="ignore"))
    if all(isinstance(value, str) for value in filled):
        return _dates_or_text(column, name, notes)
    if not takes_text:
        refuse_spoilt(column, name)
    if all(isinstance(value, str | bool | numbers.Real) for value in filled):
        return _objects(column.map(str, na_action="ignore"))
    return None


def _dates_or_text(column: Any, name: str, notes: list[str]) -> Column:
    """Returns a Series of text as dates if all of it are dates, else as it is."""
    filled = column[column.notna()].astype(object)
    if len(filled) and is_date(filled.iloc[0]) and (dates := dates_of(filled, name, notes)) is not None:
        return dates.reindex(column.index).to_numpy()
    return _objects(column)


def _with_missing(column: Any) -> zip[tuple[bool, Any]]:
    return zip(column.isna().to_numpy(), column.to_numpy(object), strict=True)


def _seconds(value: datetime.time) -> float:
    return 3600 * value.hour + 60 * value.minute + value.second + value.microsecond / 1e6


def _objects(column: Any) -> Column:
    values = column.to_numpy(object, copy=True)
    values[column.isna().to_numpy()] = None
    return values
