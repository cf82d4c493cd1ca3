"""Writers of results as files: .npy, .csv and .parquet by suffix, written whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow import checkpoint
from jkoflow.data.checks import DataError
from jkoflow.data.optional import require

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


def write_table(path: str | Path, rows: NDArray[Any], features: Sequence[str]) -> None:
    """Writes a table; a crash at any moment leaves the old file or the new one, never a part.

    Arguments:
        path: The file to write; its suffix decides the format.
        rows: Numbers, with shape (N, d), or (N,) for one column.
        features: Names of the d columns (a ``.npy`` file does not keep them).

    Raises:
        DataError: If `check_output` refuses the file.
        OSError: If writing fails all the same, such as on a full disk.
    """
    check_output(path)
    path = Path(path)
    buffer = io.BytesIO()
    if path.suffix.lower() == ".npy":
        np.save(buffer, rows, allow_pickle=False)
    else:
        pandas = require("pandas", f"writing {path.suffix} files")
        frame = pandas.DataFrame(rows.reshape(len(rows), -1), columns=list(features))
        if path.suffix.lower() == ".csv":
            frame.to_csv(buffer, index=False)
        else:
            frame.to_parquet(buffer, index=False, engine="pyarrow")
    checkpoint.write_atomically(path, buffer.getvalue())
