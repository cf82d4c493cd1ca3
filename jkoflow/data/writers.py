"""Writers of results as files: .npy, .csv and .parquet by suffix, written whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow import checkpoint
from jkoflow.data.checks import DataError
from jkoflow.data.optional import require
from jkoflow.data.table import Column

SUFFIXES = (".npy", ".csv", ".parquet")


def check_output(path: str | Path) -> None:
    """Checks that `write_table` can write a file, before anything is computed for it.

    Raises:
        DataError: If the suffix is unknown or the directory cannot be written to.
        MissingExtraError: If pandas or pyarrow is needed and not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"cannot write {path}: unsupported suffix {path.suffix!r}; use one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() != ".npy":
        require("pandas", f"writing {path.suffix} files")
    if path.suffix.lower() == ".parquet":
        require("pyarrow", "writing .parquet files")
    if path.is_dir():
        raise DataError(f"cannot write {path}: it is a directory; name a file")
    if not path.parent.is_dir():
        raise DataError(f"cannot write {path}: there is no directory {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise DataError(f"cannot write {path}: no permission to write in {path.parent}; choose another place")


def check_numbers(path: str | Path, columns: Mapping[str, Column]) -> None:
    """Checks that a ``.npy`` file is not to hold columns of anything but numbers; other files hold all.

    Raises:
        DataError: If it is; the message names the columns.
    """
    others = [repr(name) for name, values in columns.items() if values.dtype.kind not in "fiub"]
    if Path(path).suffix.lower() == ".npy" and others:
        raise DataError(
            f"{path} cannot hold the column{'s' if len(others) > 1 else ''} {', '.join(others)}, which "
            f"{'are' if len(others) > 1 else 'is'} not of numbers; write .csv or .parquet"
        )


def write_table(path: str | Path, rows: NDArray[Any] | Sequence[Column], features: Sequence[str]) -> None:
    """Writes a table; a crash at any moment leaves the old file or the new one, never a part.

    Arguments:
        path: The file to write; its suffix decides the format.
        rows: Numbers, with shape (N, d), or (N,) for one column; or d columns of any kind, each with shape (N,), in a
            list or tuple.
        features: Names of the d columns, all different (a ``.npy`` file does not keep them).

    Raises:
        DataError: If `check_output` or `check_numbers` refuses the file.
        OSError: If writing fails all the same, such as on a full disk.
    """
    check_output(path)
    path = Path(path)
    columns = list(rows.reshape(len(rows), -1).T) if isinstance(rows, np.ndarray) else list(rows)
    named = dict(zip(features, columns, strict=True))
    buffer = io.BytesIO()
    if path.suffix.lower() == ".npy":
        check_numbers(path, named)
        np.save(buffer, rows if isinstance(rows, np.ndarray) else np.stack(columns, 1), allow_pickle=False)
    else:
        pandas = require("pandas", f"writing {path.suffix} files")
        frame = pandas.DataFrame(named)
        if path.suffix.lower() == ".csv":
            frame.to_csv(buffer, index=False)
        else:
            frame.to_parquet(buffer, index=False, engine="pyarrow")
    checkpoint.write_atomically(path, buffer.getvalue())
