"""What is told of rows that are scored piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Found:
    """Rows with something in common: how many, and the first of them."""

    count: int = 0
    first: int = 0

    def add(self, mask: Tensor, before: int) -> None:
        """Counts the rows of a piece (n,) that have it, after so many other rows."""
        indices = mask.nonzero()[:, 0]
        if len(indices):
            self.first = self.first if self.count else before + int(indices[0])
            self.count += len(indices)

    def text(self, rows: int) -> str:
        """Returns the text that counts them among all rows and names the first."""
        first = f"row {self.first}" if self.count == 1 else f"the first is row {self.first}"
        return f"{self.count} of {rows} rows ({first}, counting from 0)"


@dataclass
class Mean:
    """The mean of values and its standard error, and the sum of squares about it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """Returns the mean of values (n,)."""
        values = values.double()
        mean = float(values.mean()) if len(values) else 0.0
        return cls(len(values), mean, float((values - mean).square().sum()))

    def merge(self, other: Mean) -> None:
        """Takes account of the values of another mean."""
        count = self.count + other.count
        if count:
            change = other.mean - self.mean
            self.squares += other.squares + change**2 * self.count * other.count / count
            self.mean += change * other.count / count
        self.count = count

    @property
    def stderr(self) -> float:
        """Standard error of the mean, NaN for fewer than two values."""
        return math.sqrt(self.squares / (self.count - 1) / self.count) if self.count > 1 else math.nan


@dataclass
class Tally:
    """Counts and means over rows, and notes on them."""

    rows: int = 0
    log_prob: Mean = field(default_factory=Mean)
    """Of the rows with a finite density."""
    scale: Mean = field(default_factory=Mean)
    """What the units of their columns add to a log-density, likewise."""
    error: Mean = field(default_factory=Mean)
    largest_error: float = 0.0
    beyond: Found = field(default_factory=Found)
    """Rows whose error is beyond the tolerance."""
    without_density: dict[str, tuple[Found, str]] = field(default_factory=dict)
    """Rows without a finite density, by the column at fault, and why the first of them has none."""
    outside: dict[str, Found] = field(default_factory=dict)
    """Rows outside of what the training has seen, by column."""
    notes: list[str] = field(default_factory=list)

    def add_outside(self, found: dict[str, Tensor]) -> None:
        """Takes account of which rows of a piece, not counted yet, are outside in a column."""
        for name, mask in found.items():
            self.outside.setdefault(name, Found()).add(mask, self.rows)

    def add_without_density(self, where: str, why: str, mask: Tensor) -> None:
        """Takes account of which rows of a piece, not counted yet, have no finite density."""
        self.without_density.setdefault(where, (Found(), why))[0].add(mask, self.rows)

    def merge(self, others: Iterable[Tally]) -> None:
        """Adds the counts and means of other tallies; what they note is of their own files."""
        for other in others:
            self.rows += other.rows
            self.log_prob.merge(other.log_prob)
            self.scale.merge(other.scale)
            self.error.merge(other.error)
            self.largest_error = max(self.largest_error, other.largest_error)

    def remarks(self) -> list[str]:
        """Returns a sentence for each thing worth knowing about the rows."""
        told = [
            f"column {name!r}: outside of what the training has seen are {found.text(self.rows)}"
            for name, found in self.outside.items()
        ]
        told += [
            f"{where}: density zero for {found.text(self.rows)}: {why}"
            for where, (found, why) in self.without_density.items()
        ]
        if self.beyond.count:
            told.append(
                f"the tolerance is not kept for {self.beyond.text(self.rows)}: they are off by up to "
                f"{self.largest_error:.1e} nats; compute with --precision float64, or ask for a larger --tol"
            )
        return [*dict.fromkeys(self.notes), *told]
