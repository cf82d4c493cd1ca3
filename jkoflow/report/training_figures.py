"""The figures of a report about the training, as matplotlib `Figure` objects: losses, movements and rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jkoflow.report.page import number
from jkoflow.report.probes import (
    Array,
    Records,
    fine_tuning_rounds,
    or_nan,
    place_of,
    running_quantiles,
    timeline,
)
from jkoflow.report.readings import tell_at, tell_between
from jkoflow.report.style import (
    DATA,
    FAINT,
    GUARD,
    INK,
    LEGEND,
    MODEL,
    MUTED,
    WIDTH,
    dress_axes,
    limit_robustly,
    new_figure,
)


def training_figure(history: Records) -> Figure:
    """Draws validation NLL, the terms of the loss and the movement penalty over the iterations of all blocks.

    Arguments:
        history: The records of history.jsonl.

    Returns:
        A figure of three panels; a line is a running median, its band holds 80 % of the recorded iterations. Thin
        vertical lines separate blocks, thick ones rounds; "all" is the round that trains all blocks at once. Red
        triangles mark the guard's interventions.
    """
    offsets, total = timeline(history)
    together = fine_tuning_rounds(history)
    figure = new_figure(WIDTH, 6.2)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(1.15, 1.25, 0.8))
    validation = [r for r in history if r.get("event") == "validation"]
    if validation:
        size = 2.2 if len(validation) <= 120 else 0
        for place, start in offsets.items():
            records = [r for r in validation if place_of(r) == place]
            y = [or_nan(r.get("nll")) for r in records]
            top.plot([start + r["iteration"] for r in records], y, color=INK, lw=1.3, marker="o", ms=size)
        limit_robustly(top, [np.array([or_nan(r.get("nll")) for r in validation])])
        x = np.array([offsets[place_of(r)] + r["iteration"] for r in validation])
        texts = [f"{_place(r, together)}\nvalidation NLL {number(r.get('nll'), 4)}" for r in validation]
        tell_at(top, "Validation NLL over iterations", x, texts)
    guards = [r for r in history if r.get("event") == "guard"]
    if guards:
        x = [offsets[place_of(r)] + r["iteration"] for r in guards]
        top.plot(x, np.full(len(x), 0.93), "v", ms=6, color=GUARD, transform=top.get_xaxis_transform(), label="guard")
        top.legend(loc="lower right", bbox_to_anchor=(1, 1), **LEGEND)
    drawn: dict[str, list[Array]] = {"middle": [], "bottom": []}
    lines: dict[str, list[tuple[Array, list[str]]]] = {"middle": [], "bottom": []}
    for ax, row, name, colour in (
        (middle, "middle", "potential", DATA),
        (middle, "middle", "divergence", MODEL),
        (middle, "middle", "loss", INK),
        (bottom, "bottom", "movement", DATA),
    ):
        x, low, median, high = running_quantiles(history, name, offsets, total)
        ax.fill_between(x, low, high, color=colour, alpha=0.16, lw=0)
        ax.plot(x, median, color=colour, lw=1.3, label=name)
        drawn[row] += [low, high]
        lines[row].append((x, _lines(name, x, low, median, high)))
    for ax, row in ((middle, "middle"), (bottom, "bottom")):
        names = "Terms of the loss" if row == "middle" else "Movement penalty"
        tell_at(ax, f"{names} over iterations", *_joined(lines[row]))
    limit_robustly(middle, drawn["middle"])
    limit_robustly(bottom, drawn["bottom"])
    bottom.set_ylim(bottom=0)
    middle.legend(loc="lower right", bbox_to_anchor=(1, 1), **LEGEND)
    for ax, label in (
        (top, "validation NLL\nnats"),
        (middle, "terms of the loss\nnats"),
        (bottom, "movement penalty\nnats"),
    ):
        dress_axes(ax)
        ax.grid(axis="y", color=FAINT, lw=0.5)
        ax.set_ylabel(label, fontsize=8.5, color=MUTED)
        for (round_, block), start in offsets.items():
            begins = block == 0 and round_ > 0
            ax.axvline(start, color=MUTED if begins else FAINT, lw=1.4 if begins else 0.8, zorder=0)
            if ax is top and len(offsets) <= 40:
                name = " all" if round_ in together else f" {block + 1}"
                ax.text(start, 1.02, name, transform=ax.get_xaxis_transform(), fontsize=8, color=MUTED)
    top.text(-0.012, 1.02, "block", transform=top.transAxes, fontsize=8, color=MUTED, ha="right")
    bottom.set_xlim(0, max(total, 1))
    bottom.set_xlabel("iteration", fontsize=9, color=MUTED)
    figure.align_ylabels()
    return figure


def _place(record: Mapping[str, Any], together: set[int]) -> str:
    """Returns the text of a record's place in the training."""
    round_, block = place_of(record)
    where = "all blocks" if round_ in together else f"block {block + 1}"
    return f"round {round_ + 1}, {where}, iteration {record['iteration']:,}"


def _lines(name: str, x: Array, low: Array, median: Array, high: Array) -> list[str]:
    """Returns the text of a term at every abscissa."""
    return [
        f"{name} {number(b, 4)} ({number(a, 4)} to {number(c, 4)})"
        for _, a, b, c in zip(x, low.tolist(), median.tolist(), high.tolist(), strict=True)
    ]


def _joined(terms: Sequence[tuple[Array, list[str]]]) -> tuple[Array, list[str]]:
    """Returns the abscissae of terms and the texts of all of them that are known there."""
    found: dict[float, list[str]] = {}
    for x, lines in terms:
        for at, line in zip(x.tolist(), lines, strict=True):
            if math.isfinite(at):
                found.setdefault(at, [f"about iteration {at:,.0f}"]).append(line)
    return np.array(list(found)), ["\n".join(lines) for lines in found.values()]


def blocks_figure(movements: Sequence[float], jko_steps: Sequence[float]) -> Figure:
    """Draws the movement (arc length) and the JKO step size of every block as bars.

    Arguments:
        movements: Movement of each block in standardised units.
        jko_steps: JKO step size of each block; ``inf`` marks a free block.

    Returns:
        A figure of two panels.
    """
    figure = new_figure(WIDTH, 2.5)
    left, right = figure.subplots(1, 2)
    blocks = np.arange(1, len(movements) + 1)
    left.bar(blocks, movements, color=DATA, width=0.62)
    edges = np.arange(len(movements) + 1) + 0.5
    texts = [f"block {k + 1}\nmovement {number(s)}" for k, s in enumerate(movements)]
    tell_between(left, "Movement of each block", edges, texts)
    texts = [f"block {k + 1}\nstep size {_step(h)}" for k, h in enumerate(jko_steps)]
    tell_between(right, "JKO step size of each block", edges, texts)
    finite = [h for h in jko_steps if math.isfinite(h)]
    right.bar(
        np.arange(1, len(jko_steps) + 1), [h if math.isfinite(h) else 0 for h in jko_steps], color=MODEL, width=0.62
    )
    for k, h in enumerate(jko_steps):
        if not math.isfinite(h):
            right.text(k + 1, 0.03 * max(finite, default=1.0), "free", ha="center", fontsize=8, color=MUTED)
    right.set_ylim(0, 1.1 * max(finite, default=1.0))
    for ax, title in ((left, "movement of each block, standardised units"), (right, "JKO step size h of each block")):
        dress_axes(ax)
        ax.grid(axis="y", color=FAINT, lw=0.5)
        ax.set_axisbelow(True)
        ax.set_title(title, fontsize=10, color=INK)
        ax.set_xlabel("block", fontsize=9, color=MUTED)
        ax.set_xlim(0.4, max(len(jko_steps), 1) + 0.6)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _step(jko_step: float | None) -> str:
    return number(jko_step) if jko_step is not None and math.isfinite(jko_step) else "∞ (free)"


def rounds_figure(rounds: Records) -> Figure:
    """Draws the movement and the JKO step size of every block, round by round.

    Arguments:
        rounds: The records of the rounds, from metrics.json; of more than six, the first and the last five.

    Returns:
        A figure with a column per round: movements above, JKO step sizes below; free blocks have none.
    """
    shown = list(rounds) if len(rounds) <= 6 else [rounds[0], *rounds[-5:]]
    figure = new_figure(WIDTH, 3.7, gap=0.06)
    axes = figure.subplots(2, len(shown), sharey="row", squeeze=False)
    for column, record in enumerate(shown):
        blocks = np.arange(1, int(record["blocks"]) + 1)
        axes[0, column].bar(blocks, [or_nan(s) for s in record["movements"]], color=DATA, width=0.62)
        axes[1, column].bar(blocks, [or_nan(h) for h in record["step_sizes"]], color=MODEL, width=0.62)
        name = f"{int(record['round']) + 1}: {record['kind']}" + ("" if record["kept"] else " (undone)")
        axes[0, column].set_title(name, fontsize=9, color=INK)
        edges = np.arange(len(blocks) + 1) + 0.5
        for row, key, what, said in ((0, "movements", "movement", number), (1, "step_sizes", "step size", _step)):
            texts = [f"block {k}\n{what} {said(value)}" for k, value in zip(blocks, record[key], strict=True)]
            tell_between(axes[row, column], f"Round {name}, {what} of each block", edges, texts)
        axes[1, column].set_xlabel("block", fontsize=9, color=MUTED)
        for block, jko_step in zip(blocks, record["step_sizes"], strict=True):
            if jko_step is None:
                axes[1, column].text(block, 0, "free", ha="center", va="bottom", fontsize=8, color=MUTED)
        for ax in axes[:, column]:
            dress_axes(ax)
            ax.set_xlim(0.4, len(blocks) + 0.6)
            ax.grid(axis="y", color=FAINT, lw=0.5)
            ax.set_axisbelow(True)
            ax.xaxis.get_major_locator().set_params(integer=True)
    for ax, label in ((axes[0, 0], "movement"), (axes[1, 0], "step size h")):
        ax.set_ylabel(label, fontsize=8.5, color=MUTED)
    return figure
