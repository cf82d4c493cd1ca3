"""Parquet files and folders, and Feather files, through pyarrow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jkoflow.data.checks import DataError
from jkoflow.data.readers.damage import reading
from jkoflow.data.readers.frames import frame_table
from jkoflow.data.readers.options import KEEP, ReadOptions
from jkoflow.data.readers.packed import check_announced
from jkoflow.data.table import Table
from jkoflow.frames import arrow_series
from jkoflow.optional import require


def read_parquet(path: Path, options: ReadOptions, notes: list[str]) -> Table:
    """Reads a Parquet file."""
    parquet = _parquet()

    def read() -> Any:
        with parquet.ParquetFile(path) as file:
            _check_size([file])
            return file.read()

    return _table(read, ".parquet", options, notes)


def parquet_size(path: Path) -> int:
    """Returns how many bytes the cells of a Parquet file take, 8 each."""
    with reading(".parquet"), _parquet().ParquetFile(path) as file:
        return 8 * file.metadata.num_rows * max(1, file.metadata.num_columns)


def parquet_pieces(
    path: Path, options: ReadOptions, notes: list[str], rows_of: Callable[[int], int]
) -> Iterator[Table]:
    """Reads a Parquet file in pieces, of as many rows as ``rows_of`` says for its number of columns."""
    parquet, pyarrow = _parquet(), require("pyarrow", "reading .parquet files")
    keep = dataclasses.replace(options, index_column=KEEP)
    with reading(".parquet"):
        # row groups may be large: pages are read when they are needed
        file = parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    with file:
        batches = file.iter_batches(rows_of(file.metadata.num_columns), use_threads=False)
        none_yet = True
        while True:
            with reading(".parquet"):
                batch = next(batches, None)
            if batch is None and not none_yet:
                return
            held = file.schema_arrow.empty_table() if batch is None else pyarrow.Table.from_batches([batch])
            yield _table(lambda held=held: held, ".parquet", keep, notes)
            none_yet = False


def read_parquet_folder(path: Path, options: ReadOptions, notes: list[str]) -> Table:
    """Reads the Parquet files of a folder, in the order of their names; folders called ``key=value`` give a column."""
    parquet = _parquet()
    dataset = require("pyarrow.dataset", "reading Parquet folders")
    filesystem = require("pyarrow.fs", "reading Parquet folders")
    files = parquet_files(path)

    def read() -> Any:
        _check_size([parquet.ParquetFile(file) for file in files])
        found = dataset.dataset(
            [file.relative_to(path).as_posix() for file in files],
            format="parquet",
            partitioning="hive",
            filesystem=filesystem.SubTreeFileSystem(str(path), filesystem.LocalFileSystem()),
        )
        return found.to_table()

    return _table(read, ".parquet", options, notes)


def parquet_files(path: Path) -> list[Path]:
    """Returns the Parquet files of a folder and its sub-folders, without hidden ones."""
    found = sorted(path.rglob("*.parquet"))
    return [
        file
        for file in found
        if file.is_file() and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
    ]


def read_feather(path: Path, options: ReadOptions, notes: list[str]) -> Table:
    """Reads a Feather file, which is an Arrow file, or a stream of Arrow tables."""
    pyarrow = require("pyarrow", "reading Feather files")
    feather = require("pyarrow.feather", "reading Feather files")

    def read() -> Any:
        with path.open("rb") as file:
            start = file.read(6)
        if start[:4] == b"\xff\xff\xff\xff":
            with pyarrow.OSFile(str(path)) as source:
                return pyarrow.ipc.open_stream(source).read_all()
        return feather.read_table(str(path), memory_map=False)

    return _table(read, path.suffix, options, notes)


def _parquet() -> Any:
    require("pandas", "reading .parquet files")
    require("pyarrow", "reading .parquet files")
    return require("pyarrow.parquet", "reading .parquet files")


def _check_size(files: list[Any]) -> None:
    check_announced(sum(8 * file.metadata.num_rows * max(1, file.metadata.num_columns) for file in files))


def _table(read: Callable[[], Any], kind: str, options: ReadOptions, notes: list[str]) -> Table:
    pandas = require("pandas", f"reading {kind} files")
    with reading(kind):
        table = read()
        table.validate(full=True)
        found = [] if options.index_column == KEEP else index_columns(table.schema)
        indices = [name for name in found if name not in options.mentioned]
        kept = [place for place, name in enumerate(table.column_names) if name not in indices]
        series = [arrow_series(table.column(place)) for place in kept]
        frame = pandas.concat(series, axis=1) if series else pandas.DataFrame()
        frame.columns = [table.column_names[place] for place in kept]
    told = [name for name in indices if not name.startswith("__index_level_")]
    if told:
        notes.append(f"left out the index of the data frame: {', '.join(told)}; --index-column none keeps it")
    if not kept:
        raise DataError("has no columns besides an index")
    return frame_table(frame, options, notes)


def index_columns(schema: Any) -> list[str]:
    """Returns the names of the columns of an Arrow schema that were the index of a data frame."""
    metadata = schema.metadata or {}
    described = json.loads(metadata.get(b"pandas", b"{}"))
    return [name for name in described.get("index_columns", []) if isinstance(name, str)]
