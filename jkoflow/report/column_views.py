"""What the report shows of a table's columns, each by its kind: shares of states, numbers, and how well samples fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jkoflow.data.columns.codec import Category, Codec, Count, Lattice, missing
from jkoflow.data.columns.numbers import Constant, Date, Mixed, Real, days
from jkoflow.data.table import Table
from jkoflow.report.page import significant
from jkoflow.report.probes import Array, affordable_points, chance_ks, ks_distance
from jkoflow.table_flow import TableFlow

ORDERS = 30.0
"""Ratio of large to small values from which positive numbers are drawn on a logarithmic axis."""

CHANCES, GROUPS = 300, 256
"""Draws from which the distance that chance alone exceeds is taken, and groups of neighbouring values in each."""


@dataclass(frozen=True)
class ColumnView:
    """A column of a table, in the user's units: n test rows, m samples, and perhaps samples of another flow."""

    name: str
    labels: tuple[str, ...]
    """Names of the states: levels, or "other values" and the repeated ones; none if there is but one state."""
    states: tuple[NDArray[np.int64], ...]
    """States (n,) of the data and (m,) of the samples."""
    numbers: tuple[Array, ...]
    """Numbers (n,) and (m,), NaN where one is missing; days since 1970 for dates; for levels, their places."""
    form: str
    """How the column is drawn: ``"levels"``; ``"counts"``, each of whose few values is a state; or ``"numbers"``."""
    scale: str
    """``"linear"``, ``"log"`` or ``"date"``."""
    lattice: tuple[float, float] | None
    """A value and the step of the lattice that the numbers lie on, if there is one."""
    distance: float
    """Kolmogorov-Smirnov distance of data and samples, or total variation for levels."""
    chance: float
    """Distance that chance alone exceeds in one case of twenty."""

    @property
    def measure(self) -> str:
        """Returns the short name of the distance."""
        return "TV" if self.form == "levels" else "KS"

    def shares(self) -> tuple[Array, Array]:
        """Returns the shares of the states among data and samples, each with shape (number of labels,)."""
        data, drawn = (np.bincount(states, minlength=len(self.labels)) / len(states) for states in self.states[:2])
        return data, drawn

    def text(self, number: float) -> str:
        """Returns the text of one of the column's numbers."""
        return _date(number) if self.scale == "date" else significant(number)

    def others(self) -> tuple[Array, Array]:
        """Returns the numbers that are neither repeated values nor missing."""
        if self.form != "numbers" or not self.labels:
            return self.numbers[0], self.numbers[1]
        data, drawn = (x[s == 0] for x, s in zip(self.numbers[:2], self.states[:2], strict=True))
        return data, drawn


def table_samples(model: TableFlow, columns: Mapping[str, NDArray[Any]], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Draws seeded samples, as many as there are test rows or can be afforded, in the user's units.

    Arguments:
        model: The flow of the table.
        columns: Columns and conditioning variables of the test rows by name, each with shape (n,); sample k is drawn
            under the conditions of row k.
        seed: Seed of the noise.
    """
    given = model.context_features
    count = min(len(columns[model.features[0]]), affordable_points(model.flow))
    context = Table({"all": [columns[name][:count] for name in given]}, given) if given else None
    return model.sample_columns(count, context, generator=torch.Generator().manual_seed(seed))


def column_views(
    model: TableFlow, data: Mapping[str, NDArray[Any]], *drawn: Mapping[str, NDArray[Any]]
) -> list[ColumnView]:
    """Returns a view of every column that is not constant, from data and samples by name."""
    return [
        _view(name, codec, data[name], *(samples[name] for samples in drawn))
        for name, codec in zip(model.features, model.schema.codecs, strict=True)
        if not isinstance(codec, Constant)
    ]


def plain_views(features: Sequence[str], *sources: Array) -> list[ColumnView]:
    """Returns a view of every column of data (n, d) and of samples (m, d) that are plain numbers."""
    return [_view(name, None, *(rows[:, k] for rows in sources)) for k, name in enumerate(features)]


def _view(name: str, codec: Codec | None, *values: NDArray[Any]) -> ColumnView:
    is_date = isinstance(codec, Date)
    if isinstance(codec, Date):
        codec, values = codec.base, tuple(days(part) for part in values)
    labels, form = _labels(codec, _date if is_date else _text), "numbers"
    states = tuple(np.zeros(len(part), np.int64) for part in values)
    if codec is not None and labels:
        states = tuple(np.maximum(codec.encode(part, np.full(len(part), 0.5)).states, 0) for part in values)
    if isinstance(codec, Category):
        numbers, form = tuple(part.astype(np.float64) for part in states), "levels"
    else:
        numbers = tuple(np.asarray(part, dtype=np.float64) for part in values)
        form = "counts" if isinstance(codec, Count) and not is_date else "numbers"
    if form == "numbers" and isinstance(codec, Count):
        labels = ()  # a few days, drawn as numbers
    base = codec.base if isinstance(codec, Mixed) else codec
    lattice = (base.first, base.step) if isinstance(base, Count | Lattice | Real) and base.step else None
    distance, chance = _total_variation(*numbers[:2]) if form == "levels" else _ks(*numbers[:2])
    found = ColumnView(name, labels, states, numbers, form, "linear", lattice, distance, chance)
    return ColumnView(**{**vars(found), "scale": "date" if is_date else _scale(found, base)})


def _labels(codec: Codec | None, text: Callable[[Any], str]) -> tuple[str, ...]:
    if isinstance(codec, Category):
        return tuple(text(level) for level in codec.levels)
    if isinstance(codec, Count):
        values = [text(codec.first + place * codec.step) for place in range(codec.values)]
        return (*values, f"over {values[-1]}", *([f"under {values[0]}"] if codec.below else []))
    if isinstance(codec, Mixed):
        return ("other values", *(text(value) for value in codec.values), *(["missing"] if codec.has_missing else []))
    return ()


def _text(value: Any) -> str:
    if value is None:
        return "missing"
    return str(value).lower() if isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else str(value)


def _date(value: Any) -> str:
    """Returns the text of days since 1970."""
    if value is None:
        return "missing"
    moment = str(np.datetime64(round(value * 86_400), "s"))
    return moment.removesuffix("T00:00:00").replace("T", " ")


def text_of(value: Any) -> str:
    """Returns the text of a single value of a column of any type."""
    if isinstance(value, np.datetime64):
        return _date(float(days(np.array([value]))[0]))
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return significant(float(value)) if is_number else _text(value)


def _scale(view: ColumnView, base: Codec | None) -> str:
    """Chooses the axis: a logarithmic one for positive numbers over orders of magnitude."""
    if view.form != "numbers" or isinstance(base, Count):
        return "linear"
    data, drawn = view.others()
    if len(data) == 0 or min(data.min(), drawn.min(initial=np.inf)) <= 0:
        return "linear"
    low, high = np.quantile(data, (0.003, 0.997))
    return "log" if high >= ORDERS * low else "linear"


# ---- Distances


def _ks(data: Array, drawn: Array) -> tuple[float, float]:
    """Returns the distance of values (n,) and (m,), NaN before all others, and what chance exceeds."""
    data, drawn = (np.where(missing(part), -np.inf, part) for part in (data, drawn))
    distance = ks_distance(data, drawn)
    distinct, counts = np.unique(np.concatenate([data, drawn]), return_counts=True)
    if len(distinct) > 0.9 * (len(data) + len(drawn)):
        return distance, chance_ks(len(data), len(drawn))
    return distance, _chance(counts, len(data), len(drawn), ordered=True)


def _total_variation(data: Array, drawn: Array) -> tuple[float, float]:
    """Returns half the sum of the differences between shares of levels, and what chance exceeds."""
    levels = int(max(data.max(), drawn.max())) + 1
    counts = [np.bincount(part.astype(int), minlength=levels) for part in (data, drawn)]
    distance = 0.5 * float(np.abs(counts[0] / len(data) - counts[1] / len(drawn)).sum())
    return distance, _chance(counts[0] + counts[1], len(data), len(drawn), ordered=False)


def _chance(counts: NDArray[Any], n: int, m: int, ordered: bool) -> float:
    """Returns the distance that n and m values, drawn with pooled counts, exceed in one case of twenty."""
    if ordered:  # values that hardly repeat share a group
        group = np.minimum((np.cumsum(counts) - counts) * GROUPS // counts.sum(), GROUPS - 1)
        counts = np.bincount(group, counts)
    random = np.random.default_rng(0)
    share = counts / counts.sum()
    gaps = random.multinomial(n, share, CHANCES) / n - random.multinomial(m, share, CHANCES) / m
    found = np.abs(gaps.cumsum(1)).max(1) if ordered else 0.5 * np.abs(gaps).sum(1)
    return float(np.quantile(found, 0.95))
