"""Data to train on: two-dimensional shapes, bundled real data and files, checked and split."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.data.benchmarks import BENCHMARKS, read_benchmark
from jkoflow.data.bundled import gasturbine
from jkoflow.data.checks import DataError, DataWarning, check_finite, check_varies, default_features, warn_about_columns
from jkoflow.data.dataset import Dataset, require_batch
from jkoflow.data.optional import MissingExtraError, require
from jkoflow.data.readers import READERS, ReadOptions, columns_of, read_table, stem
from jkoflow.data.shapes import SHAPES, draw
from jkoflow.data.splits import split_rows, to_float32
from jkoflow.data.table import PARTS, Table
from jkoflow.data.writers import check_output, write_table

__all__ = [
    "BENCHMARKS",
    "BUILT_IN",
    "DataError",
    "DataWarning",
    "Dataset",
    "MissingExtraError",
    "ReadOptions",
    "check_output",
    "columns_of",
    "default_features",
    "draw",
    "load_dataset",
    "load_rows",
    "numeric_columns",
    "place",
    "read_table",
    "require",
    "require_batch",
    "split_rows",
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


def load_dataset(source: str | Path, seed: int = 0, context_columns: Sequence[str] = ()) -> Dataset:
    """Loads data to train on.

    Arguments:
        source: One of `BUILT_IN`; ``SHAPE:N``, such as ``rose:500000``, for N training rows and N / 10
            validation and test rows each; ``NAME:DIRECTORY``, such as ``power:downloads``, for one of the
            `BENCHMARKS`, see `jkoflow.data.benchmarks.read_benchmark`; or a file as in `read_table`. A file without
            parts of its own is split 80/10/10.
        seed: Seed of the points of a shape, and of the split of a file.
        context_columns: Names of columns to condition on, see `Dataset.condition_on`. Columns without names are
            called x0, x1, ...

    Returns:
        The data in their own units.

    Raises:
        DataError: If the name or the file is unknown or the data cannot be used; the message tells the fix.
        MissingExtraError: If pandas or pyarrow is needed and not installed.

    Example:
        >>> load_dataset("moons").train.shape
        torch.Size([20000, 2])
    """
    if context_columns:
        return load_dataset(source, seed).condition_on(context_columns)
    known = _known(source)
    if isinstance(known, _Shape):
        return _draw_parts(known, seed)
    if isinstance(known, str):
        return gasturbine()
    table = _read(known)
    name = known.name if isinstance(known, _BenchmarkFiles) else stem(known)
    try:
        if not table.is_split:
            rows = table.numbers("all")
            data = split_rows(rows, seed, name, table.features)
        else:
            for part in table.parts:
                check_finite(table.numbers(part), table.features, part)
            rows = table.numbers("train")
            check_varies(rows, table.features, "train")
            train, val, test = (to_float32(table.numbers(part)) for part in PARTS)
            data = Dataset(name, train, val, test, table.features)
        warn_about_columns(rows, table.features)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    return data


def load_rows(
    source: str | Path, split: str | None = None, seed: int = 0, features: tuple[str, ...] | None = None
) -> Tensor:
    """Loads rows to score.

    Arguments:
        source: Source of the data, see `load_dataset`.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"``; None means the test part of data that come in
            parts, and every row, in the file's order, of a file that does not.
        seed: Seed as in `load_dataset`; the seed of the training gives the parts of the training.
        features: Names of the wanted columns. In a file with names they are found by name, in any order; in a file
            without names they are taken in the file's order.

    Returns:
        Finite rows, float32, with shape (N, d).

    Raises:
        DataError: If the data cannot be read, hold NaN or inf, or do not have the columns wanted.

    Example:
        >>> load_rows("moons").shape
        torch.Size([4000, 2])
    """
    if split not in (None, "all", *PARTS):
        raise DataError(f"split must be one of {', '.join(PARTS)}, all, got {split!r}")
    known = _known(source)
    if isinstance(known, str | _Shape):
        data = load_dataset(source, seed)
        table = Table({part: list(getattr(data, part).numpy().T) for part in PARTS}, data.features)
    else:
        table = _read(known)
    columns = _columns(table.features, features, source)
    if split in PARTS and not table.is_split:
        return getattr(load_dataset(source, seed), split)[:, columns].contiguous()
    wanted = list(table.parts) if split == "all" or not table.is_split else [split or "test"]
    table = table.take(columns)
    found = []
    for part in wanted:
        kept = table.numbers(part)
        try:
            check_finite(kept, table.features, "" if part == "all" else part)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
        found.append(to_float32(kept))
    return torch.cat(found)


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


def _read(source: _BenchmarkFiles | Path) -> Table:
    if isinstance(source, _BenchmarkFiles):
        return read_benchmark(*source)
    table = read_table(source)
    try:
        return numeric_columns(table)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def numeric_columns(table: Table) -> Table:
    """Returns the columns of numbers of a table; a `DataWarning` names the others.

    Raises:
        DataError: If there are none.
    """
    first = next(iter(table.parts.values()))
    kept = [place for place, values in enumerate(first) if values.dtype.kind in "fiu"]
    others = ", ".join(repr(name) for place, name in enumerate(table.features) if place not in kept)
    if not kept:
        raise DataError(f"has no numeric columns (it has {others}); encode them as numbers")
    if others:
        warnings.warn(f"left out the columns that are not numbers: {others}", DataWarning, stacklevel=2)
    return table.take(kept)


def _columns(have: tuple[str, ...], wanted: tuple[str, ...] | None, source: str | Path) -> list[int]:
    """Returns the indices of the wanted columns: by name if both sides have names, else by position."""
    if wanted is None:
        return list(range(len(have)))
    if set(wanted) <= set(have):  # default names too: context columns come last, wherever the file has them
        return [have.index(name) for name in wanted]
    if default_features(len(have)) != have and default_features(len(wanted)) != wanted:
        missing = [name for name in wanted if name not in have]
        if missing:
            raise DataError(
                f"{source} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
                f"it has {', '.join(have)}"
            )
        return [have.index(name) for name in wanted]
    if len(have) != len(wanted):
        raise DataError(
            f"{source} has {len(have)} column{'s' if len(have) > 1 else ''}, expected {len(wanted)} "
            f"({', '.join(wanted)}); give the columns that the flow was trained on"
        )
    return list(range(len(have)))


def _draw_parts(shape: _Shape, seed: int) -> Dataset:
    points = draw(shape.name, sum(shape.rows), seed)
    train, val, test = points.split(shape.rows)
    return Dataset(shape.name, train, val, test, ("x", "y"))
