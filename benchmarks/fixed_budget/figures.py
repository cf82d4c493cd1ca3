"""The curves of a comparison: validation NLL against seconds and against batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from fixed_budget.table import NAMES, by_method, by_problem
from jkoflow.report.style import FAINT, INK, MUTED, WIDTH, dress_axes, new_figure

COLOURS = {
    "jkoflow": "#e0761c", "end_to_end": "#8a4b08", "ffjord": "#2b7bd4", "ot_flow": "#1b8a5a", "maf": "#7b5bb8",
    "nsf": "#69737d", "flow_matching": "#c2185b", "local_flow_matching": "#0f9fb5",
    "sospf": "#a8a13a",
}  # fmt: skip
COLUMNS = 3


def curves(record: Mapping[str, Any], against: Literal["seconds", "batches"]) -> Figure:
    """Draws a panel for every data set at every budget, and a line for every run; seeds share a colour."""
    panels = list(by_problem(record))
    lines = -(-len(panels) // COLUMNS)
    figure = new_figure(WIDTH, 2.9 * lines + 0.4, gap=0.06)
    figure.set_facecolor("white")
    for place, (title, runs) in enumerate(panels):
        ax = figure.add_subplot(lines, COLUMNS, place + 1)
        for method, group in by_method(runs):
            for run in group:
                points = np.array([point for point in run["curve"] if point[2] is not None], dtype=float)
                if len(points):
                    x = np.maximum(points[:, 0], 0.1) if against == "seconds" else np.maximum(points[:, 1], 1)
                    ours = method == "jkoflow"
                    ax.plot(x, points[:, 2], color=COLOURS[method], lw=1.6 if ours else 1.1, zorder=3 if ours else 2)
        dress_axes(ax)
        ax.grid(axis="y", color=FAINT, lw=0.5)
        ax.set_title(title, loc="left", fontsize=9.5, color=INK, parse_math=False)
        if against == "batches":
            ax.set_xscale("log")
        ax.set_xlabel(against, fontsize=8.5, color=MUTED)
        ax.set_ylabel("validation NLL, nats", fontsize=8.5, color=MUTED)
        ax.set_ylim(*_limits(runs))
    present = [method for method, _ in by_method(record["runs"])]
    handles = [figure.axes[0].plot([], [], color=COLOURS[method], lw=2, label=NAMES[method])[0] for method in present]
    figure.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=8.5, frameon=False, labelcolor=INK)
    return figure


def _limits(runs: list[Mapping[str, Any]]) -> tuple[float, float]:
    """Returns the limits of the vertical axis: from the best NLL to the end of the worst method, with a margin.

    The first values of a curve are left out, since they would flatten all others.
    """
    nlls = [[point[2] for point in run["curve"] if point[2] is not None] for run in runs]
    nlls = [values for values in nlls if values]
    if not nlls:
        return 0.0, 1.0
    low, high = min(map(min, nlls)), max(min(values) for values in nlls)
    start = max(values[0] for values in nlls)
    pad = 0.08 * (high - low) or 0.1
    return low - pad, max(high + 0.35 * (start - high) if start > high else high, high + pad)
