"""Writers of results as files, by suffix, written whole or not at all."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow import checkpoint
from jkoflow.data.checks import DataError
from jkoflow.data.table import Column
from jkoflow.optional import require

SUFFIXES = (".npy", ".csv", ".parquet", ".tsv", ".csv.gz", ".feather")


def check_output(path: str | Path, inputs: Iterable[str | Path] = ()) -> None:
    """Checks that `write_table` can write a file, before anything is computed for it.

    Arguments:
        path: The file to write.
        inputs: Files and folders that are read, none of which may be written to; other names are no matter.

    Raises:
        DataError: If the suffix is unknown, the directory cannot be written to, or the file is an input.
        MissingExtraError: If pandas or pyarrow is needed and not installed.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind != ".npy":
        require("pandas", f"writing {kind} files")
    if kind in (".parquet", ".feather"):
        require("pyarrow", f"writing {kind} files")
    check_place(path, inputs)


def check_place(path: Path, inputs: Iterable[str | Path] = ()) -> None:
    """Checks that a file of any kind can be written in its place.

    Arguments:
        path: The file to write.
        inputs: Files and folders that are read, none of which may be written to; other names are no matter.

    Raises:
        DataError: If it is a directory or an input, or its own directory cannot be written to.
    """
    if path.is_dir():
        raise DataError(f"cannot write {path}: it is a directory; name a file")
    place = path.resolve()
    if not place.parent.is_dir():
        raise DataError(f"cannot write {path}: there is no directory {path.parent}; create it first")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise DataError(f"cannot write {path}: no permission to write in {place.parent}; choose another place")
    for read in map(Path, inputs):
        if read.is_dir() and read.resolve() in place.parents:
            raise DataError(f"cannot write {path}: it is in {read}, which is read; choose another place")
        if place == read.resolve() or (place.exists() and read.exists() and place.samefile(read)):
            raise DataError(f"cannot write {path}: it is the file that is read; choose another name")


def check_numbers(path: str | Path, columns: Mapping[str, Column]) -> None:
    """Checks that a ``.npy`` file is to hold nothing but numbers; other files hold all.

    Arguments:
        path: The file to write.
        columns: Its columns by name, of which only the type matters.

    Raises:
        DataError: If there are other columns; the message names them.
    """
    others = [name for name, values in columns.items() if values.dtype.kind not in "fiu"]
    if kind_of(Path(path)) == ".npy" and others:
        raise DataError(
            f"cannot write {path}: {', '.join(others)} {'are' if len(others) > 1 else 'is'} not numbers, which is "
            f"all that .npy holds; use one of {', '.join(SUFFIXES[1:])}"
        )


def write_table(path: str | Path, columns: Sequence[Column] | NDArray[Any], features: Sequence[str]) -> None:
    """Writes a table; a crash at any moment leaves the old file or the new one, never a part.

    Arguments:
        path: The file to write; its suffix decides the format.
        columns: The d columns, each with shape (N,) and of any kind that a `jkoflow.data.table.Table` holds (a ``.npy``
            file holds numbers only); or numbers with shape (N, d), or (N,) for one column.
        features: Names of the d columns (a ``.npy`` file does not keep them).

    Raises:
        DataError: If `check_output` refuses the file, or the columns do not fit together or into the format.
        OSError: If writing fails all the same, such as on a full disk.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "table.csv"
        >>> write_table(place, [np.array([1.5, 2.0]), np.array(["x", None])], ["a", "kind"])
        >>> place.read_text().split()
        ['a,kind', '1.5,x', '2.0,']
    """
    check_output(path)
    kind = kind_of(Path(path))
    buffer = io.BytesIO()
    if isinstance(columns, np.ndarray):
        if kind == ".npy":
            np.save(buffer, columns, allow_pickle=False)
            checkpoint.write_atomically(path, buffer.getvalue())
            return
        columns = list(columns.reshape(len(columns), -1).T)
    _check_columns(path, columns, features)
    if kind == ".npy":
        check_numbers(path, dict(zip(features, columns, strict=True)))
        np.save(buffer, np.stack(columns, 1), allow_pickle=False)
    else:
        pandas = require("pandas", f"writing {kind} files")
        _write_frame(pandas.DataFrame(dict(zip(features, columns, strict=True))), kind, buffer)
    checkpoint.write_atomically(path, buffer.getvalue())


def _write_frame(frame: Any, kind: str, buffer: io.BytesIO) -> None:
    if kind == ".parquet":
        frame.to_parquet(buffer, index=False, engine="pyarrow")
    elif kind == ".feather":
        frame.to_feather(buffer)
    elif kind == ".csv.gz":
        with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:  # without a time, equal tables are equal files
            frame.to_csv(file, index=False)
    else:
        frame.to_csv(buffer, index=False, sep="\t" if kind == ".tsv" else ",")


def _check_columns(path: str | Path, columns: Sequence[Column], features: Sequence[str]) -> None:
    if len(columns) != len(features) or len(set(features)) != len(features) or not columns:
        raise DataError(
            f"cannot write {path}: {len(columns)} columns need as many different names, got {len(features)}"
        )
    lengths = {len(values) for values in columns}
    if len(lengths) > 1:
        raise DataError(f"cannot write {path}: columns must have one length, got {sorted(lengths)}")


def kind_of(path: Path) -> str:
    """Returns which of the `SUFFIXES` a file has."""
    name = path.name.lower()
    found = next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), None)
    if found is None:
        raise DataError(f"cannot write {path}: unsupported suffix {path.suffix!r}; use one of {', '.join(SUFFIXES)}")
    return found
