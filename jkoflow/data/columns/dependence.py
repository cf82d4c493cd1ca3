"""Columns that are functions of others, for which no density exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.columns.codec import Array, Floats
from jkoflow.data.columns.schema import Dependence

MOST_ROWS = 5000
"""Rows that dependences are looked for in; a dependence that holds in these is checked in all."""

SPARE_ROWS = 10
"""Rows beyond two for every column without which a dependence may be chance."""

NEARLY_ALL, TRIMS = 0.9, 4
"""Share of rows in which a function must hold to be told, and times that the other rows are left out to find it."""

MOST_DIGITS = 7
"""Digits of coefficients up to which simpler ones are tried."""

LEAST_NOISE = 1e-11
"""Share of a column's values that the arithmetic of the fit may be off by."""

MOST_RELATIVE = 0.1
"""Share of a value that its rounding may be for the value to tell whether it is a product."""

LEAST_COEFFICIENT = 1e-4
"""Share of a column's spread below which another column is taken for no part of it."""


class Found(NamedTuple):
    """A column that others determine."""

    name: str
    formula: str
    """The function in words, such as ``2 x + 1``."""
    dependence: Dependence | None
    """The function, if it is affine."""
    share: float = 1.0
    """Share of the rows in which it holds."""


class Rounding(NamedTuple):
    """The size of the rounding of a column's values."""

    relative: float
    """As a share of the value."""
    absolute: float
    """In the column's units, beside the share."""

    def of(self, values: Floats) -> Floats:
        """Returns the size of the rounding of each of values (N,)."""
        return self.relative * np.abs(values) + self.absolute


class _Columns(NamedTuple):
    """Columns in some of their rows."""

    exact: Mapping[str, Floats]
    precision: Mapping[str, Floats]
    """Size of the rounding of each value."""
    rows: NDArray[np.int64]
    """Numbers of the rows that functions are fitted to."""

    @classmethod
    def of(cls, columns: Mapping[str, Array], rounding: Mapping[str, Rounding], rows: NDArray[np.int64]) -> Self:
        exact = {name: np.asarray(values, np.float64) for name, values in columns.items()}
        return cls(exact, {name: rounding[name].of(values) for name, values in exact.items()}, rows)


def find_dependences(columns: Mapping[str, Array], rounding: Mapping[str, Rounding]) -> list[Found]:
    """Finds columns that are functions of columns before them: copies, affine and monotone functions, products, powers.

    Arguments:
        columns: Columns of numbers without missing values by name, each with shape (N,).
        rounding: The rounding of each column.

    Returns:
        The dependent columns, each a function of columns that are none.
    """
    names = list(columns)
    count = len(columns[names[0]]) if names else 0
    if len(names) < 2 or count < 2 * len(names) + SPARE_ROWS:
        return []
    rows = np.linspace(0, count - 1, min(count, MOST_ROWS)).astype(int)
    some = _Columns.of({name: values[rows] for name, values in columns.items()}, rounding, np.arange(len(rows)))
    whole: _Columns | None = None  # of all rows, which takes memory, and time for each column
    found: list[Found] = []
    independent: list[str] = []
    for name in names:
        hit = None
        if _function(name, independent, some) or _nearly_affine(name, independent, some):
            whole = whole or _Columns.of(columns, rounding, rows)
            hit = _function(name, independent, whole)
            found += filter(None, [hit or _nearly_affine(name, independent, whole)])
        if hit is None:
            independent.append(name)
    return found


def _function(name: str, others: list[str], columns: _Columns) -> Found | None:
    """Finds a function of other columns that holds in all rows."""
    exact, precision, rows = columns
    hit = _affine(name, others, exact, rows, precision)
    hit = hit or _monotone(name, others, exact, rows)
    return hit or _product(name, others, exact, rows, precision)


def _nearly_affine(name: str, others: list[str], columns: _Columns) -> Found | None:
    """Finds an affine function that holds in most rows, by leaving out the rows that miss it most, again and again."""
    exact, precision, rows = columns
    target, kept = exact[name], rows
    intercept, coefficients = 0.0, np.zeros(len(others))

    def misses(chosen: NDArray[np.int64] | slice) -> Floats:
        value = sum(a * exact[other][chosen] for a, other in zip(coefficients, others, strict=True))
        return np.abs(target[chosen] - intercept - value)

    for _ in range(TRIMS):
        fitted = _fit(target, [exact[other] for other in others], kept)
        if fitted is None:
            return None
        intercept, coefficients = fitted
        off = misses(rows)
        kept = rows[off <= np.quantile(off, NEARLY_ALL)]
    off = misses(slice(None))
    noise = precision[name] + sum(abs(a) * precision[other] for a, other in zip(coefficients, others, strict=True))
    holds = off <= noise + LEAST_NOISE * float(np.quantile(np.abs(target), 0.9))
    # where one value is repeated, such as zero beside zero, any line through it holds
    if holds.mean() < NEARLY_ALL or 2 * len(np.unique(target[holds])) < len(holds):
        return None
    least = LEAST_COEFFICIENT * _spread(target[holds])
    told = [k for k, other in enumerate(others) if abs(coefficients[k]) * _spread(exact[other][holds]) > least]
    if not told:
        return None
    numbers = [float(f"{coefficients[k]:.6g}") for k in told]
    formula = _words([others[k] for k in told], numbers, float(intercept), float(np.median(noise)) + least)
    return Found(name, formula, None, float(holds.mean()))


def _affine(
    name: str, others: list[str], exact: Mapping[str, Floats], rows: Array, precision: Mapping[str, Floats]
) -> Found | None:
    fitted = _fit(exact[name], [exact[other] for other in others], rows)
    if fitted is None:
        return None
    intercept, coefficients = fitted
    noise = precision[name] + sum(abs(a) * precision[other] for a, other in zip(coefficients, others, strict=True))
    noise = noise + LEAST_NOISE * float(np.quantile(np.abs(exact[name]), 0.9))

    def misses(constant: float, factors: Floats) -> Floats:
        value = constant + sum(a * exact[other] for a, other in zip(factors, others, strict=True))
        return np.abs(exact[name] - value)

    off = misses(intercept, coefficients)
    if (off > noise).mean() > 0.5:
        return None
    for digits in range(1, MOST_DIGITS):  # rounding has moved the coefficients: simple ones may do as well
        simple = np.array([float(f"{a:.{digits}g}") for a in coefficients])
        constant = 0.0 if abs(intercept) <= np.median(noise) else float(f"{intercept:.{digits}g}")
        if ((tried := misses(constant, simple)) <= noise).all():
            intercept, coefficients, off = constant, simple, tried
            break
    if (off > noise).any():
        return None
    kept = [
        k
        for k, other in enumerate(others)
        if abs(coefficients[k]) * _spread(exact[other]) > LEAST_COEFFICIENT * _spread(exact[name])
    ]
    if not kept:
        return None
    sources, numbers = [others[k] for k in kept], [float(coefficients[k]) for k in kept]
    tolerance = max(2 * float(off.max()), float(noise.max()))
    dependence = Dependence(tuple(sources), tuple(numbers), float(intercept), tolerance)
    least = float(np.median(noise))
    same = len(kept) == 1 and abs(numbers[0] - 1) < 1e-9 and abs(intercept) <= least
    return Found(name, f"a copy of {sources[0]}" if same else _words(sources, numbers, intercept, least), dependence)


def _fit(target: Floats, others: list[Floats], rows: Array) -> tuple[float, Floats] | None:
    """Returns intercept and coefficients of the least squares, solved on standardised columns."""
    if not others:
        return None
    matrix = np.stack([other[rows] for other in others], 1)
    mean, spread = matrix.mean(0), matrix.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    wanted = target[rows]
    solution = np.linalg.lstsq((matrix - mean) / spread, wanted - wanted.mean(), rcond=1e-12)[0] / spread
    return float(wanted.mean() - mean @ solution), solution


def _monotone(name: str, others: list[str], exact: Mapping[str, Floats], rows: Array) -> Found | None:
    values = exact[name][rows]
    if len(np.unique(values)) < len(values) // 2:
        return None
    for other in others:
        order = np.argsort(exact[other][rows], kind="stable")
        steps = np.diff(values[order])
        if len(np.unique(exact[other][rows])) >= len(values) // 2 and (
            bool((steps >= 0).all()) or bool((steps <= 0).all())
        ):
            return Found(name, f"a function of {other}, {'in' if steps.sum() > 0 else 'de'}creasing", None)
    return None


def _product(
    name: str, others: list[str], exact: Mapping[str, Floats], rows: Array, precision: Mapping[str, Floats]
) -> Found | None:
    if not exact[name].all():
        return None
    known = {other: np.abs(exact[other]) for other in (name, *others) if exact[other].all()}
    relative = {other: precision[other] / sizes for other, sizes in known.items()}
    if max(float(errors.max()) for errors in relative.values()) > MOST_RELATIVE:
        return None
    logs = {other: np.log(sizes) for other, sizes in known.items()}
    hit = _affine(name, [other for other in others if other in known], logs, rows, relative)
    if hit is None or hit.dependence is None:
        return None
    factor = np.exp(hit.dependence.intercept)
    shown = {other: other if exact[other].min() > 0 else f"|{other}|" for other in hit.dependence.sources}
    powers = zip(hit.dependence.sources, hit.dependence.coefficients, strict=True)
    text = " * ".join(shown[source] if abs(a - 1) < 1e-6 else f"{shown[source]}^{a:.4g}" for source, a in powers)
    text = text if abs(factor - 1) < 1e-6 else f"{factor:.4g} * {text}"
    return Found(name, text if exact[name].min() > 0 else f"+-{text}", None)


def _spread(values: Floats) -> float:
    return float(values.std())


def _words(sources: list[str], numbers: list[float], intercept: float, noise: float) -> str:
    text = ""
    for source, number in zip(sources, numbers, strict=True):
        sign = ("- " if number < 0 else "") if not text else (" - " if number < 0 else " + ")
        size = "" if abs(abs(number) - 1) < 1e-6 else f"{abs(number):.6g} "
        text += f"{sign}{size}{source}"
    return text if abs(intercept) <= noise else f"{text} {'-' if intercept < 0 else '+'} {abs(intercept):.6g}"
