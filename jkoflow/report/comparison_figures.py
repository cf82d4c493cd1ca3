"""The figures that show two runs on the same axes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from jkoflow.report.comparison import Paired
from jkoflow.report.page import number, significant
from jkoflow.report.probes import Array
from jkoflow.report.readings import tell_at, tell_shares
from jkoflow.report.style import (
    DATA,
    FAINT,
    INK,
    LEGEND,
    MODEL,
    MUTED,
    WIDTH,
    bin_edges,
    dress_axes,
    limit_robustly,
    name_axes,
    new_figure,
    robust_span,
    shorten,
)


def curves_figure(curves: Mapping[str, tuple[Array, Array, list[str]]]) -> Figure:
    """Draws validation NLLs over the seconds of the training.

    Arguments:
        curves: Seconds, values and texts of the places of each run, by its name; see
            `jkoflow.report.comparison.validation_curve`.
    """
    figure = new_figure(WIDTH, 3.6)
    ax = figure.subplots()
    x, texts = [], []
    for (name, (seconds, values, places)), colour in zip(curves.items(), (DATA, MODEL), strict=True):
        size = 2.2 if len(seconds) <= 120 else 0
        ax.plot(seconds, values, color=colour, lw=1.4, marker="o", ms=size, label=shorten(name, 40))
        x += seconds.tolist()
        texts += [
            f"{name}, {significant(at)} s\n{place}\nvalidation NLL {number(value, 4)}"
            for at, value, place in zip(seconds.tolist(), values.tolist(), places, strict=True)
        ]
    limit_robustly(ax, [values for _, values, _ in curves.values()])
    dress_axes(ax)
    ax.grid(axis="y", color=FAINT, lw=0.5)
    ax.set_xlim(left=0)
    name_axes(ax, "seconds of training", "validation NLL, nats")
    figure.legend(loc="outside upper right", **LEGEND)
    tell_at(ax, "Validation NLL of both runs over seconds", np.array(x), texts)
    return figure


def differences_figure(found: Paired) -> Figure:
    """Draws the histogram of the rows' differences, with their mean and 0.

    Arguments:
        found: The differences.
    """
    figure = new_figure(WIDTH, 2.9)
    ax = figure.subplots()
    edges = bin_edges(*robust_span(found.differences), len(found.differences))
    shares = np.histogram(found.differences, edges)[0] / len(found.differences)
    ax.stairs(shares, edges, color=DATA, alpha=0.4, fill=True, label="common test rows")
    ax.axvline(0, color=MUTED, lw=1.0)
    ax.axvline(found.mean, color=INK, lw=1.6, label="mean")
    dress_axes(ax)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    name_axes(ax, "difference, nats")
    figure.legend(loc="outside upper right", **LEGEND)
    tell_shares(ax, "difference in nats", edges, {"common test rows": found.differences})
    return figure
