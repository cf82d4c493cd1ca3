"""Codecs of columns of real numbers: plain, with values that many rows share, with missing ones, dates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.data.columns.codec import (
    Array,
    Codec,
    Encoded,
    Floats,
    lattice_places,
    missing,
    ndtri,
    on_lattice,
    plain,
    rounding_digits,
)
from jkoflow.links import Link

MICROSECONDS = 86_400_000_000
"""Microseconds of a day."""


@dataclass
class Real(Codec):
    """Real numbers: a link in the column's own units, then centre and scale, all in float64."""

    link: dict[str, Any]
    """Description of the link, see `jkoflow.links.Link.describe`."""
    centre: float
    """Number, behind the link, that becomes 0."""
    scale: float
    """Distance, behind the link, that becomes 1."""
    first: float = 0.0
    """A value of the lattice, if there is one."""
    step: float = 0.0
    """Distance between two neighbours on a lattice that is too fine for its cells to matter; 0 if there is none."""

    kind: ClassVar[str] = "real"

    @property
    def measure(self) -> str:  # type: ignore[override]
        """Returns what `log_prob` is: a density, or the mass of a lattice's value."""
        return "mass" if self.step else "density"

    def encode(self, values: Array, noise: Floats) -> Encoded:
        """Returns numbers of about mean 0 and deviation 1; a value beyond an edge of the link is impossible."""
        exact = np.asarray(values, dtype=np.float64) + self.step * (noise - 0.5)
        numbers, weights, possible = (part.numpy() for part in self.through(torch.from_numpy(exact)))
        if self.step:
            possible &= lattice_places(values, self.first, self.step)[1]
        encoded = plain(values)
        return encoded._replace(
            states=np.where(possible, 0, -1),
            numbers=np.where(possible, numbers, 0.0),
            log_weights=np.where(possible, weights, 0.0),
        )

    def through(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns numbers and log-weights of values (N,), and which are possible: inside of the link's edges."""
        linked, log_slope = Link(**self.link).forward(values)
        numbers = (linked - self.centre) / self.scale
        weights = log_slope - math.log(self.scale) + (math.log(self.step) if self.step else 0.0)
        return numbers, weights, torch.isfinite(numbers) & torch.isfinite(weights)

    def decode(self, states: NDArray[np.int64], numbers: Floats) -> Array:
        """Returns the values of numbers."""
        linked = torch.from_numpy(numbers * self.scale + self.centre)
        values = Link(**self.link).inverse(linked)[0].numpy()
        if not self.step:
            return values
        places = np.rint(np.clip((values - self.first) / self.step, -(2.0**53), 2.0**53)).astype(np.int64)
        return on_lattice(places, self.first, self.step)


@dataclass
class Mixed(Codec):
    """Numbers of which some values, or a missing value, are repeated so often that they are states of their own.

    In these states there is no number. The flow is given Gaussian noise instead, of which the weight takes the
    density out again.
    """

    base: Codec
    """Codec of the other values; it has one state and a number."""
    values: list[float]
    """The repeated values."""
    has_missing: bool
    """Whether the last state is that of a missing value."""

    measure: ClassVar[str] = "mass and density"

    @property
    def kind(self) -> str:  # type: ignore[override]
        """Returns the kind of the other values, and what else there is."""
        spikes = "+spikes" if self.values else ""
        return f"{self.base.kind}{spikes}{'+missing' if self.has_missing else ''}"

    @property
    def states(self) -> int:
        """Returns the number of repeated values, and one for the others, and perhaps one for missing values."""
        return 1 + len(self.values) + self.has_missing

    @property
    def _step(self) -> float:
        """Returns the distance of neighbours on the base's lattice; 0 if it has none."""
        return float(getattr(self.base, "step", 0.0)) if self.values else 0.0

    def encode(self, values: Array, noise: Floats) -> Encoded:
        """Returns the base's encoding in state 0, and noise in all others."""
        absent = missing(values)
        states = np.where(absent, self.states - 1 if self.has_missing else -1, 0)
        exact = np.asarray(values, dtype=np.float64)
        for state, value in enumerate(self.values, 1):
            states[exact == value] = state
        regular = states == 0
        filler = ndtri(noise)
        numbers, weights = filler.copy(), 0.5 * filler**2 + 0.5 * math.log(2 * math.pi)
        noisy = ~regular
        if regular.any():
            others = without_cells(exact[regular], self.values, self._step) if self._step else values[regular]
            base = self.base.encode(others, noise[regular])
            numbers[regular], weights[regular], noisy[regular] = base.numbers, base.log_weights, base.noisy
            states[regular] = base.states
        return Encoded(states, numbers, weights, noisy)

    def decode(self, states: NDArray[np.int64], numbers: Floats) -> Array:
        """Returns the base's values in state 0 and the repeated ones in the others; NaN for missing ones."""
        found = self.base.decode(np.zeros(len(states), np.int64), numbers)
        if self._step:
            found = with_cells(found, self.values, self._step)
        if self.has_missing or not all(float(value).is_integer() for value in self.values):
            found = found.astype(np.float64)
        for state, value in enumerate(self.values, 1):
            found[states == state] = value
        if self.has_missing:
            found[states == self.states - 1] = np.nan
        return found


@dataclass
class Date(Codec):
    """Dates, as days since 1970 in the codec of some numbers; a density is per day."""

    base: Codec
    """Codec of the days."""
    unit: str
    """The coarsest of numpy's units that holds all dates seen: D, h, m, s, ms or us."""

    @property
    def kind(self) -> str:  # type: ignore[override]
        """Returns the name of the kind."""
        return "date"

    @property
    def measure(self) -> str:  # type: ignore[override]
        """Returns what `log_prob` is: that of the days."""
        return self.base.measure

    @property
    def numeric(self) -> bool:  # type: ignore[override]
        """Returns whether the days have a number for the flow to learn."""
        return self.base.numeric

    @property
    def states(self) -> int:
        """Returns the number of states of the days."""
        return self.base.states

    def encode(self, values: Array, noise: Floats) -> Encoded:
        """Returns the encoding of the days."""
        return self.base.encode(days(values), noise)

    def decode(self, states: NDArray[np.int64], numbers: Floats) -> Array:
        """Returns dates, rounded to the unit."""
        return self._dates(np.asarray(self.base.decode(states, numbers), dtype=np.float64))

    def _dates(self, found: Floats) -> Array:
        """Returns days since 1970 as dates."""
        ticks = np.timedelta64(1, self.unit) // np.timedelta64(1, "us")
        exact = np.nan_to_num(found) * (MICROSECONDS / ticks)
        rounded = np.rint(np.clip(exact, -(2.0**53), 2.0**53)).astype(np.int64) * int(ticks)
        dates = rounded.astype("datetime64[us]")
        dates[np.isnan(found)] = np.datetime64("NaT")
        return dates

    def features(self, values: Array) -> Floats:
        """Returns the conditioning variables of the days."""
        return self.base.features(days(values))


@dataclass
class Weekly(Date):
    """Dates with a weekly pattern: the day of the week is a state, and the base has the weeks.

    A time t is the number of its week plus the fraction of its day that is over. So the times of one day of the week
    make a line without gaps, on which a density per day is one of the dates.
    """

    origin: float = 0.0
    """Day since 1970 with which the weeks begin."""

    def lines(self, values: Array) -> tuple[NDArray[np.int64], Floats]:
        """Returns the days of the week, and the numbers of the weeks plus the days' fractions, of dates (N,)."""
        return weeks(days(values) - self.origin)

    @property
    def states(self) -> int:
        """Returns the number of days of a week."""
        return 7

    def encode(self, values: Array, noise: Floats) -> Encoded:
        """Returns the days of the week, and the encoding of the weeks."""
        weekdays, lines = self.lines(values)
        encoded = self.base.encode(lines, noise)
        return encoded._replace(states=np.where(encoded.states < 0, -1, weekdays))

    def decode(self, states: NDArray[np.int64], numbers: Floats) -> Array:
        """Returns dates, rounded to the unit."""
        lines = np.asarray(self.base.decode(np.zeros(len(states), np.int64), numbers), dtype=np.float64)
        ticks = np.timedelta64(1, "D") / np.timedelta64(1, self.unit)
        lines = np.rint(lines * ticks) / ticks  # else rounding's errors could take a midnight to another week
        return self._dates(self.origin + 6 * np.floor(lines) + lines + states)

    def features(self, values: Array) -> Floats:
        """Returns the base's number of the week beside indicators of the day of the week."""
        weekdays, lines = self.lines(values)
        return np.concatenate([self.base.features(lines), np.equal.outer(weekdays, np.arange(7)).astype(float)], 1)


@dataclass
class Constant(Codec):
    """One and the same value in all rows; others are impossible."""

    value: Any
    """The value, as JSON holds it."""
    is_date: bool = False
    """Whether the value is a date, in ISO's form."""

    kind: ClassVar[str] = "constant"
    measure: ClassVar[str] = "mass"
    numeric: ClassVar[bool] = False

    def encode(self, values: Array, noise: Floats) -> Encoded:
        """Returns state 0 for the value and -1 for all others."""
        same = np.equal(values, self._value) & ~missing(values)
        return plain(values)._replace(states=np.where(same, 0, -1))

    def decode(self, states: NDArray[np.int64], numbers: Floats) -> Array:
        """Returns the value for every row."""
        return np.full(
            len(states), self._value, dtype=object if isinstance(self.value, str) and not self.is_date else None
        )

    @property
    def _value(self) -> Any:
        return np.datetime64(self.value, "us") if self.is_date else self.value


def weeks(since: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Returns days of the week, from 0, and numbers of weeks plus the days' fractions, of days (N,) since some day."""
    whole = np.floor(since)
    number = np.floor(whole / 7)
    return np.nan_to_num(whole - 7 * number).astype(np.int64), number + (since - whole)


def without_cells(values: Floats, left_out: list[float], step: float) -> Floats:
    """Returns values (N,) of a lattice as if it had no cells for some others, so that none of its mass goes there."""
    return values - step * np.searchsorted(np.sort(left_out), values)


def with_cells(values: Array, left_out: list[float], step: float) -> Array:
    """Returns the values (N,) that `without_cells` made others of."""
    exact = np.asarray(values, np.float64)
    for value in sorted(left_out):
        exact = np.where(exact > value - 0.5 * step, exact + step, exact)
    if values.dtype.kind in "iu":
        return np.rint(exact).astype(values.dtype)
    return np.round(exact, rounding_digits(step))


def days(values: Array) -> Floats:
    """Returns dates (N,) as days since 1970, NaN for missing ones."""
    ticks = values.astype("datetime64[us]")
    return np.where(np.isnat(ticks), np.nan, ticks.astype(np.int64) / MICROSECONDS)
