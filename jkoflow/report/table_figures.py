"""The figures of a table's columns, data against samples in the user's units, each column by its kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from jkoflow.report.column_views import ColumnView
from jkoflow.report.probes import Array, worst_columns
from jkoflow.report.readings import percent, tell_between, tell_boxes, tell_shares
from jkoflow.report.style import (
    DATA,
    FAINT,
    INK,
    LEGEND,
    MODEL,
    MUTED,
    WIDTH,
    bin_edges,
    dress_panel,
    new_figure,
    robust_span,
    shorten,
)

MOST_BARS = 9
"""Largest number of levels with a bar of their own; of more, the most frequent."""

PANELS = 4
"""Panels in a row."""


def columns_figure(views: Sequence[ColumnView]) -> Figure:
    """Draws every column of the data against that of the samples.

    Arguments:
        views: The columns.

    Returns:
        A grid of panels, each with its distance and what chance alone exceeds: bars for levels, counts and repeated
        values, histograms for the rest; of more than 24 columns, the 24 that fit worst.
    """
    chosen = worst_columns(np.array([view.distance / max(view.chance, 1e-9) for view in views]))
    lines = -(-len(chosen) // PANELS)
    columns = min(len(chosen), PANELS)
    figure = new_figure(max(WIDTH * columns / PANELS, 5.9), 1.85 * lines + 0.4, gap=0.1)
    for place, index in enumerate(chosen):
        view = views[index]
        ax = figure.add_subplot(lines, columns, place + 1)
        if view.form == "levels":
            _draw_levels(ax, view)
        elif view.form == "counts":
            _draw_counts(ax, view)
        elif view.labels:
            _draw_with_spikes(ax, view)
        else:
            _draw_numbers(ax, view)
    handles = [
        Patch(facecolor=DATA, alpha=0.4, label="test data"),
        Patch(facecolor="none", edgecolor=MODEL, lw=1.2, label="samples"),
    ]
    figure.legend(handles=handles, loc="outside upper right", **LEGEND)
    return figure


def _note(view: ColumnView) -> str:
    return f"{view.measure} {view.distance:.3f}, chance {view.chance:.3f}"


def _dress(ax: Axes, view: ColumnView) -> None:
    dress_panel(ax, shorten(view.name, 14), _note(view))
    ax.xaxis.get_offset_text().set(fontsize=7.5, color=MUTED)


def _draw_levels(ax: Axes, view: ColumnView) -> None:
    """Draws a pair of bars for every level, the first one on top."""
    labels, data, drawn = shown_levels(view)
    y = np.arange(len(labels))[::-1]
    ax.barh(y + 0.19, data, 0.38, color=DATA, alpha=0.4)
    ax.barh(y - 0.19, drawn, 0.36, facecolor="none", edgecolor=MODEL, lw=1.2)
    tell_between(ax, view.name, np.append(y + 0.5, -0.5), _shares(view, labels, data, drawn), along_y=True)
    _dress(ax, view)
    ax.set_ylim(-0.6, len(labels) - 0.4)
    ax.set_yticks(y, [shorten(label, 16) for label in labels], parse_math=False)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.set_xlim(0, 1.04 * max(data.max(), drawn.max()))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0 if max(data.max(), drawn.max()) > 0.05 else 1))


def shown_levels(view: ColumnView, most: int = MOST_BARS) -> tuple[list[str], Array, Array]:
    """Returns the names and shares of a column's most frequent levels, in their order, and of all others together."""
    data, drawn = view.shares()
    if len(data) <= most:
        return list(view.labels), data, drawn
    kept = np.sort(np.argsort(-(data + drawn), kind="stable")[: most - 1])
    labels = [*(view.labels[place] for place in kept), f"{len(data) - len(kept)} others"]
    rest = [1 - shares[kept].sum() for shares in (data, drawn)]
    return labels, np.append(data[kept], rest[0]), np.append(drawn[kept], rest[1])


def _shares(view: ColumnView, labels: Sequence[str], data: Array, drawn: Array) -> list[str]:
    return [
        f"{view.name}: {label}\ntest data: {percent(a)}\nsamples: {percent(b)}"
        for label, a, b in zip(labels, data, drawn, strict=True)
    ]


def _draw_counts(ax: Axes, view: ColumnView) -> None:
    """Draws a pair of bars at every value."""
    assert view.lattice is not None
    step = view.lattice[1]
    seen = np.unique(np.concatenate(view.numbers))
    data, drawn = (np.array([np.mean(values == value) for value in seen]) for values in view.numbers[:2])
    boxes = np.stack([seen - step / 2, seen + step / 2, np.full(len(seen), -np.inf), np.full(len(seen), np.inf)], 1)
    tell_boxes(ax, view.name, boxes, _shares(view, [view.text(value) for value in seen.tolist()], data, drawn))
    for values, offset, style in (
        (view.numbers[0], -0.2, {"color": DATA, "alpha": 0.4}),
        (view.numbers[1], 0.2, {"facecolor": "none", "edgecolor": MODEL, "lw": 1.1}),
    ):
        places, counts = np.unique(values, return_counts=True)
        ax.bar(places + offset * step, counts / len(values), 0.38 * step, **style)
    _dress(ax, view)
    joined = np.concatenate(view.numbers)
    ax.set_xlim(joined.min() - 0.7 * step, joined.max() + 0.7 * step)
    ax.locator_params(axis="x", integer=float(step).is_integer(), nbins=6)


def _draw_with_spikes(ax: Axes, view: ColumnView) -> None:
    """Draws the shares of repeated and missing values as bars, and the histogram of the rest beside them."""
    data, drawn = (shares[1:] for shares in view.shares())
    _dress(ax, view)
    ax.set(xticks=[])
    ax.spines[:].set_visible(False)
    width = min(0.12 + 0.08 * len(data), 0.5)
    bars, rest = ax.inset_axes((0, 0, width, 1)), ax.inset_axes((width + 0.05, 0, 0.95 - width, 1))
    x = np.arange(len(data))
    bars.bar(x - 0.2, data, 0.36, color=DATA, alpha=0.4)
    bars.bar(x + 0.2, drawn, 0.34, facecolor="none", edgecolor=MODEL, lw=1.2)
    tell_between(bars, view.name, np.arange(len(data) + 1) - 0.5, _shares(view, view.labels[1:], data, drawn))
    top = max(data.max(), drawn.max(), 1e-9)
    for place, share in enumerate(data if len(data) <= 3 else ()):  # of more the texts would meet
        text = f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"
        bars.text(place, max(share, drawn[place]) + 0.03 * top, text, ha="center", fontsize=7, color=MUTED)
    dress_panel(bars, "", "")
    bars.set_ylim(0, 1.22 * top)
    bars.set_xlim(-0.6, len(data) - 0.4)
    labels = [shorten(label, 10) for label in view.labels[1:]]
    bars.set_xticks(x, labels, rotation=90 if len(labels) > 2 else 0, parse_math=False)
    bars.tick_params(axis="x", length=0, labelcolor=INK)
    _draw_numbers(rest, view)
    for side in ("left", "right"):
        rest.set_title("", loc=side)


def _draw_numbers(ax: Axes, view: ColumnView) -> None:
    """Draws histograms on the column's axis; heights are shares for each unit of length along it."""
    data, drawn = view.others()
    edges = number_edges(view, min(len(data), len(drawn)))
    along = np.log10(edges) if view.scale == "log" else edges
    for values, style in (
        (data, {"color": DATA, "alpha": 0.4, "fill": True}),
        (drawn, {"color": MODEL, "lw": 1.2}),
    ):
        counts = np.histogram(values, edges)[0]
        ax.stairs(counts / max(len(values), 1) / np.diff(along), edges, **style)
    tell_shares(ax, view.name, edges, {"test data": data, "samples": drawn}, view.text)
    _dress(ax, view)
    name_scale(ax, view)
    ax.set_xlim(edges[0], edges[-1])


def number_edges(view: ColumnView, count: int, bins: int | None = None) -> Array:
    """Returns edges of bins over a robust range of the data, between the values of a lattice if there is one.

    Arguments:
        view: The column.
        count: Number of values, which the number of bins suits.
        bins: Number of bins instead.
    """
    data, drawn = view.others()
    values = data if len(data) else drawn
    values = values if len(values) else np.zeros(1)
    is_log = view.scale == "log"
    low, high = robust_span(np.log10(values) if is_log else values)
    edges = bin_edges(low, high, count) if bins is None else np.linspace(low, high, bins + 1)
    edges = 10**edges if is_log else edges
    if view.lattice is not None:
        first, step = view.lattice
        snapped = np.unique(np.round((edges - first) / step - 0.5))
        snapped = first + step * (snapped + 0.5)
        snapped = snapped[snapped > 0] if is_log else snapped
        if len(snapped) > 1:
            return snapped
    return edges


def name_scale(ax: Axes, view: ColumnView) -> None:
    """Gives the horizontal axis the scale, the places and the texts of ticks that suit a column."""
    if view.scale == "log":
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(numticks=4))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(axis="x", which="minor", length=0, color=FAINT)
    elif view.scale == "date":
        locator = AutoDateLocator(minticks=2, maxticks=5)  # with fewer there is no interval for 23 months
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _power(value: float) -> str:
    exponent = round(np.log10(value))
    if abs(exponent) <= 3 or not np.isclose(value, 10.0**exponent):
        return f"{value:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
