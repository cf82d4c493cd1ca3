"""The split of one table into training, validation and test rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.data.checks import DataError, check_finite, check_varies, default_features, warn_about_columns
from jkoflow.data.dataset import Dataset
from jkoflow.data.memory import as_table, check_paired, numbers_of
from jkoflow.inputs import Rows

SHARE = 0.1
"""Share of the rows for validation, and again for the test."""

MIN_ROWS = 10


def split_rows(
    rows: Rows,
    seed: int = 0,
    name: str = "data",
    features: tuple[str, ...] | None = None,
    attribution: str = "",
    context: Rows | None = None,
) -> Dataset:
    """Splits a table 80/10/10 by a seeded shuffle; a `DataWarning` points out columns that should be looked at.

    Arguments:
        rows: Finite numbers, no column constant, with shape (N, d), N at least 10, or (N,) for one column: an array, a
            tensor, nested lists, a Series or a data frame of pandas.
        seed: Seed of the shuffle.
        name: Name of the data in reports.
        features: Names of the d columns; None means those of a data frame, or x0, x1, ...
        attribution: Source and licence.
        context: Conditioning variables of the rows, with shape (N, c), or (N,) for one, for a conditional density, in
            any form that rows may have; their names are those of a data frame, or c0, c1, ...

    Returns:
        The three parts, float32.

    Raises:
        DataError: If there are too few rows, NaN or inf (row and column are named), a constant column or one that does
            not hold numbers.

    Example:
        >>> data = split_rows(torch.randn(100, 3))
        >>> len(data.train), len(data.val), len(data.test)
        (80, 10, 10)
    """
    if context is not None:
        return _split_with_context(rows, context, seed, name, features, attribution)
    given = as_table(rows)
    table, features = numbers_of(given), given.features if features is None else features
    if len(features) != table.shape[1]:
        raise DataError(f"features must name the {table.shape[1]} columns, got {len(features)} names")
    if len(table) < MIN_ROWS:
        raise DataError(f"{name} has {len(table)} rows; give at least {MIN_ROWS}, so that each part gets one")
    check_finite(table, features)
    check_varies(table, features)
    warn_about_columns(table, features)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    shuffled = to_float32(table)[order]
    held_out = round(SHARE * len(table))
    train, val, test = shuffled.tensor_split([len(table) - 2 * held_out, len(table) - held_out])
    return Dataset(name, train, val, test, features, attribution, warned=True)


def _split_with_context(
    rows: Rows,
    context: Rows,
    seed: int,
    name: str,
    features: tuple[str, ...] | None,
    attribution: str,
) -> Dataset:
    check_paired(rows, context)
    given, given_context = as_table(rows), as_table(context, "context")
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
    joined = np.concatenate([table, conditions], 1)
    return split_rows(joined, seed, name, (*names, *context_names), attribution).condition_on(context_names)


def to_float32(rows: NDArray[Any]) -> Tensor:
    """Returns rows as a float32 tensor of the same shape that owns its memory."""
    return torch.from_numpy(np.array(rows, dtype=np.float32))
