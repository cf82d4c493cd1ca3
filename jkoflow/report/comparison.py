"""What two runs have in common and how they differ: settings, data, and log-densities of the same test rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow.report import draws
from jkoflow.report.page import flat
from jkoflow.report.probes import Array, Records, or_nan, place_of
from jkoflow.report.results import Results

Indices = NDArray[np.int64]

MOST_ROWS = 5000
"""Test rows that are scored at most; a run keeps no more."""


@dataclass(frozen=True)
class Paired:
    """Differences of the log-densities of the same rows under two models."""

    differences: Array
    """Those of the second model less those of the first, in nats and the data's own units, finite, with shape (n,)."""
    left_out: int
    """Number of rows that one of the models gives no finite log-density."""

    @property
    def mean(self) -> float:
        """Returns the mean difference."""
        return float(self.differences.mean())

    @property
    def stderr(self) -> float:
        """Returns the standard error of the mean, that of paired rows."""
        return float(self.differences.std(ddof=1)) / math.sqrt(len(self.differences))


def settings_that_differ(first: Results, second: Results) -> tuple[list[tuple[str, str, str]], int]:
    """Returns the settings that the runs have not in common, with both values, and how many they have in common."""
    one, other = dict(flat(first.config)), dict(flat(second.config))
    names = [name for name in dict.fromkeys((*one, *other)) if name != "data"]
    differing = [(name, one.get(name, "–"), other.get(name, "–")) for name in names if one.get(name) != other.get(name)]
    return differing, len(names) - len(differing)


def common_rows(first: Results, second: Results) -> tuple[Indices, Indices]:
    """Returns the places (n,) of those test rows of each run that the other has, too, in the order of the first.

    Rows are the same if their columns are, and the conditioning variables that both runs have, in float32.
    """
    keys = [
        _keys(run, [*first.names, *(name for name in first.given if name in second.given)]) for run in (first, second)
    ]
    places = defaultdict(list)
    for place, key in enumerate(keys[1]):
        places[key].append(place)
    found = []
    for place, key in enumerate(keys[0]):
        if places.get(key):
            found.append((place, places[key].pop(0)))
    rows = np.array(found, np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _keys(run: Results, names: Sequence[str]) -> list[tuple[str, ...]]:
    columns, given = draws.held_out(run)
    texts = []
    for name in names:
        values = columns[name] if name in columns else given[name]
        if values.dtype.kind in "biuf":
            values = values.astype(np.float32)
        texts.append([str(value) for value in values.tolist()])
    return list(zip(*texts, strict=True))


def paired(first: Results, second: Results) -> Paired | str:
    """Scores the test rows that both runs hold out, which neither was trained on, under both models.

    Returns:
        The differences; or, as a sentence, why there are none.
    """
    if set(first.names) != set(second.names):
        return f"the models have densities of other columns: {_listed(first.names)}, and {_listed(second.names)}"
    measures = [_measures(run) for run in (first, second)]
    other = [name for name in first.names if measures[0][name] != measures[1][name]]
    if other:
        told = f"{other[0]} is a {measures[0][other[0]]} for one and a {measures[1][other[0]]} for the other"
        return f"the log-densities are of other kinds: {told}"
    rows = common_rows(first, second)
    if len(rows[0]) < 2:
        return (
            "the runs have no test rows in common that they kept: their data, their splits or their seeds differ, and "
            "what one is tested on the other may have been trained on"
        )
    known = []
    for run, places in zip((first, second), rows, strict=True):
        columns, given = (
            {name: values[places[:MOST_ROWS]] for name, values in part.items()} for part in draws.held_out(run)
        )
        known.append(draws.log_prob(run, columns, given))
    finite = np.isfinite(known[0]) & np.isfinite(known[1])
    if finite.sum() < 2:
        return "fewer than two common test rows have a finite log-density under both models"
    return Paired((known[1] - known[0])[finite], int((~finite).sum()))


def _measures(run: Results) -> dict[str, str]:
    """Returns what the log-density of each column is; a density where a run of an earlier version does not say."""
    told = {column["name"]: column["measure"] for column in run.metrics.get("columns") or []}
    return {name: told.get(name, "density") for name in run.names}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def is_same_data(first: Results, second: Results) -> bool:
    """Tells whether the runs are known to have the same training, validation and test rows."""
    marks = [run.metrics.get("fingerprint") for run in (first, second)]
    return bool(marks[0]) and marks[0] == marks[1]


def data_in_common(first: Results, second: Results) -> str:
    """Returns a sentence about whether the runs are of the same data."""
    marks = [run.metrics.get("fingerprint") for run in (first, second)]
    if is_same_data(first, second):
        return "The same data: training, validation and test rows have the same fingerprint."
    if set(first.names) != set(second.names):
        return "Other data: the columns differ."
    rows, kept = (
        len(common_rows(first, second)[0]),
        [len(next(iter(draws.held_out(run)[0].values()))) for run in (first, second)],
    )
    if rows == kept[0] == kept[1]:
        return (
            f"The same {rows:,} kept test rows; the fingerprints differ: other training rows, other conditioning "
            "variables, or another flow to start from."
            if all(marks)
            else f"The same {rows:,} kept test rows; a run of an earlier version has no fingerprint of the others."
        )
    return (
        f"Not the same rows: {rows:,} of {kept[0]:,} kept test rows are also among the {kept[1]:,} of the other; other "
        "data, or another split or seed."
    )


def validation_curve(history: Records) -> tuple[Array, Array, list[str]]:
    """Returns the seconds and values of the validation NLL, NaN between blocks, and the places in the training.

    The curve is empty for runs of versions that kept no times.
    """
    times: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    for record in history:
        if record.get("event") == "iteration" and isinstance(record.get("seconds"), (int, float)):
            times[place_of(record)].append((int(record["iteration"]), float(record["seconds"])))
    found: list[tuple[float, float, str]] = []
    last = None
    for record in history:
        place = place_of(record) if record.get("event") == "validation" else None
        if place is None or not times.get(place):
            continue
        if last not in (None, place):
            found.append((math.nan, math.nan, ""))
        iterations, seconds = zip(*sorted(times[place]), strict=True)
        at = float(np.interp(record["iteration"], iterations, seconds))
        where = f"round {place[0] + 1}, block {place[1] + 1}, iteration {record['iteration']:,}"
        found.append((at, or_nan(record.get("nll")), where))
        last = place
    return np.array([at for at, _, _ in found]), np.array([nll for _, nll, _ in found]), [text for *_, text in found]


def labels(first: Results, second: Results) -> tuple[str, str]:
    """Returns the names by which the page calls the runs: those of their directories, if these differ."""
    paths = [run.path.resolve() for run in (first, second)]
    for parts in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if names[0] != names[1]:
            return names[0], names[1]
    return "first", "second"


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics that are numbers."""
    return {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
