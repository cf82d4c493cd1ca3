"""MATLAB's .mat files, through scipy, and through h5py from version 7.3 on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.checks import DataError
from jkoflow.data.readers.arrays import array_table
from jkoflow.data.readers.damage import reading
from jkoflow.data.readers.mat_tags import check_tags
from jkoflow.data.readers.options import ReadOptions
from jkoflow.data.readers.packed import check_announced
from jkoflow.data.table import PARTS, Table
from jkoflow.optional import require

NAMES = ("names", "features", "varnames", "columns", "labels")
"""Variables that may hold the names of the columns."""

TABLES = ("X", "x", "data")
"""Variables that are taken where there are several."""

KINDS = {"char", "double", "single", "logical"}
KINDS |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
"""MATLAB's classes of what is read."""


def read_mat(path: Path, options: ReadOptions, notes: list[str]) -> Table:
    """Reads the one matrix of numbers of a .mat file, or X; or train, val and test; or columns with one name each."""
    with path.open("rb") as file:
        is_hdf5 = b"MATLAB 7.3" in file.read(128) or _starts_as_hdf5(path)
    held = _from_hdf5(path) if is_hdf5 else _from_scipy(path)
    arrays = {name: array for name, array in held.items() if array.dtype.kind in "fiub" and array.size > 1}
    names = next((found for name in NAMES if name in held and (found := _names(held[name])) is not None), None)
    if arrays.keys() >= set(PARTS):
        return array_table({part: arrays[part] for part in PARTS}, names, options, notes)
    matrices = {name: array for name, array in arrays.items() if array.ndim == 2 and min(array.shape) > 1}
    chosen = next((name for name in TABLES if name in matrices), None)
    if len(matrices) == 1:
        chosen = next(iter(matrices))
    if chosen is not None:
        others = [name for name in arrays if name != chosen]
        if others:
            notes.append(f"took the variable {chosen}, left out {', '.join(others)}")
        return array_table({"all": matrices[chosen]}, names, options, notes)
    vectors = {name: array.ravel() for name, array in arrays.items() if array.size == max(array.shape)}
    if not matrices and vectors and len({len(vector) for vector in vectors.values()}) == 1:
        columns = np.stack([vector.astype(np.float64) for vector in vectors.values()], 1)
        own = np.array(list(vectors)) if len(vectors) > 1 else None
        return array_table({"all": columns}, own, options, notes)
    found = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in held.items()) or "nothing"
    raise DataError(f"needs one matrix of numbers, or one called X; it holds {found}; save the one that is meant")


def _starts_as_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        return any(file.seek(place) == place and file.read(8) == b"\x89HDF\r\n\x1a\n" for place in (0, 512))


def _from_scipy(path: Path) -> Mapping[str, NDArray[Any]]:
    scipy_io = require("scipy.io", "reading .mat files", "mat")
    with reading(".mat"), path.open("rb") as file:
        kinds = KINDS | ({"cell"} if check_tags(file) else set())
        file.seek(0)
        wanted = []
        for name, shape, kind in scipy_io.whosmat(file):
            check_announced(8 * int(np.prod([int(size) for size in shape], dtype=object)), name)
            wanted += [name] if kind in kinds else []
        file.seek(0)
        held = scipy_io.loadmat(file, variable_names=wanted)
    return {name: held[name] for name in wanted if isinstance(held.get(name), np.ndarray)}


def _from_hdf5(path: Path) -> Mapping[str, NDArray[Any]]:
    h5py = require("h5py", "reading .mat files of version 7.3", "mat")
    held = {}
    with reading(".mat"), h5py.File(path, "r") as file:
        for name, item in file.items():
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub":
                check_announced(item.dtype.itemsize * item.size, name)
                held[name] = np.asarray(item).T  # MATLAB stores columns first
    return held


def _names(array: NDArray[Any]) -> NDArray[Any] | None:
    """Returns names from a cell array of text or a matrix of characters."""
    texts: list[Any] = [
        value.item() if isinstance(value, np.ndarray) and value.size == 1 else value for value in array.flat
    ]
    return np.array([text.strip() for text in texts]) if all(isinstance(text, str) for text in texts) else None
