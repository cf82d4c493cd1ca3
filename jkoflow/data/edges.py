"""The bounds of columns: round numbers at which the values crowd, and the zero of positive, skewed values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from jkoflow.data.ordered_values import OrderedValues
from jkoflow.links import Link

ORDERS = 100.0
"""Ratio of the 95 % to the 5 % quantile from which a positive column is spread over orders of magnitude."""

EVEN = 1.25
"""Least ratio between neighbours among the quantiles at 5, 25, 50, 75 and 95 % of a column that is spread over orders
of magnitude; tight clusters far apart have less."""

SKEWED = 3.0
"""Ratio of the distances of the 95 % and the 5 % quantile from the median from which a column is strongly skewed."""

CROWDED = 5.0
"""Distance from the extreme value to a low quantile, over the interquartile range and the quantile's level, under which
values crowd at an edge; a uniform column has 2."""

STEADY = 0.35
"""Distance from the extreme value to a low quantile, over that to the quantile of four times its level, under which the
density does not vanish at the edge; a uniform column has 0.25, a density that rises in proportion to the distance 0.5.
"""

SPACINGS = 7.0
"""Distance from the extreme value, in mean spacings of the values there, within which an edge is looked for."""

ROUNDNESS = 10.0
"""Least rounding step of an edge over the width of the window that it is looked for in: in a wide window of values some
number is always round."""

DIGITS = 1000
"""A round number is less than this many of its rounding steps."""

ANGLES = tuple(sign * turn * math.pi for turn in (0.5, 1.0, 2.0) for sign in (-1, 1))
"""Numbers that are edges although they are not round."""

AT_EDGE = 0.01
"""Largest share of values that may lie exactly on an edge."""

FILLED = 0.9
"""Share of the way from a crowded edge to a round one that the values must fill for both to be bounds."""

ROWS_FOR_SOFT_EDGES = 1000
"""Least number of rows from which a crowded edge at no round number is told from chance."""


def bounded_links(column: OrderedValues) -> Iterator[tuple[Link, str]]:
    """Yields the links that a column's bounds suggest, the best first, each with the reason."""
    for suggest in (_between_edges, _beyond_edge, _under_edge):
        if (found := suggest(column)) is not None:
            yield found


def _between_edges(column: OrderedValues) -> tuple[Link, str] | None:
    """Returns a logit if the values crowd at one or both of two round bounds."""
    lower, upper = _edge(column), _mirrored_edge(column)
    if lower is None and upper is None:
        return None
    both = lower is not None and upper is not None
    if lower is None and upper is not None:  # the other one may be a bound that the values reach without crowding there
        lower = _far_edge(column.mirrored(), -upper)
        lower = None if lower is None else -lower
    elif lower is not None and upper is None:
        upper = _far_edge(column, lower)
    if lower is None or upper is None:
        return None
    where = "both edges" if both else "one edge"
    reason = f"all values within [{lower:g}, {upper:g}], which are crowded at {where}"
    bounds = _moved_out(column, lower), -_moved_out(column.mirrored(), -upper)
    return Link("logit", lower=bounds[0], upper=bounds[1]), reason


def _beyond_edge(column: OrderedValues) -> tuple[Link, str] | None:
    """Returns a logarithm if the values are positive and spread or skewed, or crowd at a round lower bound."""
    if (found := positive_link(column)) is not None:
        return found
    edge = _edge(column)
    if edge is None:
        return None
    return Link("log", lower=_moved_out(column, edge)), f"all values beyond {edge:g}, where they are crowded"


def positive_link(column: OrderedValues) -> tuple[Link, str] | None:
    """Returns a logarithm, and why, if the values are positive and spread over orders of magnitude or skewed."""
    reason = ""
    if column.low >= 0 and column.share_at(0.0) <= AT_EDGE:
        levels = [max(column.quantile(level), 1e-300) for level in (0.05, 0.25, 0.5, 0.75, 0.95)]
        low, _, middle, _, high = levels
        if high >= ORDERS * low and all(b >= EVEN * a for a, b in itertools.pairwise(levels)):
            orders = math.log10(column.high / float(column.ordered[column.ordered > 0][0]))
            reason = f"positive and spread over {orders:.0f} orders of magnitude"
        elif high - middle >= SKEWED * (middle - low):
            reason = "positive and strongly skewed"
    return (Link("log", lower=_moved_out(column, 0.0)), reason) if reason else None


def _under_edge(column: OrderedValues) -> tuple[Link, str] | None:
    """Returns the mirror image of `_beyond_edge`."""
    found = _beyond_edge(column.mirrored())
    if found is None:
        return None
    edge = 0.0 - found[0].lower
    return Link("reflected", upper=edge), f"all values under {edge:g}, where they are crowded or spread widely"


def is_crowded(column: OrderedValues) -> bool:
    """Tells whether values crowd at one of their extremes, where so many rows leave no doubt."""
    return len(column.ordered) >= ROWS_FOR_SOFT_EDGES and (_crowds(column) or _crowds(column.mirrored()))


def _crowds(column: OrderedValues) -> bool:
    """Tells whether the density of the values does not vanish towards the least of them."""
    middle = column.quantile(0.75) - column.quantile(0.25)
    level, least = _low_level(column), column.ordered[0]
    near, next_to_it = column.quantile(level) - least, column.quantile(4 * level) - least
    return near < CROWDED * level * middle and near < STEADY * next_to_it


def _low_level(column: OrderedValues) -> float:
    return max(0.01, min(5 / len(column.ordered), 0.1))


def _edge(column: OrderedValues) -> float | None:
    """Returns the round number at which the least values crowd; None if they do not, or too many lie on it."""
    if not _crowds(column):
        return None
    level = _low_level(column)
    spacing = (column.quantile(level) - column.ordered[0]) / (level * len(column.ordered))
    least = float(column.ordered[0])
    edge = round_number(least - SPACINGS * spacing, least)
    if edge is None or column.low < least - SPACINGS * spacing:  # other rows lie beyond
        return None
    return edge if column.share_at(edge) <= AT_EDGE else None


def _mirrored_edge(column: OrderedValues) -> float | None:
    edge = _edge(column.mirrored())
    return None if edge is None else -edge


def _far_edge(column: OrderedValues, lower: float) -> float | None:
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
        if abs(number) >= DIGITS * step:
            return None
        if number >= low:
            return float(f"{number:.12g}")
        exponent -= 1
    return None


def _moved_out(column: OrderedValues, edge: float) -> float:
    """Returns a lower edge, further out by half of the spacing of the values there if a value lies on it."""
    if column.low > edge:
        return edge
    beyond = column.ordered[column.ordered > edge]
    step = float(np.spacing(np.float32(abs(edge))))
    return min(edge, column.low) - max(0.5 * float(beyond[0] - edge), step)
