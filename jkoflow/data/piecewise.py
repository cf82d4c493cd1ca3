"""Tables that are written piece by piece, so that memory does not grow with them, whole or not at all."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jkoflow import checkpoint
from jkoflow.data.checks import DataError
from jkoflow.data.readers.damage import one_line
from jkoflow.data.table import Column
from jkoflow.data.writers import check_numbers, check_output, kind_of
from jkoflow.optional import require

Write = Callable[[Mapping[str, Column]], None]
"""Function that writes some rows: columns (n,) by name, the same names and types in every call."""


@contextmanager
def writing(
    path: str | Path, rows: int, metadata: Mapping[str, str] | None = None, flat: bool = False
) -> Iterator[Write]:
    """Opens a table to be written; a crash or an error leaves the old file or none, never a part.

    Arguments:
        path: The file to write; its suffix decides the format, see `jkoflow.data.write_table`.
        rows: Number of rows of all pieces together.
        metadata: Texts that a Parquet file keeps beside its columns.
        flat: Whether a ``.npy`` file of one column has shape (N,) instead of (N, 1).

    Yields:
        A function that writes a piece, at least one.

    Raises:
        DataError: If `jkoflow.data.check_output` refuses the file, or a piece does not fit those before.
        OSError: If writing fails all the same, such as on a full disk.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "table.csv"
        >>> with writing(place, 3) as write:
        ...     write({"a": np.array([1.5, 2.0])})
        ...     write({"a": np.array([3.0])})
        >>> place.read_text().split()
        ['a', '1.5', '2.0', '3.0']
    """
    check_output(path)
    kind = kind_of(Path(path))
    if kind not in (".parquet", ".feather", ".npy"):
        require("pandas", f"writing {kind} files")
    with checkpoint.written_aside(path) as file:
        if kind == ".npy":
            yield from _npy(path, file, rows, flat)
        elif kind in (".parquet", ".feather"):
            yield from _arrow(file, kind, metadata or {})
        else:
            yield from _text(file, kind)


def _npy(path: str | Path, file: BinaryIO, rows: int, flat: bool) -> Iterator[Write]:
    written = 0
    dtype: np.dtype[Any] | None = None

    def write(columns: Mapping[str, Column]) -> None:
        nonlocal written, dtype
        check_numbers(path, columns)
        values = list(columns.values())
        part = values[0] if flat else np.stack(values, 1)
        if dtype is None:
            dtype = part.dtype
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows, *part.shape[1:])})
        file.write(np.ascontiguousarray(part.astype(dtype, copy=False)).data)
        written += len(part)

    yield write
    if written != rows:
        raise DataError(f"cannot write {path}: {rows} rows were announced and {written} came")


def _arrow(file: BinaryIO, kind: str, metadata: Mapping[str, str]) -> Iterator[Write]:
    pyarrow, writer, schema = require("pyarrow", f"writing {kind} files"), None, None
    parquet = require("pyarrow.parquet", f"writing {kind} files")

    def write(columns: Mapping[str, Column]) -> None:
        nonlocal writer, schema
        types = {
            name: _type(pyarrow, values) if schema is None else schema.field(name).type
            for name, values in columns.items()
        }
        try:
            arrays = [pyarrow.array(values, types[name], from_pandas=True) for name, values in columns.items()]
        except pyarrow.ArrowException as error:
            raise DataError(f"cannot write a column whose rows differ in type: {one_line(error)}") from error
        if writer is None or schema is None:
            schema = pyarrow.schema(list(zip(columns, (a.type for a in arrays), strict=True)), metadata or None)
            writer = parquet.ParquetWriter(file, schema) if kind == ".parquet" else pyarrow.ipc.new_file(file, schema)
        writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))

    yield write
    if writer is not None:
        writer.close()


def _type(pyarrow: Any, values: Column) -> Any:
    """Returns the type of a column of objects, which are text or true and false; None for a type that says itself."""
    if values.dtype.kind != "O":
        return None
    known = next((value for value in values if value is not None), None)
    return pyarrow.bool_() if isinstance(known, bool | np.bool_) else pyarrow.string()


def _text(file: BinaryIO, kind: str) -> Iterator[Write]:
    pandas, is_first = require("pandas", f"writing {kind} files"), True

    def write(columns: Mapping[str, Column]) -> None:
        nonlocal is_first
        frame = pandas.DataFrame(dict(columns))
        separator = "\t" if kind == ".tsv" else ","
        (packed or file).write(frame.to_csv(index=False, header=is_first, sep=separator).encode())
        is_first = False

    packed = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) if kind == ".csv.gz" else None
    yield write
    if packed is not None:
        packed.close()
