"""Tables that are read in blocks of rows: arrays that are mapped into memory, Parquet files and folders of them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jkoflow.callers import warn_caller
from jkoflow.data.checks import DataError, DataWarning, default_features
from jkoflow.data.columns.options import TableOptions
from jkoflow.data.readers.arrays import checked_size, columns_of_array
from jkoflow.data.readers.arrow import index_columns, parquet_files
from jkoflow.data.readers.damage import reading
from jkoflow.data.readers.frames import different
from jkoflow.data.readers.options import KEEP
from jkoflow.data.table import Column
from jkoflow.optional import require

KINDS = (".npy", ".parquet")
"""Suffixes of the files that can be read in blocks; a folder of Parquet files can be, too."""


class Source(Protocol):
    """A table that is read in blocks, again and again in the same order."""

    rows: int
    """Number of rows."""
    features: tuple[str, ...]
    """Names of the columns; x0, x1, ... if there are none."""
    left_out: frozenset[str]
    """Names of further columns, which are left out as told."""

    def check(self) -> None:
        """Refuses columns that hold no numbers, and tells of those that were left out."""
        ...

    def blocks(self, rows: int) -> Iterator[list[Column]]:
        """Yields the columns of at most ``rows`` rows after the other."""
        ...


class ArraySource:
    """The rows of an array, of which a file that is mapped into memory gives back what has been read.

    Arguments:
        array: Numbers with shape (N, d) or (N,), or fields of numbers with shape (N,).
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._first, names = columns_of_array(array[:1], "")
        self.rows, self.left_out = len(array), frozenset()
        self.features = names or default_features(len(self._first))
        self._array, self._map = array, _map_under(array)

    def check(self) -> None:
        """Refuses columns that hold no numbers."""
        others = [
            f"{n!r} ({c.dtype})" for n, c in zip(self.features, self._first, strict=True) if c.dtype.kind not in "fiu"
        ]
        if others:
            raise DataError(f"the columns {', '.join(others)} must hold numbers where rows are more than memory holds")

    def blocks(self, rows: int) -> Iterator[list[Column]]:
        """Yields the columns of at most ``rows`` rows after the other."""
        for start in range(0, self.rows, rows):
            yield [column.copy() for column in columns_of_array(self._array[start : start + rows], "")[0]]
            if self._map is not None:
                self._map.madvise(mmap.MADV_DONTNEED)


class ParquetSource:
    """The rows of Parquet files, one after the other, with the columns that the names of their folders give.

    Arguments:
        path: A file, or a folder of them.
        options: Says which columns are left out.
    """

    def __init__(self, path: Path, options: TableOptions) -> None:
        require("pandas", "reading .parquet files")
        self._parquet = require("pyarrow.parquet", "reading .parquet files")
        dataset, self._arrow = (
            require("pyarrow.dataset", "reading .parquet files"),
            require("pyarrow", ".parquet files"),
        )
        self._files = parquet_files(path) if path.is_dir() else [path]
        with reading(".parquet"):
            root = path if path.is_dir() else path.parent
            filesystem = require("pyarrow.fs", "reading .parquet files")
            local = filesystem.SubTreeFileSystem(str(root.absolute()), filesystem.LocalFileSystem())
            names = [file.relative_to(root).as_posix() for file in self._files]
            hive = "hive" if path.is_dir() else None
            found = dataset.dataset(names, format="parquet", partitioning=hive, filesystem=local)
            keys = [dataset.get_partition_keys(fragment.partition_expression) for fragment in found.get_fragments()]
            self._keys: list[dict[str, Any]] = keys
            self.rows = sum(self._parquet.read_metadata(file).num_rows for file in self._files)
        schema = found.schema
        indices = [] if options.reading.index_column == KEEP else index_columns(schema)
        indices = [name for name in indices if name not in options.reading.mentioned]
        told = (name for name, kind in options.columns.items() if kind == "drop")
        self.left_out = frozenset({field.name.strip() for field in schema}.intersection(told))
        self._fields = [field for field in schema if field.name.strip() not in {*indices, *self.left_out}]
        self._path, self._notes = path, list[str]()
        self.features = tuple(different([field.name.strip() for field in self._fields], self._notes))
        named = [name for name in indices if not name.startswith("__index_level_")]
        if named:
            which = ", ".join(named)
            self._notes.append(f"left out the index of the data frame: {which}; --index-column none keeps it")

    def check(self) -> None:
        """Refuses columns that hold no numbers, and tells of those that were left out."""
        for note in self._notes:
            warn_caller(f"{self._path}: {note}", DataWarning)
        types = self._arrow.types
        others = [field for field in self._fields if not _holds_numbers(types, field.type)]
        if others:
            named = ", ".join(f"{field.name!r} ({field.type})" for field in others)
            drop = ",".join(f"{field.name}=drop" for field in others)
            raise DataError(
                f"the column{'s' if len(others) > 1 else ''} {named} must hold numbers where rows are more than memory "
                f"holds; leave out with --columns {drop}, or raise memory"
            )
        if not self._fields:
            raise DataError("has no columns of numbers")

    def blocks(self, rows: int) -> Iterator[list[Column]]:
        """Yields the columns of at most ``rows`` rows after the other."""
        for path, keys in zip(self._files, self._keys, strict=True):
            own = [field.name for field in self._fields if field.name not in keys]
            with reading(".parquet"):
                # without pre_buffer, whole row groups would not be in memory, however long these are
                file = self._parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 18)
                missing = [name for name in own if name not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{path.name} lacks the column {missing[0]!r} of the other files; make them alike")
            batches = file.iter_batches(rows, columns=own, use_threads=False)
            while (batch := self._next(batches)) is not None:
                yield [self._column(batch, field, keys) for field in self._fields]
            file.close()

    def _next(self, batches: Iterator[Any]) -> Any:
        with reading(".parquet"):
            return next(batches, None)

    def _column(self, batch: Any, field: Any, keys: dict[str, Any]) -> Column:
        if field.name in keys:
            return np.full(batch.num_rows, keys[field.name], field.type.to_pandas_dtype())
        with reading(".parquet"):
            column = batch.column(batch.schema.get_field_index(field.name))
            is_decimal = self._arrow.types.is_decimal(field.type)
            column = column.cast(self._arrow.float64() if is_decimal else field.type)
            return column.to_numpy(zero_copy_only=False)


def _holds_numbers(types: Any, kind: Any) -> bool:
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def open_source(path: Path, options: TableOptions) -> Source | None:
    """Returns a file or folder to be read in blocks; None if it is of a kind that cannot be."""
    if path.is_dir():
        return ParquetSource(path, options) if parquet_files(path) else None
    if not path.is_file() or path.suffix.lower() not in KINDS:
        return None
    if path.suffix.lower() == ".parquet":
        return ParquetSource(path, options)
    array = _mapped(path)
    return None if array is None else ArraySource(array)


def _mapped(path: Path) -> NDArray[Any] | None:
    """Returns the array of a .npy file, mapped into memory; None if there is nothing in it."""
    with reading(".npy"), path.open("rb") as file:
        if checked_size(file, path.stat().st_size) == 0:
            return None
        return np.load(path, mmap_mode="r", allow_pickle=False)


def _map_under(array: Any) -> mmap.mmap | None:
    """Returns the memory map that an array lies in; None if it lies in none."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array
