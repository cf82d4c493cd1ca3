"""Data frames of any library: read as those of pandas, written as those of the library that the rows came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.errors import UserError
from jkoflow.optional import require

LIBRARIES = ("pandas", "polars", "pyarrow")
"""Names of the libraries whose data frames samples can be."""


def default_features(dim: int) -> tuple[str, ...]:
    """Returns names for the columns of a table without names: x0, x1, ..."""
    return tuple(f"x{column}" for column in range(dim))


def is_pandas(data: Any) -> bool:
    """Tells whether an object is one of pandas, which need not be installed."""
    return any(kind.__module__.partition(".")[0] == "pandas" for kind in type(data).__mro__)


def is_frame(data: Any) -> bool:
    """Tells whether an object is a data frame or Series: of pandas, or of a library that speaks Arrow's C interface."""
    if isinstance(data, Tensor | np.ndarray | list | tuple):
        return False
    return is_pandas(data) or any(hasattr(type(data), door) for door in ("__arrow_c_stream__", "__arrow_c_array__"))


def library_of(data: Any) -> str | None:
    """Returns the library that frames like the given rows are made with, one of `LIBRARIES`; None for other rows.

    What speaks Arrow and is neither of pandas nor of polars counts as a table of pyarrow.

    Example:
        >>> library_of(pandas.Series([1.0])), library_of([1.0])
        ('pandas', None)
    """
    if not is_frame(data):
        return None
    library = "pandas" if is_pandas(data) else type(data).__module__.partition(".")[0]
    return library if library in LIBRARIES else "pyarrow"


def known_library(name: Any) -> str | None:
    """Returns the name of a library of `LIBRARIES`, or None.

    Raises:
        ValueError: If it is another.
    """
    if name is not None and name not in LIBRARIES:
        raise ValueError(f"frames must be one of {', '.join(LIBRARIES)}, or None, got {name!r}")
    return name


def as_pandas(data: Any) -> Any:
    """Returns a data frame or Series as one of pandas, and everything else as it is.

    Missing entries become NaN, None or NaT, and Arrow's types those of numpy, as for a Parquet file.

    Raises:
        jkoflow.optional.MissingExtraError: If pandas or pyarrow is not installed.
    """
    if not is_frame(data) or is_pandas(data):
        return data
    pandas, pyarrow = require("pandas", "reading data frames"), require("pyarrow", "reading data frames")
    if not hasattr(type(data), "__arrow_c_stream__"):
        return arrow_series(pyarrow.array(data))
    column = pyarrow.chunked_array(data)
    if not pyarrow.types.is_struct(column.type):
        return arrow_series(column).rename(getattr(data, "name", None))
    table = pyarrow.table(data)
    series = [arrow_series(values) for values in table.columns]
    frame = pandas.concat(series, axis=1) if series else pandas.DataFrame(index=range(table.num_rows))
    frame.columns = table.column_names
    return frame


def arrow_series(array: Any) -> Any:
    """Returns an Arrow array as a pandas Series of types that numpy has, of categories, or of objects."""
    pyarrow = require("pyarrow", "reading Arrow columns")
    if pyarrow.types.is_decimal(array.type):
        array = array.cast(pyarrow.float64())
    found = array.to_pandas(date_as_object=False, integer_object_nulls=False)
    return found.reset_index(drop=True)


def to_frame(library: str, columns: Mapping[str, NDArray[Any]]) -> Any:
    """Returns columns (N,) by name as a data frame of a library; entries that are missing are what it has for them.

    Arguments:
        library: One of `LIBRARIES`.
        columns: The columns, in their order.

    Raises:
        jkoflow.optional.MissingExtraError: If the library is not installed.
        jkoflow.errors.UserError: If the library is none of `LIBRARIES`.

    Example:
        >>> to_frame("pandas", {"a": numpy.array([1.0, 2.0])}).columns.tolist()
        ['a']
    """
    if library not in LIBRARIES:
        raise UserError(f"frames must be of {', '.join(LIBRARIES)}, got {library!r}; set flow.frames to one of them")
    if library == "pandas":
        return require("pandas", "samples of a table").DataFrame(dict(columns))
    pyarrow = require("pyarrow", "samples of a table")
    table = pyarrow.table({name: pyarrow.array(values, from_pandas=True) for name, values in columns.items()})
    return table if library == "pyarrow" else require("polars", "samples of a table", "interop").from_arrow(table)
