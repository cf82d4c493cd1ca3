"""Data to train on: two-dimensional shapes, bundled real data and files, checked and split."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.data.benchmarks import BENCHMARKS, read_benchmark
from jkoflow.data.bundled import gasturbine
from jkoflow.data.checks import DataError, DataWarning, check_finite, check_varies, default_features
from jkoflow.data.chosen import chosen_columns
from jkoflow.data.columns.options import TableOptions
from jkoflow.data.columns.prepare import TableData, prepare, split_table
from jkoflow.data.dataset import Dataset, warn_once
from jkoflow.data.memory import as_table, numbers_of
from jkoflow.data.readers import READERS, ReadOptions, columns_of, is_text, read_table, stem
from jkoflow.data.readers.options import KEEP
from jkoflow.data.shapes import SHAPES, draw
from jkoflow.data.splits import split_rows, to_float32
from jkoflow.data.streamed import load_streamed, source_beyond
from jkoflow.data.table import PARTS, Table
from jkoflow.data.writers import check_numbers, check_output, check_place, write_table
from jkoflow.links import Link
from jkoflow.mapped import scratch_directory
from jkoflow.memory_limit import MemoryLimit
from jkoflow.optional import MissingExtraError, require

__all__ = [
    "BENCHMARKS",
    "BUILT_IN",
    "DataError",
    "DataWarning",
    "Dataset",
    "MissingExtraError",
    "ReadOptions",
    "Scored",
    "TableData",
    "TableOptions",
    "as_table",
    "check_numbers",
    "check_output",
    "check_place",
    "chosen_columns",
    "columns_of",
    "default_features",
    "draw",
    "load_dataset",
    "load_rows",
    "load_scored",
    "load_table",
    "place",
    "read_table",
    "reading_of",
    "require",
    "scored_of",
    "split_rows",
    "warn_once",
    "write_table",
]

BUILT_IN = (*SHAPES, "gasturbine")
"""Names that `load_dataset` knows without a file."""

SHAPE_ROWS = (20_000, 4_000, 4_000)
"""Numbers of training, validation and test rows of a two-dimensional shape."""


class _Shape(NamedTuple):
    name: str
    rows: tuple[int, int, int]


class _BenchmarkFiles(NamedTuple):
    name: str
    directory: Path


def load_dataset(
    source: str | Path,
    seed: int = 0,
    context_columns: Sequence[str] = (),
    options: TableOptions | None = None,
    memory: str | None = None,
    scratch: str | Path | None = None,
) -> Dataset | TableData:
    """Loads data to train on.

    Arguments:
        source: One of `BUILT_IN`; ``SHAPE:N``, such as ``rose:500000``, for N training rows and N / 10
            validation and test rows each; ``NAME:DIRECTORY``, such as ``power:downloads``, for one of the
            `BENCHMARKS`, see `jkoflow.data.benchmarks.read_benchmark`; or a file as in `read_table`. A file without
            parts of its own is split 80/10/10, see `jkoflow.data.splits.split_order`.
        seed: Seed of the points of a shape, and of the split of a file.
        context_columns: Names of columns to condition on, see `Dataset.condition_on`. Columns without names are
            called x0, x1, ...
        options: What is known of a file and its columns; the rest is found out.
        memory: Memory that the whole process may take, such as ``"2GB"``. A .npy or .parquet file, or a folder of
            those, that needs more is read in parts and lies in scratch files then; its columns must be real numbers.
        scratch: Path beside or in which the scratch files lie, such as a run directory; that of temporary files if
            None.

    Returns:
        The data in their own units: a `Dataset` if all columns are plain numbers, else a `TableData`.

    Raises:
        DataError: If the name or the file is unknown or the data cannot be used; the message tells the fix.
        MissingExtraError: If a package is needed and not installed.

    Example:
        >>> load_dataset("moons").train.shape
        torch.Size([20000, 2])
    """
    options = TableOptions() if options is None else options
    if context_columns:
        options = dataclasses.replace(options, context_columns=tuple(context_columns))
    known = _known(source)
    if isinstance(known, Path):
        try:
            if memory is not None:
                limit, name = MemoryLimit.parse(memory), stem(known)
                if (beyond := source_beyond(known, options, limit)) is not None:
                    return load_streamed(beyond, name, seed, options, limit, scratch_directory(scratch), "pandas")
            return prepare(read_table(known, options.reading), stem(known), seed, options, frames="pandas")
        except DataError as error:
            raise DataError(_from(source, error)) from error
    _refuse_options(source, options)
    data = _built_in(source, known, seed)
    return data.condition_on(options.context_columns) if options.context_columns else data


def load_table(
    source: str | Path, split: str | None = None, seed: int = 0, options: TableOptions | None = None
) -> Table:
    """Loads rows to score, in the types that they come in.

    Arguments:
        source: Source of the data, see `load_dataset`.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"``; None means the test part of data that come in
            parts, and every row, in the file's order, of a file that does not.
        seed: Seed as in `load_dataset`; the seed of the training gives the parts of the training.
        options: What was said about the data of the training.

    Returns:
        All columns, in one part.

    Raises:
        DataError: If the data cannot be read.
    """
    _check_split(split)
    options = TableOptions() if options is None else options
    table = _read(source, seed, options.reading)
    return _part(table, split, _order(table, split, seed, options))


def load_scored(
    source: str | Path,
    wanted: tuple[str, ...],
    split: str | None = None,
    seed: int = 0,
    options: TableOptions | None = None,
    told: Mapping[str, Any] | None = None,
) -> Scored:
    """Loads rows to score with the columns that a model does not use, such as identifiers and row numbers.

    Arguments:
        source: Source of the data, see `load_dataset`.
        wanted: Names of the columns that the model needs.
        split: As for `load_table`.
        seed: As for `load_table`.
        options: What was said about the data of the training; what cannot hold for this file does not count.
        told: What is said about this file, under the names of `ReadOptions`.

    Raises:
        DataError: If the data cannot be read or a wanted column is missing.
    """
    _check_split(split)
    options, told = TableOptions() if options is None else options, dict(told or {})
    if not isinstance(_known(source), Path):
        if told:
            raise DataError(f"{source} is built in and no file: leave out {', '.join(told)}")
        table = load_table(source, split, seed)
        return scored_of(table, table, wanted, source)
    reading = reading_of(source, options, told)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        table = _read(source, seed, dataclasses.replace(reading, index_column=KEEP))
    if "index_column" not in told and reading.index_column not in (KEEP, *table.features):
        reading = dataclasses.replace(reading, index_column=None)
    usable, order = table, None
    by_name = table.is_named and set(wanted) <= set(table.features)
    if "index_column" in told or not by_name or (split in PARTS and not table.is_split):
        with warnings.catch_warnings(record=True) as more:
            warnings.simplefilter("always")
            usable = _read(source, seed, reading)
        order = _order(usable, split, seed, options)
        if not table.is_named:
            table, notes = usable, more
    for note in notes:
        warnings.warn_explicit(note.message, note.category, note.filename, note.lineno)
    usable = table if by_name else usable
    return scored_of(_part(table, split, order), _part(usable, split, order), wanted, source)


def reading_of(source: str | Path, options: TableOptions, told: Mapping[str, Any]) -> ReadOptions:
    """Returns how a file of rows to score is read: as said about it, or else, where that can hold, as in the training.

    Arguments:
        source: The file.
        options: What was said about the data of the training.
        told: What is said about this file, under the names of `ReadOptions`.
    """
    usual = options.reading.to_mapping()
    if not is_text(source):
        usual = {name: value for name, value in usual.items() if name == "index_column"}
    return dataclasses.replace(
        ReadOptions.from_mapping({**usual, **told}), mentioned=options.reading.mentioned, texts=options.reading.texts
    )


class Scored(NamedTuple):
    """Rows to score."""

    table: Table
    """All columns of the source, in its order."""
    chosen: Table
    """The columns that the model needs, under the names and in the order that it has for them."""
    unused: tuple[str, ...]
    """Names of the other columns of the table."""


def scored_of(table: Table, usable: Table, wanted: tuple[str, ...], source: str | Path) -> Scored:
    """Returns rows with the columns that a model needs, found in a table without those that are left out."""
    chosen = chosen_columns(usable, wanted, str(source))
    used = wanted if set(wanted) <= set(usable.features) else usable.features
    return Scored(table, chosen, tuple(name for name in table.features if name not in used))


def _check_split(split: str | None) -> None:
    if split not in (None, "all", *PARTS):
        raise DataError(f"split must be one of {', '.join(PARTS)}, all, got {split!r}")


def _read(source: str | Path, seed: int, reading: ReadOptions) -> Table:
    """Reads all columns of a source."""
    known = _known(source)
    if not isinstance(known, Path):
        data = _built_in(source, known, seed)
        return Table({part: list(getattr(data, part).numpy().T) for part in PARTS}, data.features)
    try:
        return read_table(known, reading)
    except DataError as error:
        raise DataError(_from(source, error)) from error


def _order(table: Table, split: str | None, seed: int, options: TableOptions) -> NDArray[np.int64] | None:
    """Returns the numbers of the rows of a part, in a table that does not come in parts itself."""
    return None if table.is_split or split not in PARTS else split_table(table, seed, options)[split]


def _part(table: Table, split: str | None, order: NDArray[np.int64] | None) -> Table:
    """Returns a part of a table as the only one: the rows given, or those that the table has under its name."""
    if order is not None:
        return Table({"all": [values[order] for values in table.parts["all"]]}, table.features)
    wanted = list(table.parts) if split == "all" or not table.is_split else [split or "test"]
    parts = [table.parts[part] for part in wanted]
    return Table({"all": [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]}, table.features)


def load_rows(
    source: str | Path,
    split: str | None = None,
    seed: int = 0,
    features: tuple[str, ...] | None = None,
    options: TableOptions | None = None,
) -> Tensor:
    """Loads rows of numbers to score.

    Arguments:
        source: Source of the data, see `load_dataset`.
        split: The part of the data, see `load_table`.
        seed: Seed of the training.
        features: Names of the wanted columns. In a file with names they are found by name, in any order; in a file
            without names they are taken in the file's order.
        options: What was said about the data of the training.

    Returns:
        Finite rows, float32, with shape (N, d).

    Raises:
        DataError: If the data cannot be read, hold NaN or inf, or do not have the columns wanted.

    Example:
        >>> load_rows("moons").shape
        torch.Size([4000, 2])
    """
    table = load_table(source, split, seed, options)
    if features is not None:
        table = chosen_columns(table, features, str(source))
    try:
        rows = numbers_of(table)
        check_finite(rows, table.features)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    return to_float32(rows)


def _built_in(source: str | Path, known: str | _Shape | _BenchmarkFiles, seed: int) -> Dataset:
    """Returns data that need no options: shapes, bundled data and benchmarks."""
    if isinstance(known, _Shape):
        return _draw_parts(known, seed)
    if isinstance(known, str):
        return gasturbine()
    table = read_benchmark(*known)
    try:
        if not table.is_split:
            return split_rows(table.numbers("all"), seed, known.name, table.features)
        for part in PARTS:
            check_finite(table.numbers(part), table.features, part)
        check_varies(table.numbers("train"), table.features, "train")
        train, val, test = (to_float32(table.numbers(part)) for part in PARTS)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    return Dataset(known.name, train, val, test, table.features)


def _refuse_options(source: str | Path, options: TableOptions) -> None:
    told = [name for name in options.to_mapping() if name != "context_columns"]
    if told:
        raise DataError(f"{source} is built in, and its columns are real numbers: leave out {', '.join(told)}")


def _from(source: str | Path, error: DataError) -> str:
    text = str(error)
    return text if text.startswith(str(source)) else f"{source}: {text}"


def place(source: str | Path) -> str:
    """Returns a source as a run records it, with paths that hold from any working directory."""
    known = _known(source)
    if isinstance(known, _BenchmarkFiles):
        return f"{known.name}:{known.directory.resolve()}"
    return str(known.resolve()) if isinstance(known, Path) else str(source)


def _known(source: str | Path) -> str | _Shape | _BenchmarkFiles | Path:
    """Returns what a source stands for; an unknown one raises an error that tells the known ones."""
    name, colon, rest = str(source).partition(":")
    if isinstance(source, str) and name in SHAPES:
        return _Shape(name, _shape_rows(name, rest) if colon else SHAPE_ROWS)
    if source == "gasturbine":
        return "gasturbine"
    if isinstance(source, str) and name in BENCHMARKS and colon:
        return _BenchmarkFiles(name, Path(rest or "."))
    path = Path(source)
    if path.suffix or path.exists() or path.parent != Path():
        return path
    if name in BENCHMARKS:
        raise DataError(f"{name} needs the benchmark's files: name their directory, as {name}:DIRECTORY")
    near = difflib.get_close_matches(str(source), BUILT_IN, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise DataError(
        f"unknown data {str(source)!r}: {hint}Built in are {', '.join(BUILT_IN)}; files end in {', '.join(READERS)}"
    )


def _shape_rows(name: str, text: str) -> tuple[int, int, int]:
    if not (text.isdecimal() and int(text) >= 10):
        raise DataError(f"the rows after {name}: must be a whole number of at least 10, got {text!r}; as {name}:500000")
    rows = int(text)
    return rows, rows // 10, rows // 10


def _draw_parts(shape: _Shape, seed: int) -> Dataset:
    points = draw(shape.name, sum(shape.rows), seed)
    train, val, test = points.split(shape.rows)
    return Dataset(shape.name, train, val, test, ("x", "y"), links=(Link(), Link()))  # a drawing has no bounds
