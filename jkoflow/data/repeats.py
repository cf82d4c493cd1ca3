"""Equal rows of a table: which they are, and whether columns that take few values make them by chance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow.callers import warn_caller
from jkoflow.data.checks import DataWarning
from jkoflow.data.columnwise import distinct_values

Keys = NDArray[np.uint64]

TOLD_FROM = 0.001
"""Share of repeated rows from which they are told."""

CHANCE_FACTOR = 2
"""Repeats are taken for chance up to this multiple of what chance is expected to make."""

WINDOWS = (2, 50)
"""Numbers of distinct values on either side by which the density of a column at one of them is estimated. The large one
is precise, the small one also holds beside an outlier; the larger density counts."""

AT_ONCE = 8192
"""Rows whose keys are computed at once, so that they stay in the cache."""

_MISSING = np.uint64(0x7FF8DEAD00000000)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def column_bits(column: NDArray[Any]) -> Keys:
    """Returns 64 bits for each value of a column of shape (N,); equal values have equal bits, missing ones, too."""
    kind = column.dtype.kind
    if kind == "f":
        values = column.astype(np.float64) + 0.0  # -0.0 equals 0.0
        bits = values.view(np.uint64)
        bits[np.isnan(values)] = _MISSING
        return bits
    if kind in "biu":
        return column.astype(np.uint64 if kind == "u" else np.int64).view(np.uint64)
    if kind in "mM":
        return np.ascontiguousarray(column).view(np.int64).view(np.uint64)
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in column.tolist()], dtype=np.uint64)


def mix(columns: Sequence[Keys]) -> Keys:
    """Returns one key for each row of columns of bits; two different rows share a key with a chance of 2^-64."""
    keys = np.zeros(len(columns[0]), dtype=np.uint64)
    for bits in columns:
        keys += _GOLDEN
        keys ^= bits
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finaliser of SplitMix64
            keys ^= keys >> np.uint64(shift)
            keys *= np.uint64(factor)
        keys ^= keys >> np.uint64(31)
    return keys


def row_keys(columns: Sequence[NDArray[Any]]) -> Keys:
    """Returns one key for each row of columns (N,) of any kind; equal rows have equal keys."""
    if any(column.dtype.kind not in "fbiumM" for column in columns):  # text is numbered as it comes
        return mix([column_bits(column) for column in columns])
    starts = range(0, len(columns[0]), AT_ONCE)
    parts = [[column[start : start + AT_ONCE] for column in columns] for start in starts]
    return np.concatenate([mix([column_bits(column) for column in part]) for part in parts] or [np.empty(0, np.uint64)])


def group_numbers(keys: Keys) -> NDArray[np.int64]:
    """Numbers equal keys alike, from 0 on in the order in which they first come; returns an array of shape (N,)."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), dtype=np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    return numbers[inverse.reshape(-1)]


def row_groups(columns: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Numbers equal rows alike, from 0 on in the order in which they first come.

    Arguments:
        columns: The d columns, each with shape (N,): numbers, truth values, dates or text.

    Returns:
        The number of each row's group, with shape (N,); 0, 1, ..., N - 1 if no row repeats an earlier one.

    Example:
        >>> row_groups([np.array([1.5, 2.0, 1.5]), np.array(["a", "b", "a"], dtype=object)])
        array([0, 1, 0])
    """
    return group_numbers(row_keys(columns))


def made_by_chance(columns: Sequence[NDArray[Any]], groups: NDArray[np.int64]) -> bool:
    """Tells whether so many rows are equal by chance, as in columns of counts or of rounded values.

    Equal rows of that kind are draws of their own and no copies. Rows of several columns are compared with those of
    columns that are shuffled on their own. In a single column, or in one that tells all others, the expected number of
    equal values follows from the steps between its possible values and its density.

    Arguments:
        columns: The d columns, each with shape (N,).
        groups: Their `row_groups`.
    """
    sizes = np.bincount(groups)
    if sizes.min() == sizes.max() > 1:  # every row as often as all others: not by chance
        return False
    repeats = len(groups) - len(sizes)
    if len(columns) > 1 and repeats <= CHANCE_FACTOR * _repeats_if_independent(columns):
        return True
    # A column that tells its row, such as the only one, or one of which the others are functions.
    telling = next((column for column in columns if len(distinct_values(column_bits(column))) == len(sizes)), None)
    return telling is not None and repeats <= CHANCE_FACTOR * _expected_ties(telling)


def _repeats_if_independent(columns: Sequence[NDArray[Any]]) -> int:
    generator = np.random.default_rng(0)
    keys = mix([generator.permutation(column_bits(column)) for column in columns])
    return len(keys) - len(distinct_values(keys))


def _expected_ties(column: NDArray[Any]) -> float:
    """Returns how many values of a column are expected to equal an earlier one if all are drawn on their own."""
    kind = column.dtype.kind
    if kind not in "fiumM":
        return len(column)  # categories
    known = column[~np.isnat(column)].view(np.int64) if kind in "mM" else column[np.isfinite(column)]
    values, counts = np.unique(known, return_counts=True)
    if len(values) < 2:
        return len(column)
    places = values.astype(np.float64)
    step = np.ones(len(places))
    if kind == "f":
        single = values.astype(np.float32)
        step = np.abs(np.spacing(single if (single == values).all() else places)).astype(np.float64)
    step = np.maximum(step, _grid_step(np.diff(places)))
    index, before = np.arange(len(places)), np.concatenate([[0], np.cumsum(counts)])
    density = np.zeros(len(places))
    for window in WINDOWS:
        low, high = np.maximum(index - window, 0), np.minimum(index + window, len(places) - 1)
        density = np.maximum(density, (before[high + 1] - before[low]) / (places[high] - places[low] + step))
    return float((0.5 * counts * np.minimum(step * density, 2)).sum()) + len(column) - len(known)


def _grid_step(gaps: NDArray[np.float64]) -> float:
    """Returns the step of the grid that values with these gaps lie on, such as that of their rounding; 0 if none."""
    gaps = np.sort(gaps[gaps > 1e-6 * np.quantile(gaps, 0.9)])  # the others are noise of the arithmetic
    if len(gaps) == 0:
        return 0.0
    small = gaps[: np.searchsorted(gaps, 8.5 * gaps[0])]
    if len(small) < min(20, len(gaps)):
        return 0.0
    multiples = small / small[0]
    return float(small[0]) if (np.abs(multiples - multiples.round()) < 0.05).mean() >= 0.95 else 0.0


def warn_about_shared_rows(parts: Sequence[Sequence[NDArray[Any]]]) -> None:
    """Warns of validation and test rows that are training rows as well, but for those that are so by chance.

    Arguments:
        parts: The d columns of the training, validation and test rows.
    """
    columns = [np.concatenate(values) for values in zip(*parts, strict=True)]
    keys = row_keys(columns)
    starts = np.cumsum([0, *(len(part[0]) for part in parts)])
    known, others = np.sort(keys[: starts[1]]), keys[starts[1] :]
    trained = known[np.searchsorted(known, others).clip(max=len(known) - 1)] == others  # faster than numpy.isin
    shared = [int(trained[a - starts[1] : b - starts[1]].sum()) for a, b in itertools.pairwise(starts[1:])]
    if sum(shared) < TOLD_FROM * (starts[-1] - starts[1]) or sum(shared) == 0:
        return
    if made_by_chance(columns, group_numbers(keys)):
        return
    told = " and ".join(
        f"{count} of {len(part[0])} {name} rows"
        for count, part, name in zip(shared, parts[1:], ("validation", "test"), strict=True)
        if count
    )
    warn_caller(
        f"{told} are training rows, too, so that results on them look better than on new rows; remove them from "
        "either part",
        DataWarning,
    )
