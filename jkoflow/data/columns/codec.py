"""The translation of one column between the user's values and what a flow can learn.

A flow learns real numbers, and `jkoflow.masses.Masses` the states of discrete parts. A codec turns a value into a state
and, in most kinds, a real number, so that with noise u, uniform on (0, 1), of which some kinds make use,

    p(value) = P(state) * integral over u of p(number(u) | state) * weight(u).

The integral is the exact mass of a value on a lattice, and the exact density where the number is a mere filler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]


class Encoded(NamedTuple):
    """Values of a column, as the models take them."""

    states: NDArray[np.int64]
    """State of every value, from 0, with shape (N,); -1 for a value that is impossible, whose density is zero."""
    numbers: Floats
    """Real number of every value, with shape (N,); zeros in kinds that have none."""
    log_weights: Floats
    """Logarithm of the weight of every value, with shape (N,)."""
    noisy: NDArray[np.bool_]
    """Whether the number, or its weight, depends on the noise so much that one point is not enough, shape (N,)."""


class Codec:
    """The base of the codecs; a codec is a dataclass whose fields JSON can hold."""

    kind: ClassVar[str]
    """Name of the kind."""
    measure: ClassVar[str] = "density"
    """What `log_prob` is for a column of the kind: a density, a mass, or both."""
    numeric: ClassVar[bool] = True
    """Whether the column has a real number for the flow to learn."""

    @property
    def states(self) -> int:
        """Returns the number of states; 1 for kinds without a discrete part."""
        return 1

    def encode(self, values: Array, noise: Floats) -> Encoded:
        """Translates values (N,), of the column's own type, with noise (N,) in (0, 1)."""
        raise NotImplementedError

    def decode(self, states: NDArray[np.int64], numbers: Floats) -> Array:
        """Translates states (N,) and numbers (N,) back."""
        raise NotImplementedError

    def features(self, values: Array) -> Floats:
        """Returns conditioning variables for values (N,): the number and, with several states, indicators (N, c)."""
        encoded = self.encode(values, np.full(len(values), 0.5))
        columns = [np.where(encoded.noisy & (encoded.states > 0), 0.0, encoded.numbers)] if self.numeric else []
        if self.states > 1:
            columns += list(np.equal.outer(np.arange(self.states), encoded.states).astype(np.float64))
        return np.stack(columns, 1) if columns else np.zeros((len(values), 0))


def plain(values: Array, states: int = 0) -> Encoded:
    """Returns the encoding of values without a number: all in one state, with weight one."""
    count = len(values)
    return Encoded(np.full(count, states), np.zeros(count), np.zeros(count), np.zeros(count, bool))


@dataclass
class Category(Codec):
    """Text, true and false, or numbers that are names: every level is a state."""

    levels: list[Any]
    """The levels, as JSON holds them: text, numbers or booleans; None is a missing value."""

    kind: ClassVar[str] = "category"
    measure: ClassVar[str] = "mass"
    numeric: ClassVar[bool] = False

    @property
    def states(self) -> int:
        """Returns the number of levels."""
        return len(self.levels)

    def encode(self, values: Array, noise: Floats) -> Encoded:
        """Returns the number of every value's level."""
        number = {level: index for index, level in enumerate(self.levels)}
        found, place = factorise(values)
        states = np.array([number.get(level, -1) for level in found], dtype=np.int64)[place]
        return plain(values)._replace(states=states)

    def decode(self, states: NDArray[np.int64], numbers: Floats) -> Array:
        """Returns the levels of states."""
        kinds = {type(level) for level in self.levels}
        dtype = {frozenset([bool]): bool, frozenset([int]): np.int64, frozenset([float]): np.float64}
        levels = np.empty(len(self.levels), dtype=dtype.get(frozenset(kinds), object))
        levels[:] = self.levels
        return levels[states]


@dataclass
class Count(Codec):
    """A few equally spaced values: every value is a state, and two more hold what lies beyond them.

    Beyond the values seen the masses fall geometrically.
    """

    first: float
    """Smallest value."""
    step: float
    """Distance between two neighbours."""
    values: int
    """Number M of values, of which some may not have been seen."""
    below: bool
    """Whether values below the first are possible."""
    ratio: float = 0.5
    """Ratio of the masses of neighbours beyond the values."""

    kind: ClassVar[str] = "integer"
    measure: ClassVar[str] = "mass"
    numeric: ClassVar[bool] = False

    @property
    def states(self) -> int:
        """Returns the number of values and of the sides on which there may be more."""
        return self.values + 1 + self.below

    def encode(self, values: Array, noise: Floats) -> Encoded:
        """Returns the number of every value, M for those above all and M + 1 for those below."""
        places, possible = lattice_places(values, self.first, self.step)
        beyond = np.maximum(places - self.values, -1 - places)
        states = np.where(places >= self.values, self.values, np.where(places < 0, self.values + 1, places))
        states = np.where(possible & (states < self.states), states, -1)
        weight = math.log1p(-self.ratio) + np.maximum(beyond, 0) * math.log(self.ratio)
        return plain(values)._replace(states=states, log_weights=np.where(beyond >= 0, weight, 0.0))

    def decode(self, states: NDArray[np.int64], numbers: Floats) -> Array:
        """Returns the values of states; the nearest value beyond those seen for the two last states."""
        places = np.where(states == self.values + 1, -1, states)
        return on_lattice(places, self.first, self.step)

    def features(self, values: Array) -> Floats:
        """Returns the value, brought to about [-1, 1], beside the indicators of the states."""
        places, _ = lattice_places(values, self.first, self.step)
        middle = (self.values - 1) / 2
        scaled = np.clip((places - middle) / max(middle, 1.0), -2, 2)
        return np.concatenate([scaled[:, None], super().features(values)], 1, dtype=np.float64)


@dataclass
class Lattice(Codec):
    """Many equally spaced values, such as counts or rounded measurements: each is a cell, filled with noise.

    The cells' cumulative distribution, estimated from the data, is carried to that of the standard Gaussian: a column
    by itself is then learned already. Between knots the distribution is linear, beyond them it falls exponentially.
    """

    first: float
    """Smallest value."""
    step: float
    """Distance between two neighbours."""
    knots: list[int]
    """Places on the lattice, counted from the first value, at which the cumulative distribution is known."""
    cumulative: list[float]
    """Cumulative distribution at the knots, increasing from at least 0 to less than 1."""
    tails: tuple[float, float]
    """Decay lengths below and above the knots, in steps; 0 if nothing lies beyond."""

    kind: ClassVar[str] = "integer"
    measure: ClassVar[str] = "mass"

    NOISY_MASS: ClassVar[float] = 2e-3
    """Mass of a value above which one point of noise is not enough."""

    def encode(self, values: Array, noise: Floats) -> Encoded:
        """Returns Gaussian numbers within the cells."""
        places, possible = lattice_places(values, self.first, self.step)
        low, high = self._cumulative(places), self._cumulative(places + 1)
        mass = high[0] - low[0]
        mass = np.where(high[1] < 0.5, low[1] - high[1], mass)  # from above, where the difference keeps its digits
        possible &= mass > LEAST_MASS
        mass = np.where(possible, mass, 1.0)
        below, above = low[0] + noise * mass, high[1] + (1 - noise) * mass
        numbers = np.where(below < 0.5, ndtri(np.clip(below, 1e-300, 1)), -ndtri(np.clip(above, 1e-300, 1)))
        numbers = np.where(possible, numbers, 0.0)
        weights = np.log(mass) + 0.5 * numbers**2 + 0.5 * math.log(2 * math.pi)
        return Encoded(np.where(possible, 0, -1), numbers, weights, mass > self.NOISY_MASS)

    def decode(self, states: NDArray[np.int64], numbers: Floats) -> Array:
        """Returns the values whose cells hold the numbers."""
        return on_lattice(np.floor(self._quantile(numbers)).astype(np.int64), self.first, self.step)

    def _cumulative(self, places: Array) -> tuple[Floats, Floats]:
        """Returns the cumulative distribution at places, and one minus it, both with all their digits."""
        knots, cumulative = np.array(self.knots, float), np.array(self.cumulative)
        at = places.astype(np.float64)
        below = np.interp(at, knots, cumulative)
        above = np.interp(at, knots, 1 - cumulative)
        for tail, outside, ends, rest in (
            (self.tails[0], knots[0] - at, (below, above), cumulative[0]),
            (self.tails[1], at - knots[-1], (above, below), 1 - cumulative[-1]),
        ):
            beyond = outside > 0
            decay = np.exp(-outside[beyond] / tail) if tail > 0 else 0.0
            ends[0][beyond] = rest * decay
            ends[1][beyond] = 1 - rest * decay
        return below, above

    def _quantile(self, numbers: Floats) -> Floats:
        """Returns the places at which the cumulative distribution is that of the standard Gaussian at numbers."""
        knots, cumulative = np.array(self.knots, float), np.array(self.cumulative)
        below, above = ndtr(numbers), ndtr(-numbers)
        places = np.interp(below, cumulative, knots)
        low, high = below < cumulative[0], above < 1 - cumulative[-1]
        if self.tails[0] > 0 and low.any():
            places[low] = knots[0] + self.tails[0] * np.log(np.maximum(below[low], 1e-300) / cumulative[0])
        if self.tails[1] > 0 and high.any():
            places[high] = knots[-1] - self.tails[1] * np.log(np.maximum(above[high], 1e-300) / (1 - cumulative[-1]))
        else:
            places = np.minimum(places, knots[-1] - 0.5)  # the last cell ends at the last knot
        return places


def fit_lattice(values: Floats, first: float, step: float, natural: bool) -> Lattice:
    """Fits the distribution of a lattice's cells; cells of rare values share one of the distribution's bins.

    Arguments:
        values: Training values, with shape (N,).
        first: Smallest value of the lattice that has been seen anywhere.
        step: Distance between two neighbours.
        natural: Whether nothing lies below the first value, such as below 0 for counts.
    """
    places, _ = lattice_places(values, first, step)
    seen, counts = np.unique(places, return_counts=True)
    edges = np.union1d(seen, seen + 1)
    most_knots = min(max(len(values) // ROWS_PER_BIN, MOST_BINS[0]), MOST_BINS[1])
    if len(edges) > most_knots and not is_sparse(values, step):  # every frequent value keeps a cell of its own
        frequent = seen[counts > 2 * len(values) / most_knots]
        spread = np.quantile(places, np.linspace(0, 1, most_knots // 2), method="nearest")
        edges = np.unique(np.concatenate([frequent, frequent + 1, spread, seen[:1], seen[-1:] + 1]))
    inside = np.histogram(places, edges)[0]
    # half a row in every bin and beyond both ends, so that no value has mass zero
    lower, upper = (0.0 if natural else 0.5), 0.5
    mass = inside + 0.5 * (inside == 0)
    cumulative = (lower + np.concatenate([[0.0], np.cumsum(mass)])) / (lower + mass.sum() + upper)
    ordered = np.sort(places)
    few = max(len(ordered) // 50, 2)
    excess = float((ordered[-few:] - ordered[-few]).mean()), float((ordered[few - 1] - ordered[:few]).mean())
    gap = float(np.median(np.diff(seen))) if len(seen) > 1 else 1.0
    least = max(gap, float(ordered[-1] - ordered[0]) / WIDEST_TAIL)  # what lies beyond is rare, not impossible
    tails = (0.0 if natural else max(excess[1], least), max(excess[0], least))
    return Lattice(first, step, edges.astype(int).tolist(), cumulative.tolist(), tails)


def is_sparse(values: Floats, step: float) -> bool:
    """Tells whether values (N,) of a lattice are repeated although they fill but a small part of it, as codes do."""
    distinct, counts = np.unique(values, return_counts=True)
    places = float(distinct[-1] - distinct[0]) / step
    return len(distinct) * SPARSE <= places and float(np.median(counts)) >= REPEATED


REPEATED = 5
"""Rows that share a number, from which on it is likely that all numbers have been seen."""

SPARSE = 10
"""Places on a lattice, for each value that is there, from which on its values are irregular."""

LEAST_MASS = 1e-25
"""Mass under which a value beyond those seen is impossible."""

WIDEST_TAIL = 5
"""Times that the tail of a lattice decays by e within the span of the values seen, at most."""

ROWS_PER_BIN = 100
"""Rows for each bin of a lattice's distribution."""

MOST_BINS = (32, 400)
"""Bounds of the largest number of bins."""


def lattice_places(values: Array, first: float, step: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns the places of values (N,) on a lattice, counted from its first value, and whether they lie on it."""
    exact = (np.asarray(values, dtype=np.float64) - first) / step
    places = np.rint(np.clip(np.nan_to_num(exact, nan=0.0), -(2.0**60), 2.0**60))
    slack = 1e-3 + 4 * np.finfo(np.float32).eps * np.abs(np.asarray(values, dtype=np.float64)) / step
    return places.astype(np.int64), np.abs(exact - places) <= np.minimum(slack, 0.25)


def on_lattice(places: NDArray[np.int64], first: float, step: float) -> Array:
    """Returns the values at places, as integers if the lattice is one of integers, else without rounding's digits."""
    if float(first).is_integer() and float(step).is_integer():
        return int(first) + places * int(step)
    return np.round(first + places * step, rounding_digits(step))


def rounding_digits(step: float) -> int:
    """Returns the decimals to which the values of a lattice are rounded."""
    return max(0, 3 - math.floor(math.log10(step)))


def factorise(values: Array) -> tuple[list[Any], NDArray[np.int64]]:
    """Returns the different values, as JSON holds them, None for missing ones, and the place of each of values (N,)."""
    if values.dtype.kind in "fiub":
        found, place = np.unique(values, return_inverse=True)
        whole = values.dtype.kind == "f" and bool((found == np.floor(found)).all()) and bool(np.isfinite(found).all())
        levels = found.astype(np.int64).tolist() if whole else found.tolist()
        return [None if level != level else level for level in levels], place
    places: dict[Any, int] = {}
    place = np.array([places.setdefault(value, len(places)) for value in values.tolist()], dtype=np.int64)
    return list(places), place


def ndtri(levels: Floats) -> Floats:
    """Returns quantiles of the standard Gaussian."""
    return torch.special.ndtri(torch.from_numpy(np.asarray(levels, dtype=np.float64))).numpy()


def ndtr(numbers: Floats) -> Floats:
    """Returns the standard Gaussian's cumulative distribution."""
    return torch.special.ndtr(torch.from_numpy(np.asarray(numbers, dtype=np.float64))).numpy()


def missing(values: Array) -> NDArray[np.bool_]:
    """Tells which of values (N,) are missing."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind == "M":
        return np.isnat(values)
    if values.dtype.kind in "iub":
        return np.zeros(len(values), dtype=bool)
    return np.array([value is None or value != value for value in values.tolist()], dtype=bool)


def names(columns: Sequence[str]) -> str:
    """Returns the names of columns for a message."""
    return ", ".join(repr(name) for name in columns)
