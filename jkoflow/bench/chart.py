"""The figures of a record as a bar chart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jkoflow.bench.peers import OURS
from jkoflow.bench.shapes import DIRECTIONS, Direction, Shape
from jkoflow.bench.table import TITLES, number, references
from jkoflow.data import require

COLOURS: dict[Direction, str] = {"forward": "#9cc3ea", "forward+backward": "#2b7bd4"}
OUR_COLOURS: dict[Direction, str] = {"forward": "#f4b98a", "forward+backward": "#e0761c"}


def has_figures(record: Mapping[str, Any]) -> bool:
    """Tells whether a record has figures to draw."""
    return any(_bars(entry) for entry in record["shapes"])


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draws one panel per shape with figures: the times of each peer as multiples of ours.

    Arguments:
        record: The record that `jkoflow.bench.measure.measure` returned.
        path: PNG file to write.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        ValueError: If the record has no figures.
    """
    figure_module: Any = require("matplotlib.figure", "the bar chart", "bench")
    if not has_figures(record):
        raise ValueError("the record must have figures to draw, got none; run jkoflow bench with more --seconds")
    entries = [entry for entry in record["shapes"] if _bars(entry)]
    ours = references(record)
    columns = min(3, len(entries))
    lines = -(-len(entries) // columns)
    bars = max(len(_bars(entry)) for entry in entries)
    figure = figure_module.Figure(
        figsize=(5.2 * columns, (0.32 * bars + 0.9) * lines + 0.5), layout="constrained", dpi=110
    )
    for index, entry in enumerate(entries):
        _panel(figure.add_subplot(lines, columns, index + 1), entry)
    from matplotlib.patches import Patch

    whom = ", ".join(f"{ours[direction]} {TITLES[direction]}" for direction in DIRECTIONS)
    figure.legend(
        handles=[Patch(color=COLOURS[direction], label=TITLES[direction]) for direction in DIRECTIONS],
        loc="outside upper center",
        ncols=2,
        frameon=False,
        title=f"Times as multiples of ours ({whom}); shorter is faster",
    )
    figure.savefig(path)


def _bars(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [result for result in entry["peers"] if any("of_ours" in result.get(d, {}) for d in DIRECTIONS)]


def _panel(ax: Any, entry: Mapping[str, Any]) -> None:
    results = _bars(entry)
    for place, result in enumerate(results):
        colours = OUR_COLOURS if result["peer"].startswith(OURS) else COLOURS
        for offset, direction in zip((-0.2, 0.2), DIRECTIONS, strict=True):
            figures = result.get(direction, {})
            if "of_ours" in figures:
                ax.barh(place + offset, figures["of_ours"], 0.38, color=colours[direction])
                text = f" {number(figures['of_ours'])} ({number(figures['ms'])} ms)"
                ax.text(figures["of_ours"], place + offset, text, va="center", fontsize=6.5)
    ax.set_title(Shape(**entry["shape"]).text, fontsize=9.5)
    ax.set_yticks(range(len(results)), [result["peer"] for result in results], fontsize=7.5)
    ax.invert_yaxis()
    ax.set_xscale("log")
    largest = max(r[d]["of_ours"] for r in results for d in DIRECTIONS if "of_ours" in r.get(d, {}))
    smallest = min(r[d]["of_ours"] for r in results for d in DIRECTIONS if "of_ours" in r.get(d, {}))
    ax.set_xlim(min(0.25, smallest / 2), 6 * largest)
    ax.axvline(1, color="#69737d", linewidth=0.8)
    ax.tick_params(axis="x", labelsize=7.5)
    ax.spines[["top", "right"]].set_visible(False)
