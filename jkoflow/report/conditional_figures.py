"""The figures of a report about coverage, calibration given a context, and what a context does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from jkoflow.report.calibration import Calibration, coverage, distance
from jkoflow.report.column_views import ColumnView
from jkoflow.report.probes import Array, worst_columns
from jkoflow.report.readings import intervals, percent, tell_at, tell_between
from jkoflow.report.style import (
    DATA,
    INK,
    LEGEND,
    MODEL,
    MUTED,
    WIDTH,
    dress_axes,
    dress_panel,
    name_axes,
    new_figure,
    new_panels,
    robust_span,
    shorten,
)
from jkoflow.report.table_figures import name_scale, shown_levels
from jkoflow.report.what_if import MOST_SHOWN, WhatIf

BARS = 10
"""Bars of a PIT histogram."""

LOW, MIDDLE, HIGH = DATA, MUTED, MODEL


def coverage_figure(found: Calibration) -> Figure:
    """Draws how many rows lie in the regions of highest density against how many should, and the difference.

    Arguments:
        found: The places of the rows.

    Returns:
        A figure of two panels, each with a band that chance alone leaves in one case of twenty.
    """
    levels = np.linspace(0, 1, 201)
    held = np.array([coverage(found.regions, level) for level in levels])
    figure = new_figure(WIDTH, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.9))
    for ax, line, middle in ((left, held, levels), (right, held - levels, 0 * levels)):
        low, high = middle - found.margin, middle + found.margin
        ax.fill_between(levels, low, high, color=MUTED, alpha=0.22, lw=0, label="what chance allows")
        ax.plot(levels, middle, color=MUTED, lw=0.9)
        ax.plot(levels, line, color=DATA, lw=1.6, label="test rows")
        dress_axes(ax)
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        name_axes(ax, "share it should hold")
    left.set_ylim(0, 1)
    left.set_title("rows in the region", fontsize=10, color=INK)
    right.set_title("rows in the region, less what it should hold", loc="left", fontsize=10, color=INK)
    reach = 1.2 * max(found.margin, float(np.abs(held - levels).max()))
    right.set_ylim(-reach, reach)
    right.legend(loc="lower right", bbox_to_anchor=(1, 1), **LEGEND)
    shown = slice(5, 200, 5)
    texts = [
        f"region that should hold {percent(level)}\nholds {percent(share)} of the test rows\nchance allows "
        f"{percent(max(level - found.margin, 0))} to {percent(min(level + found.margin, 1))}"
        for level, share in zip(levels[shown], held[shown], strict=True)
    ]
    tell_at(left, "Coverage of regions of highest density", levels[shown], texts)
    tell_at(right, "Coverage less what it should be", levels[shown], texts)
    return figure


def transforms_figure(found: Calibration) -> Figure:
    """Draws the histogram of each column's PIT, which is flat for a calibrated model.

    Arguments:
        found: The places of the rows.

    Returns:
        A grid of panels, each with a band that a bar leaves in one case of twenty and its distance from uniform; of
        more than 24 columns, the 24 that are least uniform.
    """
    names = list(found.transforms)
    distances = np.array([distance(found.transforms[name]) for name in names])
    chosen = worst_columns(distances)
    figure, axes = new_panels(len(chosen))
    edges, count = np.linspace(0, 1, BARS + 1), len(found.regions)
    half = 1.96 * np.sqrt((1 - 1 / BARS) / (count * BARS))
    low, high = max(1 / BARS - half, 0), 1 / BARS + half
    for ax, k in zip(axes, chosen, strict=False):
        shares = np.histogram(found.transforms[names[k]], edges)[0] / count
        ax.axhspan(low, high, color=MUTED, alpha=0.22, lw=0, label="what chance allows a bar")
        ax.stairs(shares, edges, color=DATA, alpha=0.4, fill=True, label="test rows")
        ax.axhline(1 / BARS, color=MUTED, lw=0.9)
        dress_panel(ax, names[k], f"KS {distances[k]:.3f}")
        ax.set_ylim(0, max(1.15 * shares.max(), 1.3 * high))
        ax.set_xticks([0, 0.5, 1])
        texts = [
            f"{line}\ntest rows: {percent(share)}\nchance allows {percent(low)} to {percent(high)}"
            for line, share in zip(intervals(f"PIT of {names[k]}", edges), shares, strict=True)
        ]
        tell_between(ax, f"PIT of {names[k]}", edges, texts)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", **LEGEND)
    return figure


def what_if_figure(answers: Sequence[WhatIf]) -> Figure:
    """Draws what each conditioning variable does to the columns that change most.

    Arguments:
        answers: Samples for the values of conditioning variables.

    Returns:
        A figure with a row for each conditioning variable and a panel for each column.
    """
    effects = np.max([answer.effects for answer in answers], 0)
    chosen = worst_columns(effects, MOST_SHOWN)
    width = min(WIDTH, 2.6 * len(chosen) + 2.2)
    figure = new_figure(width, 1.75 * len(answers) + 0.2, gap=0.08)
    for row, answer in enumerate(answers):
        colours = (LOW, MIDDLE, HIGH) if len(answer.labels) == 3 else (LOW, HIGH)
        for column, k in enumerate(chosen):
            ax = figure.add_subplot(len(answers), len(chosen), row * len(chosen) + column + 1)
            view = answer.views[k]
            draw = _draw_levels if view.form == "levels" else _draw_numbers
            draw(ax, view, answer, colours)
            dress_panel(ax, view.name if row == 0 else "", f"change {answer.effects[k]:.2f}")
            if view.form != "levels":
                name_scale(ax, view)
            if column == 0:
                name_axes(ax, y=f"given {answer.name}")
            if column == len(chosen) - 1:
                ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **{**LEGEND, "ncols": 1})
    return figure


def _edges(view: ColumnView) -> Array:
    """Returns the edges of bins that hold the samples for all values."""
    pooled = np.concatenate([values[np.isfinite(values)] for values in view.numbers])
    pooled = pooled if len(pooled) else np.zeros(1)
    is_log = view.scale == "log" and pooled.min() > 0
    low, high = robust_span(np.log10(pooled) if is_log else pooled)
    if view.lattice is not None and not is_log and (high - low) / view.lattice[1] < 30:
        first, step = view.lattice
        return first + step * (np.arange(np.floor((low - first) / step), np.ceil((high - first) / step) + 1) - 0.5)
    edges = np.linspace(low, high, int(np.clip(2 * len(view.numbers[0]) ** (1 / 3), 10, 30)) + 1)
    return 10**edges if is_log else edges


def _draw_numbers(ax: Axes, view: ColumnView, answer: WhatIf, colours: Sequence[str]) -> None:
    edges = _edges(view)
    lines = intervals(view.name, edges, view.text)
    for values, label, colour in zip(view.numbers, answer.labels, colours, strict=True):
        shares = np.histogram(values, edges)[0] / len(values)
        ax.stairs(shares, edges, color=colour, lw=1.5, label=shorten(label, 18))
        lines = [
            f"{line}\n{answer.name} = {label}: {percent(share)}" for line, share in zip(lines, shares, strict=True)
        ]
    ax.set_xlim(edges[0], edges[-1])
    tell_between(ax, f"{view.name} given {answer.name}", edges, lines)


def _draw_levels(ax: Axes, view: ColumnView, answer: WhatIf, colours: Sequence[str]) -> None:
    names = shown_levels(view, 5)[0]
    places = {name: place for place, name in enumerate(names)}
    cells = np.array([places.get(label, len(names) - 1) for label in view.labels])
    lines = [f"{view.name}: {name}" for name in names]
    width = 0.8 / len(answer.labels)
    for k, (states, label, colour) in enumerate(zip(view.states, answer.labels, colours, strict=True)):
        shares = np.bincount(cells[states], minlength=len(names)) / len(states)
        place = np.arange(len(names)) - 0.4 + (k + 0.5) * width
        ax.bar(place, shares, 0.9 * width, color=colour, alpha=0.75, label=shorten(label, 18))
        lines = [
            f"{line}\n{answer.name} = {label}: {percent(share)}" for line, share in zip(lines, shares, strict=True)
        ]
    ax.set_xticks(np.arange(len(names)), [shorten(name, 8) for name in names], parse_math=False)
    tell_between(ax, f"{view.name} given {answer.name}", np.arange(len(names) + 1) - 0.5, lines)
