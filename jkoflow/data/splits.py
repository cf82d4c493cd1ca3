"""The split of one table into training, validation and test rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.callers import warn_caller
from jkoflow.data.checks import (
    DataError,
    DataWarning,
    check_finite,
    check_unmasked,
    check_varies,
    default_features,
    warn_about_columns,
)
from jkoflow.data.dataset import Dataset
from jkoflow.data.memory import as_table, check_paired, numbers_of
from jkoflow.data.near import near_duplicates
from jkoflow.data.repeats import TOLD_FROM, column_bits, group_numbers, made_by_chance, row_groups
from jkoflow.frames import library_of
from jkoflow.inputs import Rows

SHARE = 0.1
"""Share of the rows for validation, and again for the test."""

MIN_ROWS = 10

Column = NDArray[Any]
Order = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def split_order(
    columns: Sequence[Column], seed: int = 0, group: Tensor | Column | None = None, by: Tensor | Column | None = None
) -> Order:
    """Splits the rows of a table 80/10/10 so that nothing is learnt from the rows held out.

    Without ``group`` and ``by`` the rows are shuffled, and equal rows go to the same part. Only rows that are equal by
    chance, as in columns of counts, are shuffled one by one; see `jkoflow.data.repeats.made_by_chance`. A table without
    repeated rows is split as in version 0.1.

    Arguments:
        columns: The d columns, each with shape (N,), N at least 10: numbers, truth values, dates or text.
        seed: Seed of the shuffle.
        group: What rows belong to, such as a person or a place, with shape (N,): numbers, truth values, dates or text.
            All rows of a group go to the same part.
        by: Numbers or dates to split by, such as a time, with shape (N,): the smallest 80 % are for training, the
            largest 10 % for the test. Equal values go to the same part.

    Returns:
        The numbers of the training, validation and test rows. Together they are 0, 1, ..., N - 1; with ``by``, in its
        order.

    Raises:
        DataError: If the rows are fewer than 10, or fewer than 10 are distinct; ``group`` or ``by`` has missing values
            or fewer than 3 different ones, or both are given.

    Warns:
        DataWarning: If rows are repeated, if many rows held out nearly equal training rows, or if the parts are far
            from 80/10/10.

    Example:
        >>> train, val, test = split_order([np.arange(20.0)], by=np.arange(20)[::-1])
        >>> train[:3], val, test
        (array([19, 18, 17]), array([3, 2]), array([1, 0]))
    """
    rows = len(columns[0])
    _check_count(rows, "the table")
    if by is not None:
        if group is not None:
            raise DataError("group and split_by were both given, and each tells how to split; give one of them")
        return _in_order(_checked(by, "split_by", rows))
    if group is not None:
        groups = group_numbers(column_bits(_checked(group, "group", rows)))
        found = int(groups.max()) + 1
        if found < 3:
            raise DataError(
                f"group has {found} different value{'s' if found > 1 else ''}, fewer than one for each of the 3 parts; "
                "give a column with more, or leave group out"
            )
        return _whole_groups(groups, seed)
    groups = row_groups(columns)
    repeats = _count_repeats(groups)
    by_chance = repeats > 0 and made_by_chance(columns, groups)
    order = _whole_groups(np.arange(rows) if by_chance else groups, seed)
    if not by_chance and repeats >= TOLD_FROM * rows:
        _warn(f"{repeats} of {rows} rows repeat an earlier row; equal rows go to the same part of the split")
    _warn_of_near_duplicates(columns, groups, order)
    return order


def _check_count(rows: int, name: str) -> None:
    if rows < MIN_ROWS:
        raise DataError(f"{name} has {rows} rows; give at least {MIN_ROWS}, so that each part gets one")


def _count_repeats(groups: NDArray[np.int64]) -> int:
    """Returns the number of rows that repeat an earlier one; refuses tables that hold hardly anything else."""
    distinct = int(groups.max()) + 1
    if distinct < MIN_ROWS:
        raise DataError(
            f"only {distinct} of {len(groups)} rows are distinct; give at least {MIN_ROWS} distinct rows, such as "
            "columns that are not rounded"
        )
    return len(groups) - distinct


def _checked(values: Any, name: str, rows: int) -> Column:
    """Returns what the user gave as ``group`` or ``split_by``: one value for each row, none missing."""
    mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else False
    column = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if column.shape != (rows,):
        raise DataError(f"{name} must have one value for each of the {rows} rows, got shape {column.shape}")
    kind = column.dtype.kind
    if name == "split_by" and kind not in "fiuM":
        raise DataError(f"split_by must be numbers or dates (datetime64), got {column.dtype}; use group for labels")
    if kind == "O":
        missing = np.array([_is_missing(value) for value in column.tolist()], dtype=bool)
    else:
        missing = np.isnan(column) if kind == "f" else np.isnat(column) if kind in "mM" else np.zeros(rows, dtype=bool)
    missing |= mask
    if missing.any():
        raise DataError(
            f"{name} is missing in row {int(missing.argmax())} (counting from 0) and in {int(missing.sum())} "
            f"row{'s' if missing.sum() > 1 else ''} in all; fill it in, or drop these rows"
        )
    return column


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA is neither equal to itself nor different
        return True


def _whole_groups(groups: NDArray[np.int64], seed: int) -> Order:
    """Shuffles groups of rows into the three parts, those larger than a part to be held out into the training part."""
    rows, sizes = len(groups), np.bincount(groups)
    held_out = round(SHARE * rows)
    shuffled = _permutation(len(sizes), seed)
    large = sizes[shuffled] > held_out
    shuffled = np.concatenate([shuffled[large], shuffled[~large]])
    first, second = _cuts(np.cumsum(sizes[shuffled])[:-1], rows)
    part = np.empty(len(sizes), dtype=np.int64)
    for number, members in enumerate(np.split(shuffled, [first + 1, second + 1])):
        part[members] = number
    order = _permutation(rows, seed)
    parts = part[groups[order]]
    train, val, test = (order[parts == number] for number in range(3))
    warn_of_shares([len(part) for part in (train, val, test)])
    return train, val, test


def _in_order(values: Column) -> Order:
    """Splits by the order of a column, between two different values."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    changes = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    if len(changes) < 2:
        raise DataError(
            f"split_by has {len(changes) + 1} different value{'s' if len(changes) else ''}, fewer than one for each of "
            "the 3 parts; give a column with more, or leave split_by out"
        )
    first, second = _cuts(changes, len(values))
    train, val, test = np.split(order, [changes[first], changes[second]])
    warn_of_shares([len(part) for part in (train, val, test)])
    return train, val, test


def _cuts(places: NDArray[np.int64], rows: int) -> tuple[int, int]:
    """Returns which of the ascending places to cut at, so that the parts come nearest to 80/10/10."""
    held_out = round(SHARE * rows)
    first = int(np.abs(places[:-1] - (rows - 2 * held_out)).argmin())
    second = first + 1 + int(np.abs(places[first + 1 :] - (rows - held_out)).argmin())
    return first, second


def _permutation(count: int, seed: int) -> NDArray[np.int64]:
    return torch.randperm(count, generator=seeded(seed)).numpy()


def seeded(seed: int) -> torch.Generator:
    """Returns the generator of the shuffle of a split."""
    return torch.Generator().manual_seed(seed)


def warn_of_shares(sizes: Sequence[int]) -> None:
    """Warns of numbers of training, validation and test rows that are far from 80/10/10."""
    rows = sum(sizes)
    if any(not 0.5 * SHARE <= size / rows <= 2 * SHARE for size in sizes[1:]):
        train, val, test = sizes
        _warn(
            f"{train} of {rows} rows are for training, {val} for validation and {test} for the test, instead of "
            "80/10/10: rows that must go to the same part are too many"
        )


def _warn_of_near_duplicates(columns: Sequence[Column], groups: NDArray[np.int64], order: Order) -> None:
    held_out = np.ones(len(groups), dtype=bool)
    held_out[order[0]] = False
    first = np.unique(groups, return_index=True)[1]
    found = near_duplicates([column[first] for column in columns], held_out[first])
    if found is not None:
        _warn(
            f"{found.share:.0%} of the validation and test rows nearly equal a training row (within {found.width:.1g} "
            "of the spread of every column), far more than by chance, so that results on them look better than on new "
            "rows; name the column that tells which rows belong together as group (--group)"
        )


def _warn(text: str) -> None:
    warn_caller(text, DataWarning)


def split_rows(
    rows: Rows,
    seed: int = 0,
    name: str = "data",
    features: tuple[str, ...] | None = None,
    attribution: str = "",
    context: Rows | None = None,
    group: Tensor | Column | None = None,
    split_by: Tensor | Column | None = None,
) -> Dataset:
    """Splits a table 80/10/10: by a seeded shuffle that keeps equal rows together, by groups or by a column.

    A `DataWarning` points out columns that should be looked at.

    Arguments:
        rows: Finite numbers, no column constant, with shape (N, d), N at least 10, or (N,) for one column: an array, a
            tensor, nested lists, or a Series or data frame, see `jkoflow.data.as_table`.
        seed: Seed of the shuffle.
        name: Name of the data in reports.
        features: Names of the d columns; None means those of a data frame, or x0, x1, ...
        attribution: Source and licence.
        context: Conditioning variables of the rows, with shape (N, c), or (N,) for one, for a conditional density, in
            any form that rows may have; their names are those of a data frame, or c0, c1, ...
        group: What each row belongs to, with shape (N,), see `split_order`; a group is not divided.
        split_by: Numbers or dates, with shape (N,), see `split_order`: the smallest are for training, the largest for
            the test.

    Returns:
        The three parts, float32.

    Raises:
        DataError: If there are too few rows or distinct rows, NaN, inf or a masked value (row and column are named), a
            constant column or one that does not hold numbers, or a ``group`` or ``split_by`` that does not make three
            parts.

    Example:
        >>> data = split_rows(torch.randn(100, 3))
        >>> len(data.train), len(data.val), len(data.test)
        (80, 10, 10)
    """
    if context is not None:
        return _split_with_context(rows, context, seed, name, features, attribution, group, split_by)
    given = as_table(rows, row_numbers=False, texts=())
    table, features = numbers_of(given), given.features if features is None else features
    if len(features) != table.shape[1]:
        raise DataError(f"features must name the {table.shape[1]} columns, got {len(features)} names")
    _check_count(len(table), name)
    check_unmasked(rows, features)
    check_finite(table, features)
    check_varies(table, features)
    warn_about_columns(table, features)
    order = split_order(list(table.T), seed, group, split_by)
    stored = to_float32(table)
    train, val, test = (stored[torch.from_numpy(part)] for part in order)
    compared = group is None and split_by is None  # equal rows are in the same part
    return Dataset(
        name, train, val, test, features, attribution, frames=library_of(rows), warned=True, _compared=compared
    )


def _split_with_context(
    rows: Rows,
    context: Rows,
    seed: int,
    name: str,
    features: tuple[str, ...] | None,
    attribution: str,
    group: Tensor | Column | None,
    split_by: Tensor | Column | None,
) -> Dataset:
    check_paired(rows, context)
    given, given_context = as_table(rows, row_numbers=False, texts=()), as_table(context, "context")
    table, conditions = numbers_of(given), numbers_of(given_context)
    if len(table) != len(conditions):
        raise DataError(f"context must have {len(table)} rows as rows has, got {len(conditions)}")
    names, context_names = given.features if features is None else features, given_context.features
    if context_names == default_features(len(context_names)):
        context_names = tuple(f"c{column}" for column in range(len(context_names)))
    shared = [feature for feature in context_names if feature in names]
    if shared:
        raise DataError(
            f"rows and context must be different columns, got {', '.join(shared)} in both; drop one of each"
        )
    check_unmasked(rows, names)
    check_unmasked(context, context_names)
    joined = np.concatenate([table, conditions], 1)
    data = split_rows(joined, seed, name, (*names, *context_names), attribution, group=group, split_by=split_by)
    return dataclasses.replace(data.condition_on(context_names), frames=library_of(rows))


def to_float32(rows: NDArray[Any]) -> Tensor:
    """Returns rows as a float32 tensor of the same shape that owns its memory."""
    return torch.from_numpy(np.array(rows, dtype=np.float32))
