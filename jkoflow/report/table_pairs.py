"""The figure of pairs of columns: counts of numbers, histograms by level, counts of pairs of levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from jkoflow.report.column_views import ColumnView
from jkoflow.report.pair_choice import Pair
from jkoflow.report.probes import Array
from jkoflow.report.readings import CELLS, intervals, tell_cells
from jkoflow.report.style import INK, MAP, MUTED, WIDTH, dress_tile, name_axes, new_figure, shorten
from jkoflow.report.table_figures import number_edges, shown_levels

MOST_LEVELS = 7
"""Largest number of levels along an axis; of more, the most frequent and all others together."""

BINS = 40
"""Bins of numbers along an axis."""


def pairs_figure(
    views: Sequence[ColumnView], pairs: Sequence[Pair], sources: Sequence[str] = ("test data", "samples")
) -> Figure:
    """Draws pairs of columns, the data above the samples, each pair under the quantity that it was chosen by.

    Two columns of numbers are drawn as counts in logarithmic colours, two of levels as counts, and numbers beside
    levels as a histogram for every level.

    Arguments:
        views: The columns.
        pairs: The pairs.
        sources: What the columns hold, in a row each.

    Returns:
        A figure of a row for each source with the same axes and colours in every column.
    """
    lines = len(sources)
    size = min(2.4, WIDTH / len(pairs))
    figure = new_figure(len(pairs) * size, lines * size + 0.1, gap=0.04)
    for column, pair in enumerate(pairs):
        i, j = pair.first, pair.second
        # levels go along the vertical axis, where there is room for their names
        x, y = (views[j], views[i]) if _is_levels(views[i]) and not _is_levels(views[j]) else (views[i], views[j])
        axes = [figure.add_subplot(lines, len(pairs), row * len(pairs) + column + 1) for row in range(lines)]
        _draw_pair(axes, x, y, sources)
        for ax, text in zip(axes, sources, strict=True):
            ax.set_title(text if column == 0 else "", loc="left", fontsize=9, color=INK, pad=3)
        axes[0].set_title(pair.said(), loc="right", fontsize=7.5, color=MUTED, pad=14)
    return figure


def _draw_pair(axes: list[Axes], x: ColumnView, y: ColumnView, sources: Sequence[str]) -> None:
    y_cells, y_size, y_names = _axis(y, BINS)
    rows = len(y.numbers[0]) / max(len(y_names), 1)
    bins = int(np.clip(3 * rows ** (1 / 3), 8, BINS)) if y_names else BINS  # a level has fewer rows
    x_cells, x_size, x_names = _axis(x, bins)
    size = min(len(cells) for cells in x_cells)
    shape = (y_size, x_size)
    counts = [_counts(a[:size], b[:size], shape) for a, b in zip(x_cells, y_cells, strict=True)]
    _tell(axes, (x, x_names, x_size), (y, y_names, y_size), dict(zip(sources, counts, strict=True)), bins)
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


def _tell(
    axes: list[Axes],
    across: tuple[ColumnView, list[str], int],
    up: tuple[ColumnView, list[str], int],
    counts: Mapping[str, Array],
    bins: int,
) -> None:
    """Gives the panels boxes that tell how many rows lie in some cells together."""
    edges, texts = [], []
    for view, names, size in (across, up):
        places = np.arange(size + 1) if names else np.unique(np.linspace(0, size, min(CELLS, size) + 1).astype(int))
        edges.append(places)
        if names:
            texts.append([f"{view.name}: {name}" for name in names])
        else:
            fine = number_edges(view, 0, bins if view is across[0] else BINS)
            texts.append(intervals(view.name, fine[places], view.text))
    told = {}
    for source, cells in counts.items():
        sums = np.add.reduceat(np.add.reduceat(cells, edges[1][:-1], 0), edges[0][:-1], 1)
        told[source] = np.array([[f"{int(value):,} rows" for value in line] for line in sums])
    tell_cells(dict(zip(counts, axes, strict=True)), (edges[0], edges[1]), (texts[0], texts[1]), told)


def _axis(view: ColumnView, bins: int) -> tuple[tuple[NDArray[np.int64], ...], int, list[str]]:
    """Returns the cells along an axis of data and samples, -1 outside, how many there are, and the names of levels."""
    if view.form == "levels":
        names = shown_levels(view, MOST_LEVELS)[0]
        places = {name: place for place, name in enumerate(names)}
        cell = np.array([places.get(label, len(names) - 1) for label in view.labels])
        return tuple(cell[states] for states in view.states), len(names), names
    if _is_levels(view):
        values = _values(view)
        return (
            tuple(np.searchsorted(values, numbers) for numbers in view.numbers),
            len(values),
            [f"{value:g}" for value in values],
        )
    edges = number_edges(view, 0, bins)
    return tuple(_cells(numbers, edges) for numbers in view.numbers), len(edges) - 1, []


def _cells(numbers: Array, edges: Array) -> NDArray[np.int64]:
    found = np.searchsorted(edges, numbers, side="right") - 1
    return np.where((numbers >= edges[0]) & (numbers < edges[-1]), found, -1)


def _counts(x: NDArray[np.int64], y: NDArray[np.int64], shape: tuple[int, int]) -> Array:
    """Returns how many points lie in each cell, with the given shape (rows, columns)."""
    inside = (x >= 0) & (y >= 0)
    found = np.bincount(y[inside] * shape[1] + x[inside], minlength=shape[0] * shape[1])
    return found.reshape(shape).astype(np.float64)
