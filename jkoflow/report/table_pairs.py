"""The figure of pairs of a table's columns: counts of numbers, histograms by level, counts of pairs of levels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from jkoflow.report.column_views import ColumnView, telling_pairs
from jkoflow.report.probes import Array
from jkoflow.report.style import INK, MAP, WIDTH, dress_tile, name_axes, new_figure, shorten
from jkoflow.report.table_figures import number_edges, shown_levels

MOST_LEVELS = 7
"""Largest number of levels along an axis; of more, the most frequent and all others together."""

BINS = 40
"""Bins of numbers along an axis."""


def pairs_figure(views: Sequence[ColumnView], *, count: int = 6) -> Figure:
    """Draws the most telling pairs of columns, the data above the samples.

    Two columns of numbers are drawn as counts in logarithmic colours, two of levels as counts, and numbers beside
    levels as a histogram for every level.

    Arguments:
        views: The columns, two at least.
        count: Largest number of pairs.

    Returns:
        A figure of two rows with the same axes and colours in every column.
    """
    pairs = telling_pairs(list(views), count)
    size = min(2.4, WIDTH / len(pairs))
    figure = new_figure(len(pairs) * size, 2 * size + 0.1, gap=0.04)
    for column, (i, j) in enumerate(pairs):
        # levels go along the vertical axis, where there is room for their names
        x, y = (views[j], views[i]) if _is_levels(views[i]) and not _is_levels(views[j]) else (views[i], views[j])
        axes = [figure.add_subplot(2, len(pairs), row * len(pairs) + column + 1) for row in (0, 1)]
        _draw_pair(axes, x, y)
        for ax, text in zip(axes, ("test data", "samples"), strict=True):
            ax.set_title(text if column == 0 else "", loc="left", fontsize=9, color=INK, pad=3)
    return figure


def _draw_pair(axes: list[Axes], x: ColumnView, y: ColumnView) -> None:
    y_cells, y_size, y_names = _axis(y, BINS)
    rows = len(y.numbers[0]) / max(len(y_names), 1)
    bins = int(np.clip(3 * rows ** (1 / 3), 8, BINS)) if y_names else BINS  # a level has fewer rows
    x_cells, x_size, x_names = _axis(x, bins)
    size = min(len(cells) for cells in x_cells)
    shape = (y_size, x_size)
    counts = [_counts(x_cells[k][:size], y_cells[k][:size], shape) for k in (0, 1)]
    if y_names and not x_names:  # a histogram for every level
        counts = [found / np.maximum(found.sum(1, keepdims=True), 1) for found in counts]
    is_counted = not x_names and not y_names
    seen = counts[0][counts[0] > 0]
    top = float(np.quantile(seen, 0.995)) if len(seen) else 1.0
    for ax, found in zip(axes, counts, strict=True):
        norm = LogNorm(0.5, max(top, 2.0)) if is_counted else PowerNorm(0.6, 0, top)
        shown = np.maximum(found, 0.5) if is_counted else found
        ax.pcolormesh(np.arange(shape[1] + 1), np.arange(shape[0] + 1), shown, cmap=MAP, norm=norm, rasterized=True)
        dress_tile(ax, (0, shape[1]), (0, shape[0]))
        is_last = ax is axes[-1]
        name_axes(ax, _named(x) if is_last else "", _named(y), size=8)
        if y_names:
            ax.invert_yaxis()  # the first level on top, as among bars
            ax.set_yticks(np.arange(shape[0]) + 0.5, [shorten(name, 10) for name in y_names], parse_math=False)
        if x_names and is_last:
            names = [shorten(name, 10) for name in x_names]
            ax.set_xticks(np.arange(shape[1]) + 0.5, names, rotation=90, parse_math=False)
        ax.tick_params(labelsize=7, labelcolor=INK, length=0)


def _named(view: ColumnView) -> str:
    return view.name + (", log axis" if view.scale == "log" else "")


def _is_levels(view: ColumnView) -> bool:
    return view.form == "levels" or (view.form == "counts" and len(_values(view)) <= MOST_LEVELS)


def _values(view: ColumnView) -> Array:
    return np.unique(np.concatenate(view.numbers))


def _axis(view: ColumnView, bins: int) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], int, list[str]]:
    """Returns the cells along an axis of data and samples, -1 outside, how many there are, and the names of levels."""
    if view.form == "levels":
        names = shown_levels(view, MOST_LEVELS)[0]
        places = {name: place for place, name in enumerate(names)}
        cell = np.array([places.get(label, len(names) - 1) for label in view.labels])
        first, second = (cell[states] for states in view.states)
        return (first, second), len(names), names
    if _is_levels(view):
        values = _values(view)
        first, second = (np.searchsorted(values, numbers) for numbers in view.numbers)
        return (first, second), len(values), [f"{value:g}" for value in values]
    edges = number_edges(view, 0, bins)
    first, second = (_cells(numbers, edges) for numbers in view.numbers)
    return (first, second), len(edges) - 1, []


def _cells(numbers: Array, edges: Array) -> NDArray[np.int64]:
    found = np.searchsorted(edges, numbers, side="right") - 1
    return np.where((numbers >= edges[0]) & (numbers < edges[-1]), found, -1)


def _counts(x: NDArray[np.int64], y: NDArray[np.int64], shape: tuple[int, int]) -> Array:
    """Returns how many points lie in each cell, with the given shape (rows, columns)."""
    inside = (x >= 0) & (y >= 0)
    found = np.bincount(y[inside] * shape[1] + x[inside], minlength=shape[0] * shape[1])
    return found.reshape(shape).astype(np.float64)
