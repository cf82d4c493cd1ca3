"""The way of a table larger than memory into scratch files, from which training reads its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jkoflow.callers import warn_caller
from jkoflow.data.checks import DataError, DataWarning, default_features
from jkoflow.data.columns.decide import Decided, decide
from jkoflow.data.columns.options import TableOptions
from jkoflow.data.dataset import Dataset
from jkoflow.data.readers.options import KEEP
from jkoflow.data.readers.row_numbers import without_row_numbers
from jkoflow.data.repeats import TOLD_FROM, made_by_chance, row_groups, row_keys
from jkoflow.data.splits import MIN_ROWS, warn_of_shares
from jkoflow.data.streamed.distinct import Repeats, find_repeats
from jkoflow.data.streamed.order import in_order, split_order
from jkoflow.data.streamed.sources import Source, open_source
from jkoflow.data.streamed.survey import Survey, block_rows
from jkoflow.data.table import PARTS, Table
from jkoflow.mapped import check_room, empty, empty_beside, release, return_freed_memory
from jkoflow.memory_limit import MemoryLimit, least_limit

FILE_BYTES = 32
"""Bytes of a file of another kind for which a row of one column is counted, by how memory holds rows."""


def load_streamed(
    source: Source,
    name: str,
    seed: int,
    options: TableOptions,
    memory: MemoryLimit,
    directory: Path,
    frames: str | None = None,
) -> Dataset:
    """Loads a table larger than memory, whose columns are plain real numbers.

    Arguments:
        source: The table.
        name: Name of the data in reports.
        seed: Seed of the split.
        options: What is known of the table and its columns.
        memory: The limit of memory.
        directory: Where the scratch files lie, which go with the data.
        frames: Library of the data frames that samples are to be.

    Returns:
        The data, in scratch files. Parts and their order are those of the same table in memory.

    Raises:
        DataError: If the data cannot be used; the message tells the fix.
        jkoflow.mapped.ScratchError: If there is no room for the scratch files.
    """
    _check(source, options, memory)
    return_freed_memory()
    source.check()
    kinds = {name: kind for name, kind in options.columns.items() if name not in source.left_out}
    options = dataclasses.replace(options, columns=kinds)
    survey = Survey(source)
    table, kept = _without_row_numbers(survey, options)
    survey.check({name: place for name, place in kept.items() if options.columns.get(name) != "drop"})
    decided = decide(table, options)
    decided.tell()
    _refuse_others(decided)
    names = [plan.name for plan in (*decided.own, *decided.context)]
    columns = [kept[name] for name in names]
    check_room(_scratch_bytes(source.rows, len(columns)), directory)
    stored, repeats = _stored(source, columns, memory, directory)
    repeats = _without_chance(repeats, [table.parts["all"][table.features.index(name)] for name in names], len(stored))
    order, sizes = split_order(stored, repeats, seed)
    warn_of_shares(sizes)
    fields: dict[str, Any] = {}
    for suffix, chosen in (("", slice(len(decided.own))), ("_context", slice(len(decided.own), None))):
        if len(range(*chosen.indices(len(columns)))):
            split = zip(PARTS, order.split(sizes), strict=True)
            fields |= {f"{part}{suffix}": in_order(stored, some, chosen, memory.room // 2) for part, some in split}
    return Dataset(name, frames=frames, _compared=True, **decided.fields(), **fields)


def _check(source: Source, options: TableOptions, memory: MemoryLimit) -> None:
    """Refuses what is not done in parts."""
    for option, value in (("group", options.group), ("split_by", options.split_by)):
        if value is not None:
            raise DataError(
                f"{option} needs all rows in memory, and memory = {memory.limit / 1e9:g}GB does not hold "
                f"{source.rows:,} rows: raise memory, or leave {option} out"
            )
    if source.rows < MIN_ROWS:
        raise DataError(f"the table has {source.rows} rows; give at least {MIN_ROWS}, so that each part gets one")
    dim = len(source.features)
    if not memory.allows(source.rows, dim):
        raise DataError(
            f"memory = {memory.limit / 1e9:g}GB is too little for {source.rows:,} rows of {dim} columns, which need "
            f"{least_limit(source.rows, dim)}: raise memory, or give fewer rows"
        )


def _without_row_numbers(survey: Survey, options: TableOptions) -> tuple[Table, dict[str, int]]:
    """Returns the rows that columns are judged by, without row numbers, and the places of its columns in the source."""
    table, reading = survey.sample, options.reading
    if table.is_named or reading.index_column is not None:
        notes: list[str] = []
        rest = without_row_numbers(table, table.is_named, reading, notes)
        for note in notes:
            warn_caller(note, DataWarning)
        names = rest.features if table.is_named else [f for f in table.features if f != reading.index_column]
        places = range(len(table.features)) if reading.index_column == KEEP else map(table.features.index, names)
        return rest, dict(zip(rest.features, places, strict=True))
    dim = len(table.features)
    if not survey.counts_rows or dim < 2 or table.features[0] in reading.mentioned:
        return table, dict(zip(table.features, range(dim), strict=True))
    warn_caller("left out row numbers: the first column; --index-column none keeps them", DataWarning)
    rest = Table(table.take(range(1, dim)).parts, default_features(dim - 1))
    return rest, dict(zip(rest.features, range(1, dim), strict=True))


def _refuse_others(decided: Decided) -> None:
    """Refuses columns that are no plain real numbers."""
    names = [f"{plan.name!r} ({plan.kind}: {plan.reason})" for plan in decided.others]
    names += [f"{name!r} (a function of others)" for name in decided.dependences]
    if names:
        first = decided.others[0].name if decided.others else next(iter(decided.dependences))
        raise DataError(
            f"the column{'s' if len(names) > 1 else ''} {', '.join(names)} must be plain real numbers where rows are "
            f"more than memory holds; leave out with --columns {first}=drop, say {first}=real, or raise memory"
        )


def _scratch_bytes(rows: int, columns: int) -> int:
    """Returns the most bytes of scratch files that are there at once.

    These are rows as they come and in order, with two orders; later rows in order, and those before and behind a block.
    """
    return rows * (12 * columns + 8)


def _stored(source: Source, columns: Sequence[int], memory: MemoryLimit, directory: Path) -> tuple[Tensor, Repeats]:
    """Returns the rows (N, d) as they come, in a scratch file, and those that are repeated."""
    stored = empty((source.rows, len(columns)), torch.float32, directory)
    keys = empty_beside(stored, source.rows, torch.int64)
    start, held = 0, 0
    for block in source.blocks(block_rows(source)):
        chosen = [block[column] for column in columns]
        stop = start + len(chosen[0])
        stored[start:stop] = torch.from_numpy(np.stack(chosen, 1).astype(np.float32))
        keys[start:stop] = torch.from_numpy(row_keys(chosen).view(np.int64))
        start, held = stop, held + 1
        release(stored)
        release(keys)
    return stored, find_repeats(keys, memory.room // 2)


def _without_chance(repeats: Repeats, columns: Sequence[np.ndarray], count: int) -> Repeats:
    """Returns the rows that are repeated, or none if chance makes them; refuses tables that hold hardly others.

    Arguments:
        repeats: The rows that are repeated.
        columns: Columns of rows of the table, by which chance is judged.
        count: Number of rows of the table.
    """
    found = len(repeats.rows)
    if count - found < MIN_ROWS:
        raise DataError(
            f"only {count - found} of {count} rows are distinct; give at least {MIN_ROWS} distinct rows, such as "
            "columns that are not rounded"
        )
    if found == 0:
        return repeats
    groups = row_groups(columns)
    if int(groups.max()) + 1 < len(groups) and made_by_chance(columns, groups):
        return Repeats(repeats.rows[:0], repeats.firsts[:0])
    if found >= TOLD_FROM * count:
        warn_caller(
            f"{found} of {count} rows repeat an earlier row; equal rows go to the same part of the split", DataWarning
        )
    return repeats


def source_beyond(path: Path, options: TableOptions, memory: MemoryLimit) -> Source | None:
    """Returns a file or folder that memory does not hold, to be read in blocks; None if memory holds it.

    Raises:
        DataError: If memory does not hold it and it cannot be read in blocks.
    """
    if options.reading.describes_text:  # of text alone
        return None
    source = open_source(path, options)
    if source is not None:
        return None if memory.holds(source.rows, len(source.features)) else source
    size = path.stat().st_size if path.is_file() else 0
    if not memory.holds(size // FILE_BYTES, 1):
        raise DataError(
            f"memory = {memory.limit / 1e9:g}GB does not hold a {path.suffix} file of {size / 1e9:.1f} GB: convert it "
            "to .npy or .parquet, which are read in parts, or raise memory"
        )
    return None
