"""Rows that nearly equal one another, such as copies with noise, in different parts of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.repeats import column_bits, group_numbers, mix

FINEST = 2.0**-16
"""Smallest width of the cells, in spreads of a column."""

LEVELS = 7
"""Number of widths, each 4 times the one before: the largest is 1/16 of the spread."""

FEWEST_PAIRS = 20
"""Number of pairs from which their growth with the width is trusted."""

LARGEST_GROUP = 25
"""Rows that share a cell with more others are a cluster of the density rather than copies."""

TOLD_FROM = 0.01
"""Share of the rows held out from which near-duplicates are told."""

SPREAD_ROWS = 100_000
"""Number of rows from which the spread of a column is taken."""

FARTHEST = 2.0**61
"""Number of the outermost cell."""


class Near(NamedTuple):
    """Rows held out that nearly equal a training row."""

    share: float
    """Share of the distinct rows held out."""
    width: float
    """Largest difference in any column, in spreads of that column."""


def near_duplicates(columns: Sequence[NDArray[Any]], held_out: NDArray[np.bool_]) -> Near | None:
    """Finds near-duplicates between the training rows and the others.

    Rows are put into nested cells of growing width w. In a density of dimension m the number of pairs of rows that
    share a cell grows as w^m, so at least 4 times with each width. Where it stays nearly the same over one step, the
    pairs are copies of one another and no neighbours by chance.

    Arguments:
        columns: The d columns of distinct rows, each with shape (N,). Values of columns that are not numbers have to be
            equal.
        held_out: Whether a row is not for training, with shape (N,).

    Returns:
        What was found; None if too few rows to tell.
    """
    places = [_places(column) for column in columns if column.dtype.kind in "fiumM"]
    labels = [column_bits(column) for column in columns if column.dtype.kind not in "fiumM"]
    if not places or held_out.all() or not held_out.any():
        return None
    wider = None  # number of pairs in the cells of 4 times the width
    kept = np.arange(len(held_out))
    for level in reversed(range(LEVELS)):
        cells = [(column[kept] >> (2 * level)).view(np.uint64) for column in places]
        groups = group_numbers(mix([*cells, *(column[kept] for column in labels)]))
        sizes = np.bincount(groups)
        pairs = int((sizes * (sizes - 1) // 2).sum())
        if pairs < FEWEST_PAIRS:
            return None
        shared = sizes[groups] > 1
        kept, groups = kept[shared], groups[shared]  # a row alone in its cell is alone in all smaller ones
        if wider is not None and wider < 2 * pairs and 2 * pairs < LARGEST_GROUP * len(kept):
            trained = np.zeros(len(sizes), dtype=bool)
            trained[groups[~held_out[kept]]] = True
            found = int((trained[groups] & held_out[kept]).sum())
            share = found / int(held_out.sum())
            return Near(share, FINEST * 4**level) if share >= TOLD_FROM else None
        wider = pairs
    return None


def _places(column: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the finest cell of each value; a missing one has a cell of its own."""
    values = column.view(np.int64).astype(np.float64) if column.dtype.kind in "mM" else column.astype(np.float64)
    some = values[:: len(values) // SPREAD_ROWS + 1]
    some = some[np.isfinite(some)]
    low, middle, high = np.quantile(some, [0.1, 0.5, 0.9]) if len(some) else (0.0, 0.0, 0.0)
    spread = float(high - low) / 2.56 or float(some.std() if len(some) else 0) or 1.0
    values -= middle
    values /= spread * FINEST
    values += 0.6180339887 * 4**LEVELS  # so that no round number is the border of a cell
    if not np.abs(values).max() < FARTHEST:  # False for NaN
        values = np.nan_to_num(values, nan=FARTHEST).clip(-FARTHEST, FARTHEST)
    return np.floor(values).astype(np.int64)
