"""Readers of files of numbers: .npy, .npz, .csv and .parquet."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.checks import DataError, DataWarning, default_features
from jkoflow.data.optional import require

PARTS = ("train", "val", "test")

_DAMAGED = (ValueError, OSError, EOFError, KeyError, SyntaxError, MemoryError, NotImplementedError)
_DAMAGED += (OverflowError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Table:
    """The content of a file: one table, or the three parts of one."""

    parts: dict[str, NDArray[Any]]
    """Real numbers with shape (N, d), under ``"all"`` or under ``"train"``, ``"val"`` and ``"test"``."""
    features: tuple[str, ...]
    """Names of the d columns; x0, x1, ... if the file has none."""

    @property
    def is_split(self) -> bool:
        """Tells whether the file itself says which rows are for training."""
        return "all" not in self.parts


def read_table(path: str | Path) -> Table:
    """Reads the numeric columns of a file; a `DataWarning` names the other columns.

    Arguments:
        path: A ``.npy`` file with one array; a ``.npz`` file with one array, or with ``train``, ``val`` and ``test``
            (and perhaps ``features``); a ``.csv`` file separated by comma, semicolon, tab or blanks, with or
            without a header; a ``.parquet`` file.

    Raises:
        DataError: If the file is missing, damaged, of another kind, needs pickle or has no numeric columns.
        MissingExtraError: If pandas or pyarrow is needed and not installed.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unsupported kind of file {path.suffix!r}; convert it to one of {', '.join(READERS)}")
    if path.is_dir():
        raise DataError(f"{path} is a directory; name a file")
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path, it starts at {Path.cwd()}")
    try:
        return reader(path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: permission denied") from error
    except _DAMAGED as error:
        if isinstance(error, ValueError) and "allow_pickle" in str(error):
            raise DataError(
                f"{path} holds Python objects, which need pickle and are refused; "
                "save a plain array of numbers, such as rows.astype('float32')"
            ) from error
        raise DataError(f"{path} is damaged or not a {path.suffix} file: {one_line(error)}") from error


def one_line(error: BaseException, limit: int = 200) -> str:
    """Returns the text of an exception without line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _read_npy(path: Path) -> Table:
    with path.open("rb") as file:
        rows = np.lib.format.read_array(file, allow_pickle=False)
    return _table({"all": rows}, None)


def _read_npz(path: Path) -> Table:
    if not zipfile.is_zipfile(path):  # np.load would take it for a pickle
        raise DataError("is damaged or not a .npz file: it is no zip archive")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        names = set(archive.files)
        features = _member(archive, "features") if "features" in names else None
        if names.issuperset(PARTS):
            return _table({part: _member(archive, part) for part in PARTS}, features)
        if names.intersection(PARTS) and len(names) > 1:
            missing = ", ".join(part for part in PARTS if part not in names)
            raise DataError(f"lacks {missing}; store the arrays train, val and test, or one array to be split")
        arrays = {name: _member(archive, name) for name in archive.files if name != "features"}
    tables = {name: array for name, array in arrays.items() if array.dtype.kind in "fiu" and array.ndim == 2}
    tables = tables or {name: array for name, array in arrays.items() if array.dtype.kind in "fiu" and array.ndim == 1}
    if len(tables) != 1:
        held = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise DataError(f"needs the arrays train, val and test, or one table of numbers; it holds {held}")
    return _table({"all": next(iter(tables.values()))}, features)


def _member(archive: Any, name: str) -> NDArray[Any]:
    array = archive[name]
    if not isinstance(array, np.ndarray):  # numpy hands out the bytes of what is no array
        raise DataError(f"is damaged: {name} is not an array")
    return array


def _read_csv(path: Path) -> Table:
    pandas = require("pandas", "reading .csv files")
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    if not first:
        raise DataError("is empty")
    separator = max(",;\t|", key=first.count)
    if separator not in first:
        separator = r"\s+"
    cells = first.split() if separator == r"\s+" else [cell.strip().strip('"') for cell in first.split(separator)]
    headerless = all(_is_number(cell) for cell in cells if cell.strip())
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)  # rows longer than the header lose data
        try:
            frame = pandas.read_csv(
                path,
                sep=separator,
                header=None if headerless else 0,
                index_col=False,
                low_memory=False,
                encoding="utf-8-sig",
                skipinitialspace=True,
            )
        except pandas.errors.ParserWarning as error:
            raise DataError("some rows have more cells than the header; quote or escape the separator") from error
    if not headerless and any(_is_number(cell) for cell in cells):
        _warn(f"{path}: took the first line for column names though some are numbers: {', '.join(cells)[:80]}")
    return _from_frame(frame, path, named=not headerless)


def _read_parquet(path: Path) -> Table:
    require("pyarrow", "reading .parquet files")
    pandas = require("pandas", "reading .parquet files")
    frame = pandas.read_parquet(path, engine="pyarrow")
    frame.columns = [str(column) for column in frame.columns]
    return _from_frame(frame, path, named=True)


def _from_frame(frame: Any, path: Path, named: bool) -> Table:
    """Returns the numeric columns of a data frame, and warns of the other columns."""
    pandas = require("pandas", "reading tables")
    kept: dict[str, NDArray[Any]] = {}
    dropped: list[str] = []
    for position, name in enumerate(frame.columns):
        column = frame.iloc[:, position]
        types = pandas.api.types
        if types.is_numeric_dtype(column) and not (types.is_bool_dtype(column) or types.is_complex_dtype(column)):
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
            if str(name).startswith("Unnamed:") and np.array_equal(values, np.arange(len(values))):
                dropped.append(f"{str(name)!r} (row numbers)")
            else:
                kept[str(name)] = values
            continue
        _check_text_column(column, str(name) if named else str(position))
        dropped.append(repr(str(name)))
    if not kept:
        raise DataError(f"has no numeric columns (it has {', '.join(dropped) or 'none'}); encode them as numbers")
    if dropped:
        _warn(f"{path}: left out the columns that are not numbers: {', '.join(dropped)}")
    rows = np.stack(list(kept.values()), 1)
    return Table({"all": rows}, tuple(kept) if named else default_features(rows.shape[1]))


def _check_text_column(column: Any, name: str) -> None:
    """Refuses a column of numbers with a few cells of text, which would otherwise be left out as text."""
    filled = column.dropna()
    texts = filled[filled.map(lambda cell: isinstance(cell, str))]
    spoilt = [(row, cell) for row, cell in texts.items() if not _is_number(cell)]
    if texts.empty or not spoilt or 2 * len(spoilt) > len(filled):
        return
    row, cell = spoilt[0]
    raise DataError(
        f"{cell[:40]!r} in row {row} (counting from 0), column {name!r} is not a number ({len(spoilt)} such cells); "
        "correct these rows, drop them, or drop the column"
    )


def _table(parts: dict[str, NDArray[Any]], features: NDArray[Any] | None) -> Table:
    tables: dict[str, NDArray[Any]] = {}
    for part, array in parts.items():
        where = "" if part == "all" else f"{part} "
        if array.dtype.kind not in "fiu":
            raise DataError(f"{where}has no numeric columns (its dtype is {array.dtype}); save real numbers")
        table = array[:, None] if array.ndim == 1 else array  # (N,) is N rows of one feature
        if table.ndim != 2 or table.shape[1] == 0:
            raise DataError(f"{where}must have shape (N, d), got {array.shape}; reshape it to one row per sample")
        tables[part] = table
    dims = {part: table.shape[1] for part, table in tables.items()}
    if len(set(dims.values())) > 1:
        raise DataError(f"train, val and test must have the same number of columns, got {tuple(dims.values())}")
    dim = next(iter(dims.values()))
    names = default_features(dim)
    if features is not None and features.dtype.kind == "U":
        names = tuple(str(name) for name in features.ravel())
        if len(names) != dim or len(set(names)) != dim:
            raise DataError(f"features must hold {dim} different names, one per column, got {len(names)}")
    return Table(tables, names)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _warn(text: str) -> None:
    warnings.warn(text, DataWarning, stacklevel=2)


READERS: dict[str, Callable[[Path], Table]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""Readers of the supported kinds of file by suffix."""
