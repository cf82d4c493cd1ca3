"""The choice of a link for every continuous column: from its values alone, with a reason that can be printed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from jkoflow.data.checks import column_label
from jkoflow.data.dataset import Dataset
from jkoflow.links import Link

SHARES = {0.16: 0.99446, 0.05: 1.64485, 0.02: 2.05375}
"""Shares that are left out at both ends to measure a column's spread, with the Gaussian's quantiles; wild values are
fewer than the last."""

WILD_DEVIATION = 2.0
"""Ratio of standard deviation to spread beyond which the deviation misleads."""

FAR = 10.0
"""Distance from the median, in spreads, from which the values of a column with wild ones are counted."""

WILD_DISTANCE = 25.0
"""Distance from the median, in spreads, beyond which a value is wild."""

FEW_VALUES = 20
"""Number of distinct values up to which a column is discrete and has no link."""

ORDERS = 100.0
"""Ratio of the 95 % to the 5 % quantile from which a positive column is spread over orders of magnitude."""

EVEN = 1.25
"""Least ratio between neighbours among the quantiles at 5, 25, 50, 75 and 95 % of a column that is spread over orders of
magnitude; tight clusters far apart have less."""

SKEWED = 3.0
"""Ratio of the distances of the 95 % and the 5 % quantile from the median from which a column is strongly skewed."""

CROWDED = 5.0
"""Distance from the extreme value to a low quantile, over the interquartile range and the quantile's level, under which
values crowd at an edge; a uniform column has 2."""

STEADY = 0.35
"""Distance from the extreme value to a low quantile, over that to the quantile of four times its level, under which the
density does not vanish at the edge; a uniform column has 0.25, a density that rises in proportion to the distance 0.5.
"""

SPACINGS = 3.0
"""Distance from the extreme value, in mean spacings of the values there, within which an edge is looked for."""

ROUNDNESS = 20.0
"""Least rounding step of an edge over the width of the window that it is looked for in: in a wide window of values some
number is always round."""

ANGLES = tuple(sign * turn * math.pi for turn in (0.5, 1.0, 2.0) for sign in (-1, 1))
"""Numbers that are edges although they are not round."""

AT_EDGE = 0.01
"""Largest share of values that may lie exactly on an edge."""

FILLED = 0.9
"""Share of the way from a crowded edge to a round one that the values must fill for both to be bounds."""

ROWS_FOR_SOFT_EDGES = 1000
"""Least number of rows from which a crowded edge at no round number is told from chance."""

Values = NDArray[np.float64]


class Choice(NamedTuple):
    """The treatment of one column."""

    link: Link
    robust: bool
    """Whether the column is located and scaled by its quantiles, and mapped through them to a Gaussian's."""
    reason: str
    """Why, in a few words that begin with a small letter."""
    wild: str = ""
    """How many values lie how far out; empty if there are none."""


class _Column(NamedTuple):
    """Values of a column in order: those that are trained on, and the others."""

    ordered: Values
    others: Values

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

    def share_at(self, value: float) -> float:
        """Returns the share of all values that are a given one in float32."""
        found = sum(int((part.astype(np.float32) == np.float32(value)).sum()) for part in self)
        return found / (len(self.ordered) + len(self.others))

    def mirrored(self) -> _Column:
        """Returns the column with the other sign."""
        return _Column(-self.ordered[::-1], -self.others)

    def through(self, link: Link) -> _Column:
        """Returns the column behind a link."""
        return _Column(*(link.forward(torch.from_numpy(part.copy()))[0].numpy() for part in self))


def choose_link(values: NDArray[Any], others: NDArray[Any] | None = None) -> Choice:
    """Chooses how a column is treated.

    Arguments:
        values: Finite values of the training rows, with shape (N,).
        others: Values of the other rows, with shape (M,). Bounds must hold for them, and they may be wild; no number is
            computed from them.

    Returns:
        The link, whether quantiles are to be trusted instead of moments, and the reason.

    Example:
        >>> values = np.exp(3 * np.random.default_rng(0).standard_normal(1000))
        >>> choose_link(values).link.kind
        'log'
    """
    column = _column(values, others)
    ordered = column.ordered
    if len(np.unique(ordered[:: max(len(ordered) // 5000, 1)])) <= FEW_VALUES:
        return Choice(Link(), False, "few distinct values")
    for link, reason in filter(None, (_between_edges(column), _beyond_edge(column), _under_edge(column))):
        behind = column.through(link)
        if wild := _wild(behind):
            return Choice(link, True, f"{reason}; {wild}", wild)
        soft = link.kind != "logit" and _is_crowded(behind)
        return Choice(link, soft, f"{reason}{'; crowded at the other edge' if soft else ''}")
    if wild := _wild(column):
        return Choice(Link("asinh", centre=column.quantile(0.5), scale=column.spread), True, wild, wild)
    if _is_crowded(column):
        return Choice(Link(), True, "crowded at an edge that is no round number")
    return Choice(Link(), False, "mean and deviation describe it")


def choose_links(data: Dataset) -> tuple[list[Choice], list[Choice]]:
    """Returns the treatments of a dataset's columns and of its conditioning variables: the given ones, else chosen."""
    context_features = () if data.prepared else data.context_features
    return (
        _choices(data, "", data.features, data.links),
        _choices(data, "_context", context_features, data.context_links),
    )


def explain(data: Dataset) -> list[str]:
    """Returns one line for every column and conditioning variable of the data: its link, and why.

    Example:
        >>> rows = torch.rand(500, 1, generator=torch.Generator().manual_seed(0))
        >>> explain(Dataset("shares", rows[:400], rows[400:450], rows[450:], ("share",)))
        ["column 'share': logit between 0 and 1; all values within [0, 1], which are crowded at both edges"]
    """
    lines = []
    for features, choices in zip((data.features, data.context_features), choose_links(data), strict=True):
        for index, choice in enumerate(choices):
            lines.append(f"{column_label(features, index)}: {_name(choice)}; {choice.reason}")
    return lines


def described(data: Dataset, choices: tuple[list[Choice], list[Choice]]) -> list[dict[str, str]]:
    """Returns what was decided about every column, those of the context last, as `choose_links` decided it.

    Example:
        >>> rows = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
        >>> data = Dataset("heights", rows[:400], rows[400:450], rows[450:], ("height",))
        >>> described(data, choose_links(data))[0]["reason"]
        'mean and deviation describe it'
    """
    context_features = () if data.prepared else data.context_features
    return [
        {
            "name": name,
            "kind": {"reflected": "log"}.get(choice.link.kind, choice.link.kind),
            "reason": choice.reason,
            "treatment": _name(choice),
            "measure": measure,
        }
        for names, chosen, measure in (
            (data.features, choices[0], "density"),
            (context_features, choices[1], "given"),
        )
        for name, choice in zip(names, chosen, strict=True)
    ]


def given_choice(link: Link, values: NDArray[Any], others: NDArray[Any] | None = None) -> Choice:
    """Returns the treatment of a column whose link is given; one that is set to real stays as it is."""
    if link.kind == "real":
        return Choice(link, False, "as set")
    wild = _wild(_column(values, others).through(link))
    return Choice(link, link.kind == "asinh" or bool(wild), f"as set{f'; {wild}' if wild else ''}", wild)


def location_and_spread(values: NDArray[Any]) -> tuple[float, float]:
    """Returns the median of values (N,) and the deviation of a Gaussian with their central quantiles."""
    column = _column(values, None)
    return column.quantile(0.5), column.spread


def _column(values: NDArray[Any], others: NDArray[Any] | None) -> _Column:
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return _Column(ordered, np.asarray([] if others is None else others, dtype=np.float64))


def _choices(data: Dataset, suffix: str, features: Sequence[str], given: Sequence[Link] | None) -> list[Choice]:
    if not features:
        return []
    train, *rest = (getattr(data, f"{part}{suffix}").detach().cpu().numpy() for part in ("train", "val", "test"))
    others = np.concatenate(rest)
    choose = choose_context_link if suffix else choose_link
    return [
        choose(train[:, index], others[:, index])
        if given is None
        else given_choice(given[index], train[:, index], others[:, index])
        for index in range(len(features))
    ]


def choose_context_link(values: NDArray[Any], others: NDArray[Any] | None = None) -> Choice:
    """Chooses how a conditioning variable is treated: as a column, but without bounds, since it has no density."""
    choice = choose_link(values, others)
    needless = choice.link.kind in ("real", "logit")
    return Choice(Link(), False, "a conditioning variable needs no bounds") if needless else choice


def _wild(column: _Column) -> str:
    """Tells how many values lie how far out; an empty text if deviation and extremes do not mislead."""
    size, middle = column.spread, column.quantile(0.5)
    if size == 0:
        return ""
    farthest = max(column.high - middle, middle - column.low) / size
    if column.ordered.std() <= WILD_DEVIATION * size and farthest <= WILD_DISTANCE:
        return ""
    count = sum(int((np.abs(part - middle) > FAR * size).sum()) for part in column)
    verb = "values lie" if count != 1 else "value lies"
    rows = len(column.ordered) + len(column.others)
    return f"{count} of {rows} {verb} more than {FAR:g} spreads from the median, the farthest {farthest:.2g} spreads"


# ---- Edges


def _between_edges(column: _Column) -> tuple[Link, str] | None:
    """Returns a logit if the values crowd at one or both of two round bounds."""
    lower, upper = _edge(column), _mirrored_edge(column)
    if lower is None and upper is None:
        return None
    both = lower is not None and upper is not None
    if lower is None:  # the other one may be a bound that the values reach without crowding there
        lower = _far_edge(column.mirrored(), -upper)
        lower = None if lower is None else -lower
    elif upper is None:
        upper = _far_edge(column, lower)
    if lower is None or upper is None:
        return None
    where = "both edges" if both else "one edge"
    reason = f"all values within [{lower:g}, {upper:g}], which are crowded at {where}"
    bounds = _moved_out(column, lower), -_moved_out(column.mirrored(), -upper)
    return Link("logit", lower=bounds[0], upper=bounds[1]), reason


def _beyond_edge(column: _Column) -> tuple[Link, str] | None:
    """Returns a logarithm if the values crowd at a round lower bound, or are positive and spread or skewed."""
    edge, reason = _edge(column), ""
    if edge is not None:
        reason = f"all values beyond {edge:g}, where they are crowded"
    if column.low >= 0 and column.share_at(0.0) <= AT_EDGE:
        levels = [max(column.quantile(level), 1e-300) for level in (0.05, 0.25, 0.5, 0.75, 0.95)]
        low, _, middle, _, high = levels
        if high >= ORDERS * low and all(b >= EVEN * a for a, b in itertools.pairwise(levels)):
            orders = math.log10(column.high / float(column.ordered[column.ordered > 0][0]))
            edge, reason = 0.0, f"positive and spread over {orders:.0f} orders of magnitude"
        elif edge is None and high - middle >= SKEWED * (middle - low):
            edge, reason = 0.0, "positive and strongly skewed"
    if edge is None or not reason:
        return None
    return Link("log", lower=_moved_out(column, edge)), reason


def _under_edge(column: _Column) -> tuple[Link, str] | None:
    """Returns the mirror image of `_beyond_edge`."""
    found = _beyond_edge(column.mirrored())
    if found is None:
        return None
    edge = 0.0 - found[0].lower
    return Link("reflected", upper=edge), f"all values under {edge:g}, where they are crowded or spread widely"


def _is_crowded(column: _Column) -> bool:
    """Tells whether values crowd at one of their extremes, where so many rows leave no doubt."""
    return len(column.ordered) >= ROWS_FOR_SOFT_EDGES and (_crowds(column) or _crowds(column.mirrored()))


def _crowds(column: _Column) -> bool:
    """Tells whether the density of the values does not vanish towards the least of them."""
    middle = column.quantile(0.75) - column.quantile(0.25)
    level, least = _low_level(column), column.ordered[0]
    near, next_to_it = column.quantile(level) - least, column.quantile(4 * level) - least
    return near < CROWDED * level * middle and near < STEADY * next_to_it


def _low_level(column: _Column) -> float:
    return max(0.01, min(5 / len(column.ordered), 0.1))


def _edge(column: _Column) -> float | None:
    """Returns the round number at which the least values crowd; None if they do not, or too many lie on it."""
    if not _crowds(column):
        return None
    level = _low_level(column)
    spacing = (column.quantile(level) - column.ordered[0]) / (level * len(column.ordered))
    least = column.low
    edge = round_number(least - SPACINGS * spacing, least)
    return None if edge is None or column.share_at(edge) > AT_EDGE else edge


def _mirrored_edge(column: _Column) -> float | None:
    edge = _edge(column.mirrored())
    return None if edge is None else -edge


def _far_edge(column: _Column, lower: float) -> float | None:
    """Returns the upper bound 1 or 100 of values that crowd at 0 and fill most of the way to it."""
    if lower != 0:
        return None
    bounds = (bound for bound in (1.0, 100.0) if FILLED * bound <= column.high <= bound)
    return next((bound for bound in bounds if column.share_at(bound) <= AT_EDGE), None)


def round_number(low: float, high: float) -> float | None:
    """Returns the roundest number of an interval, or one out of `ANGLES`; None if its being round may be chance.

    Example:
        >>> round_number(0.993, 1.002), round_number(4.31, 4.36), round_number(-0.01, 0.02)
        (1.0, None, 0.0)
    """
    slack = 4 * float(np.finfo(np.float32).eps) * max(abs(low), abs(high))  # of numbers that were stored in float32
    low, high = low - slack, high + slack
    if low <= 0 <= high:
        return 0.0
    least_step = ROUNDNESS * (high - low)
    for angle in ANGLES:
        if low <= angle <= high and least_step < 1:
            return angle
    exponent = math.ceil(math.log10(max(abs(low), abs(high))))
    while (step := 10.0**exponent) >= least_step:
        number = math.floor(high / step) * step
        if number >= low:
            return float(f"{number:.12g}")
        exponent -= 1
    return None


def _moved_out(column: _Column, edge: float) -> float:
    """Returns a lower edge, further out by half of the spacing of the values there if a value lies on it."""
    if column.low > edge:
        return edge
    beyond = column.ordered[column.ordered > edge]
    step = float(np.spacing(np.float32(abs(edge))))
    return min(edge, column.low) - max(0.5 * float(beyond[0] - edge), step)


def _name(choice: Choice) -> str:
    link = choice.link
    names = {
        "real": "as it is",
        "log": f"logarithm of the distance from {link.lower:g}",
        "reflected": f"logarithm of the distance from {link.upper:g}",
        "logit": f"logit between {link.lower:g} and {link.upper:g}",
        "asinh": f"asinh around {link.centre:g} with scale {link.scale:g}",
    }
    return f"{names[link.kind]}{', through its quantiles' if choice.robust else ''}"
