"""The data that every method is given: the same rows on the same scale."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from jkoflow.data import BUILT_IN, Dataset, TableOptions, load_dataset
from jkoflow.metrics import spread_rows

VAL_ROWS = 5000
"""Largest number of validation rows."""

TEST_ROWS = 10_000
"""Largest number of test rows."""


class Problem(NamedTuple):
    """A data set on standardised columns."""

    name: str
    train: Tensor
    """Training rows with shape (N, d); mean 0 and deviation 1 in every column."""
    val: Tensor
    """At most `VAL_ROWS` validation rows, evenly spread."""
    test: Tensor
    """At most `TEST_ROWS` test rows, evenly spread."""
    sum_log_std: float
    """Difference, in nats, between an NLL in the data's own units and the same NLL on standardised columns."""

    @property
    def dim(self) -> int:
        """Returns the number d of columns."""
        return self.train.shape[1]


def name_of(source: str) -> str:
    """Returns the name of a data set in records: ``gasturbine``, or ``power`` for ``some/where/power.npz``."""
    return Path(source).stem.replace(":", "_")


def load(source: str) -> Problem:
    """Loads a built-in data set or a file, see `jkoflow.data.load_dataset`, and standardises it by its training rows.

    Raises:
        jkoflow.data.DataError: If the data cannot be used.
    """
    data = load_dataset(source, options=None if source in BUILT_IN else TableOptions(columns={"*": "real"}))
    assert isinstance(data, Dataset)
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
