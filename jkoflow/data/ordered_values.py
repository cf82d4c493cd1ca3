"""The values of one column in order, and what their quantiles say about location and spread."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from jkoflow.links import Link

SHARES = {0.16: 0.99446, 0.05: 1.64485, 0.02: 2.05375}
"""Shares that are left out at both ends to measure a column's spread, with the Gaussian's quantiles; wild values are
fewer than the last."""

Values = NDArray[np.float64]


class OrderedValues(NamedTuple):
    """Values of a column in order: those that are trained on, and the others."""

    ordered: Values
    others: Values

    @classmethod
    def of(cls, values: NDArray[Any], others: NDArray[Any] | None = None) -> Self:
        """Orders values (N,) that are trained on; others (M,) are those of the other rows."""
        rest = np.asarray([] if others is None else others, dtype=np.float64)
        return cls(np.sort(np.asarray(values, dtype=np.float64)), rest)

    @property
    def low(self) -> float:
        """Returns the least of all values."""
        return float(min(self.ordered[0], self.others.min(initial=math.inf)))

    @property
    def high(self) -> float:
        """Returns the largest of all values."""
        return float(max(self.ordered[-1], self.others.max(initial=-math.inf)))

    @property
    def spread(self) -> float:
        """Returns the deviation of a Gaussian with the column's central quantiles: the largest over `SHARES`."""
        return max((self.quantile(1 - share) - self.quantile(share)) / (2 * z) for share, z in SHARES.items())

    def quantile(self, level: float) -> float:
        """Returns the value at a level, the one nearer to the middle of two."""
        place = level * (len(self.ordered) - 1)
        return float(self.ordered[math.ceil(place) if level < 0.5 else math.floor(place)])

    def moments(self, distance: float) -> tuple[float, float]:
        """Returns mean and standard deviation of the ordered values within a distance, in spreads, of the median."""
        inside = self.ordered[np.abs(self.ordered - self.quantile(0.5)) <= distance * self.spread]
        return float(inside.mean()), float(inside.std())

    def beyond(self, distance: float) -> int:
        """Returns the number of values that lie further from the median than a distance in spreads."""
        middle, far = self.quantile(0.5), distance * self.spread
        return sum(int((np.abs(part - middle) > far).sum()) for part in self)

    def share_at(self, value: float) -> float:
        """Returns the share of all values that are a given one in float32."""
        found = sum(int((part.astype(np.float32) == np.float32(value)).sum()) for part in self)
        return found / (len(self.ordered) + len(self.others))

    def mirrored(self) -> OrderedValues:
        """Returns the column with the other sign."""
        return OrderedValues(-self.ordered[::-1], -self.others)

    def through(self, link: Link) -> OrderedValues:
        """Returns the column behind a link."""
        return OrderedValues(*(link.forward(torch.from_numpy(part.copy()))[0].numpy() for part in self))
