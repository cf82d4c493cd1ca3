"""The split of more rows than memory holds, and their way into its order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.data.splits import SHARE, seeded
from jkoflow.data.streamed.distinct import Repeats
from jkoflow.mapped import empty_beside, parts, permutation, release

Numbers = NDArray[np.int64]


def split_order(rows: Tensor, repeats: Repeats, seed: int) -> tuple[Tensor, list[int]]:
    """Splits rows as `jkoflow.data.splits.split_order` does.

    Arguments:
        rows: The rows, with shape (N, d), in a scratch file.
        repeats: Rows that go to the part of an earlier one.
        seed: Seed of the shuffle.

    Returns:
        The numbers of the training rows, those of the validation rows and those of the test rows, one after the other
        with shape (N,), in a scratch file; and the numbers of rows of the parts.
    """
    count = len(rows)
    held_out = round(SHARE * count)
    order = permutation(rows, seeded(seed))
    if len(repeats.rows) == 0:
        return order, [count - 2 * held_out, held_out, held_out]
    part_of, sizes = _parts_of_groups(rows, repeats, seed)
    split = empty_beside(rows, count, order.dtype)
    ends = np.cumsum([0, *sizes])[:-1].tolist()
    for some in parts(order):
        found = torch.from_numpy(part_of[repeats.groups(some.numpy().astype(np.int64))])
        for number in range(3):
            chosen = some[found == number]
            split[ends[number] : ends[number] + len(chosen)] = chosen
            ends[number] += len(chosen)
        release(split)
    return split, sizes


def _parts_of_groups(rows: Tensor, repeats: Repeats, seed: int) -> tuple[NDArray[np.int8], list[int]]:
    """Returns the part of every group of equal rows, with shape (G,), and the numbers of rows of the parts."""
    count = len(rows)
    groups = count - len(repeats.rows)
    held_out = round(SHARE * count)
    repeated, more = np.unique(repeats.groups(repeats.rows), return_counts=True)
    shuffled = permutation(rows[:groups], seeded(seed))
    large = repeated[1 + more > held_out]

    def blocks() -> Iterator[Numbers]:
        for some in parts(shuffled):
            yield some.numpy().astype(np.int64)

    def sizes_of(numbers: Numbers) -> Numbers:
        place = np.searchsorted(repeated, numbers).clip(max=len(repeated) - 1)
        return np.where(repeated[place] == numbers, 1 + more[place], 1)

    def cumulated() -> Iterator[tuple[Numbers, Numbers]]:
        """Yields the groups in their order, those too large to be held out first, with the rows up to each."""
        first = (numbers[np.isin(numbers, large)] for numbers in blocks()) if len(large) else iter(())
        rest = (numbers[~np.isin(numbers, large)] if len(large) else numbers for numbers in blocks())
        rows_before = 0
        for numbers in itertools.chain(first, rest):
            if len(numbers):
                up_to = rows_before + np.cumsum(sizes_of(numbers))
                yield numbers, up_to
                rows_before = int(up_to[-1])

    first, cut = _nearest(cumulated, count - 2 * held_out, 0, groups - 2)
    _, second_cut = _nearest(cumulated, count - held_out, first + 1, groups - 1)
    part_of = np.empty(groups, dtype=np.int8)
    for numbers, up_to in cumulated():
        part_of[numbers] = (up_to > cut).astype(np.int8) + (up_to > second_cut)
    return part_of, [cut, second_cut - cut, count - second_cut]


def _nearest(
    cumulated: Callable[[], Iterator[tuple[Numbers, Numbers]]], target: int, start: int, stop: int
) -> tuple[int, int]:
    """Returns place and value of the number nearest to a target, the first of two, among places from start to stop."""
    best, base = (np.inf, 0, 0), 0
    for _, up_to in cumulated():
        some = up_to[max(start - base, 0) : max(stop - base, 0)]
        if len(some):
            place = int(np.abs(some - target).argmin())
            found = (abs(int(some[place]) - target), base + max(start - base, 0) + place, int(some[place]))
            best = found if found[0] < best[0] else best
        base += len(up_to)
    return best[1], best[2]


def in_order(rows: Tensor, order: Tensor, columns: slice, room: int) -> Tensor:
    """Returns the rows with some numbers, in a scratch file, read from the first to the last again and again.

    Arguments:
        rows: The rows, with shape (N, d), in a scratch file.
        order: Numbers of rows, with shape (n,).
        columns: The columns that are taken.
        room: Bytes of memory that may be taken.
    """
    width = len(range(*columns.indices(rows.shape[1])))
    ordered = empty_beside(rows[:, columns], len(order))
    size = max(room // (4 * width + 24), 1)  # numbers in their order and places, beside the rows
    source_size = max((1 << 24) // (4 * rows.shape[1]), 1)
    for numbers, there in zip(parts(order, size), ordered.split(size), strict=True):
        place = np.argsort(numbers.numpy())
        ascending = numbers.numpy()[place]
        taken = np.empty((len(numbers), width), np.float32)
        start = 0
        for part in parts(rows, source_size):
            low, high = np.searchsorted(ascending, (start, start + len(part)))
            taken[place[low:high]] = part.numpy()[ascending[low:high] - start, columns]
            start += len(part)
        for some, to in zip(torch.from_numpy(taken).split(source_size), parts(there, source_size), strict=True):
            to.copy_(some)
    return ordered
