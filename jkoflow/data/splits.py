"""The split of one table into training, validation and test rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.data.checks import DataError, check_finite, check_varies, default_features
from jkoflow.data.dataset import Dataset

SHARE = 0.1
"""Share of the rows for validation, and again for the test."""

MIN_ROWS = 10


def split_rows(
    rows: Tensor | NDArray[Any],
    seed: int = 0,
    name: str = "data",
    features: tuple[str, ...] | None = None,
    attribution: str = "",
    context: Tensor | NDArray[Any] | None = None,
) -> Dataset:
    """Splits a table 80/10/10 by a seeded shuffle.

    Arguments:
        rows: Finite numbers, no column constant, with shape (N, d), N at least 10.
        seed: Seed of the shuffle.
        name: Name of the data in reports.
        features: Names of the d columns; x0, x1, ... if None.
        attribution: Source and licence.
        context: Conditioning variables of the rows, with shape (N, c), for a conditional density; their names are c0,
            c1, ...

    Returns:
        The three parts, float32.

    Raises:
        DataError: If there are too few rows, NaN or inf (row and column are named) or a constant column.

    Example:
        >>> data = split_rows(torch.randn(100, 3))
        >>> len(data.train), len(data.val), len(data.test)
        (80, 10, 10)
    """
    if context is not None:
        return _split_with_context(rows, context, seed, name, features, attribution)
    table = _to_table(rows, "rows")
    features = default_features(table.shape[1]) if features is None else features
    if len(features) != table.shape[1]:
        raise DataError(f"features must name the {table.shape[1]} columns, got {len(features)} names")
    if len(table) < MIN_ROWS:
        raise DataError(f"{name} has {len(table)} rows; give at least {MIN_ROWS}, so that each part gets one")
    check_finite(table, features)
    check_varies(table, features)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    shuffled = to_float32(table)[order]
    held_out = round(SHARE * len(table))
    train, val, test = shuffled.tensor_split([len(table) - 2 * held_out, len(table) - held_out])
    return Dataset(name, train, val, test, features, attribution)


def _to_table(rows: Tensor | NDArray[Any], name: str) -> NDArray[Any]:
    table = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
    if table.ndim != 2 or table.shape[1] == 0 or table.dtype.kind not in "fiu":
        raise DataError(f"{name} must be real numbers with shape (N, d), got {table.dtype} with shape {table.shape}")
    return table


def _split_with_context(
    rows: Tensor | NDArray[Any],
    context: Tensor | NDArray[Any],
    seed: int,
    name: str,
    features: tuple[str, ...] | None,
    attribution: str,
) -> Dataset:
    table, conditions = _to_table(rows, "rows"), _to_table(context, "context")
    if len(table) != len(conditions):
        raise DataError(f"context must have {len(table)} rows as rows has, got {len(conditions)}")
    names = default_features(table.shape[1]) if features is None else features
    context_names = tuple(f"c{column}" for column in range(conditions.shape[1]))
    joined = np.concatenate([table, conditions], 1)
    return split_rows(joined, seed, name, (*names, *context_names), attribution).condition_on(context_names)


def to_float32(rows: NDArray[Any]) -> Tensor:
    """Returns rows as a float32 tensor of the same shape that owns its memory."""
    return torch.from_numpy(np.array(rows, dtype=np.float32))
