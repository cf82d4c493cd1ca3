"""What every method is given: the same rows on the same scale."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from jkoflow.data import load_dataset
from jkoflow.metrics import spread_rows

VAL_ROWS = 5000
"""Validation rows at most."""

TEST_ROWS = 10_000
"""Test rows at most."""


class Problem(NamedTuple):
    """A data set on standardised columns."""

    name: str
    train: Tensor
    """With shape (N, d); mean 0 and deviation 1 in every column."""
    val: Tensor
    """At most `VAL_ROWS` rows, evenly spread."""
    test: Tensor
    """At most `TEST_ROWS` rows, evenly spread."""
    sum_log_std: float
    """What an NLL on standardised columns lacks to one in the data's own units, in nats."""

    @property
    def dim(self) -> int:
        """Number d of columns."""
        return self.train.shape[1]


def name_of(source: str) -> str:
    """Returns what the records call a data set: ``gasturbine``, or ``power`` for ``some/where/power.npz``."""
    return Path(source).stem.replace(":", "_")


def load(source: str) -> Problem:
    """Loads a built-in data set or a file, see `jkoflow.data.load_dataset`, and standardises it by its training rows.

    Raises:
        jkoflow.data.DataError: If it cannot be used.
    """
    data = load_dataset(source)
    exact = data.train.double()
    mean, std = exact.mean(0), exact.std(0, correction=0)

    def scaled(rows: Tensor) -> Tensor:
        return ((rows - mean.float()) / std.float()).contiguous()

    return Problem(
        name_of(source),
        scaled(data.train),
        scaled(spread_rows(data.val, VAL_ROWS)),
        scaled(spread_rows(data.test, TEST_ROWS)),
        float(std.log().sum()),
    )
