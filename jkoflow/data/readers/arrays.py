"""Arrays as tables: from memory, .npy and .npz."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.checks import DataError, default_features
from jkoflow.data.readers.damage import reading
from jkoflow.data.readers.options import ReadOptions
from jkoflow.data.readers.packed import check_announced, check_unpacked
from jkoflow.data.readers.row_numbers import without_row_numbers
from jkoflow.data.table import PARTS, Column, Table

PICKLED = (
    "holds Python objects, which need pickle and are refused; "
    "save a plain array of numbers, such as rows.astype('float32')"
)


def array_table(
    arrays: Mapping[str, NDArray[Any]],
    features: NDArray[Any] | None = None,
    options: ReadOptions = ReadOptions(),  # noqa: B008 (frozen)
    notes: list[str] | None = None,
) -> Table:
    """Returns the columns of an array, or of the three parts of one.

    Arguments:
        arrays: Arrays with shape (N, d) or (N,), or structured ones with shape (N,), under ``"all"`` or under
            ``"train"``, ``"val"`` and ``"test"``. What a masked array masks is missing.
        features: Names of the d columns.
        options: May say what column numbers the rows.
        notes: Takes a sentence for each doubtful decision.

    Raises:
        DataError: If an array has another shape or type, or the parts differ in columns.
    """
    tables = {part: columns_of_array(array, "" if part == "all" else f"{part} ") for part, array in arrays.items()}
    dims = {part: len(columns) for part, (columns, _) in tables.items()}
    if len(set(dims.values())) > 1:
        raise DataError(f"train, val and test must have the same number of columns, got {tuple(dims.values())}")
    dim = next(iter(dims.values()))
    own = {fields for _, fields in tables.values()}
    if len(own) > 1:
        raise DataError("train, val and test must have the same fields")
    names = own.pop()
    if features is not None and features.dtype.kind in "UO":
        names = tuple(str(name) for name in features.ravel())
        if len(names) != dim or len(set(names)) != dim:
            raise DataError(f"features must hold {dim} different names, one per column, got {len(names)}")
    table = Table({part: columns for part, (columns, _) in tables.items()}, names or default_features(dim))
    if table.is_split:
        return table
    return without_row_numbers(table, names is not None, options, [] if notes is None else notes)


def columns_of_array(array: NDArray[Any], where: str) -> tuple[list[Column], tuple[str, ...] | None]:
    """Returns the columns of an array, and their names if it is structured."""
    if array.dtype.names:
        if array.ndim != 1 or any(array.dtype[name].shape for name in array.dtype.names):
            raise DataError(f"{where}must have fields of one value each and shape (N,), got {array.dtype}")
        return [_column(array[name], where) for name in array.dtype.names], tuple(array.dtype.names)
    table = array[:, None] if array.ndim == 1 else array  # (N,) is N rows of one feature
    if table.ndim != 2 or table.shape[1] == 0:
        raise DataError(f"{where}must have shape (N, d), got {array.shape}; reshape it to one row per sample")
    return list(_column(table, where).T), None


def _column(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Returns values in types that a table holds, missing where they are masked."""
    kind = array.dtype.kind
    if kind not in "fiubMmUSO" or (kind == "O" and not all(isinstance(value, str | None) for value in array.flat)):
        raise DataError(f"{where}has no numeric columns (its dtype is {array.dtype}); save real numbers")
    mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    values: NDArray[Any] = np.ma.getdata(array)
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if kind == "f" and values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    if kind == "m":
        values, kind = np.where(np.isnat(values), np.nan, values / np.timedelta64(1, "s")), "f"
    if kind == "S":
        values = np.array([text.decode("utf-8", "replace") for text in values.flat], object).reshape(values.shape)
    elif kind == "U":
        values = values.astype(object)
    if mask is None or not mask.any():
        return values
    missing: Any = np.nan if kind in "fiu" else np.datetime64("NaT") if kind == "M" else None
    filled = values.astype(np.float64 if kind in "iu" else object if kind == "b" else values.dtype)
    filled[mask] = missing
    return filled


def read_npy(path: Path, options: ReadOptions, notes: list[str]) -> Table:
    """Reads the one array of a .npy file."""
    with reading(".npy"), path.open("rb") as file:
        check_announced(checked_size(file, path.stat().st_size))
        file.seek(0)
        rows = _array(file)
    return array_table({"all": rows}, None, options, notes)


def opened_npy(path: Path) -> NDArray[Any]:
    """Returns the array of a .npy file as it lies on the disk, which can be larger than memory."""
    with path.open("rb") as file:
        if checked_size(file, path.stat().st_size) == 0:  # nothing can be mapped
            file.seek(0)
            return _array(file)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def checked_size(file: BinaryIO, size: int) -> int:
    """Returns the number of bytes of the numbers of an open .npy file of a size, and refuses a damaged one."""
    announced = _announced(file)
    held = size - file.tell()
    if announced is None:
        raise DataError(PICKLED)
    if announced != held:
        raise DataError(f"is damaged: it announces {announced:,} bytes of numbers and holds {held:,}")
    return announced


def read_npz(path: Path, options: ReadOptions, notes: list[str]) -> Table:
    """Reads the arrays of a .npz file: train, val and test, or one to be split; and perhaps features, their names."""
    if not zipfile.is_zipfile(path):  # np.load would take it for a pickle
        raise DataError("is damaged or not a .npz file: it is no zip archive")
    with reading(".npz"), zipfile.ZipFile(path) as archive:
        held = {name.removesuffix(".npy"): name for name in archive.namelist()}
        features = _member(archive, held["features"]) if "features" in held else None
        if held.keys() >= set(PARTS):
            return array_table({part: _member(archive, held[part]) for part in PARTS}, features, options, notes)
        if held.keys() & set(PARTS) and len(held) > 1:
            missing = ", ".join(part for part in PARTS if part not in held)
            raise DataError(f"lacks {missing}; store the arrays train, val and test, or one array to be split")
        arrays = {name: _member(archive, member) for name, member in held.items() if name != "features"}
    return array_table({"all": only_table(arrays, "the arrays train, val and test, or ")}, features, options, notes)


def only_table(arrays: Mapping[str, NDArray[Any]], otherwise: str = "") -> NDArray[Any]:
    """Returns the one array that can be a table: with two dimensions, else with one."""
    for dims in (2, 1):
        tables = [
            array
            for array in arrays.values()
            if (array.dtype.kind in "fiu" and array.ndim == dims) or (array.dtype.names and array.ndim == 1)
        ]
        if len(tables) == 1:
            return tables[0]
        if tables:
            break
    held = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items()) or "nothing"
    raise DataError(f"needs {otherwise}one table of numbers; it holds {held}")


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    entry = archive.getinfo(name)
    if not name.endswith(".npy"):
        raise DataError(f"is damaged: {name} is not an array")
    with archive.open(name) as file:
        size = _announced(file)
    if size is None:
        raise DataError(PICKLED)
    if size > entry.file_size:
        raise DataError(f"is damaged: {name} announces {size:,} bytes of numbers and holds {entry.file_size:,}")
    check_unpacked(entry.file_size, entry.compress_size, name)
    with archive.open(name) as file:
        return _array(file)


def _announced(file: Any) -> int | None:
    """Returns the number of bytes of numbers that a .npy header announces; None if they are a pickle."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if any(isinstance(size, bool) or size < 0 for size in shape):
        raise DataError(f"is damaged: it announces the shape {shape}")
    if dtype.hasobject:
        return None
    size = dtype.itemsize
    for extent in shape:
        size *= int(extent)
    return size


def _array(file: BinaryIO | Any) -> NDArray[Any]:
    return np.lib.format.read_array(file, allow_pickle=False)
