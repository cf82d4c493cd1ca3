"""The content of a file or of an object in memory: columns as they come, whole or in the three parts of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.checks import default_features

Column = NDArray[Any]
"""The values of a column, with shape (N,). Numbers have a numpy dtype of kind f, i or u, and NaN where one is missing;
true and false have dtype bool; dates have dtype datetime64, and NaT where one is missing; text, and true or false with
missing ones among them, have dtype object, and None where one is missing."""

PARTS = ("train", "val", "test")
"""Names of the parts of data that come split."""


@dataclass(frozen=True)
class Table:
    """One table, or the three parts of one; columns keep the types that they came in."""

    parts: Mapping[str, Sequence[Column]]
    """The d columns under ``"all"``, or under ``"train"``, ``"val"`` and ``"test"``."""
    features: tuple[str, ...]
    """Names of the d columns; x0, x1, ... if there are none."""

    @property
    def is_split(self) -> bool:
        """Tells whether the source itself says which rows are for training."""
        return "all" not in self.parts

    @property
    def is_named(self) -> bool:
        """Tells whether the columns have names of their own."""
        return self.features != default_features(len(self.features))

    def rows(self, part: str) -> int:
        """Returns the number of rows of a part."""
        return len(self.parts[part][0])

    def take(self, columns: Sequence[int]) -> Table:
        """Returns a table of some of the columns, by their numbers, in that order."""
        parts = {part: [values[column] for column in columns] for part, values in self.parts.items()}
        return Table(parts, tuple(self.features[column] for column in columns))

    @classmethod
    def of_array(cls, rows: NDArray[Any], features: Sequence[str]) -> Table:
        """Returns the columns of an array of shape (N, d), without a copy."""
        return cls({"all": list(rows.T)}, tuple(features))

    def numbers(self, part: str) -> NDArray[Any]:
        """Returns columns of numbers as one array of shape (N, d), in the precision that holds all of them."""
        return np.stack(self.parts[part], 1)
