"""The common style of all figures: palette, layout and the look of panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from jkoflow.data import require
from jkoflow.report.probes import Array

require("matplotlib", "drawing a figure")

from matplotlib.axes import Axes  # noqa: E402

from jkoflow.report.readings import Drawing  # noqa: E402

INK, MUTED, FAINT = "#1f2329", "#69737d", "#d3d9df"
DATA, MODEL, GUARD = "#2b7bd4", "#e0761c", "#d1242f"
TILE, DATA_DOT, MODEL_DOT, MAP = "#000004", "#74b9f7", "#f9a65a", "magma"  # panels stay dark in both themes
WIDTH = 11.8
"""Width of a full figure in inches."""
LEGEND: dict[str, Any] = {"ncols": 3, "fontsize": 8.5, "frameon": False, "labelcolor": INK, "borderaxespad": 0.2}


def new_figure(width: float, height: float, gap: float = 0.015) -> Drawing:
    """Makes an empty figure of a size in inches; ``gap`` is the space between panels as a fraction of their size."""
    figure = Drawing(figsize=(width, height), layout="constrained", facecolor="none")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=gap, hspace=gap / 2)  # type: ignore[union-attr]
    return figure


def new_panels(count: int) -> tuple[Drawing, list[Axes]]:
    """Makes a balanced grid of small panels, at most six in a row."""
    lines = -(-count // 6)
    columns = -(-count // lines)
    figure = new_figure(min(WIDTH, 4.2 * columns), 1.62 * lines + 0.35 if columns > 3 else 2.6, gap=0.1)
    axes = [figure.add_subplot(lines, columns, i + 1) for i in range(count)]
    return figure, axes


def name_axes(ax: Axes, x: str = "", y: str = "", size: float = 9) -> None:
    """Labels the axes with names from the data, which are not read as mathematics."""
    ax.set_xlabel(shorten(x, 28), fontsize=size, color=MUTED, labelpad=2, parse_math=False)
    ax.set_ylabel(shorten(y, 28), fontsize=size, color=MUTED, labelpad=2, parse_math=False)


def shorten(name: str, length: int) -> str:
    """Returns a name cut to a length at which it does not run into its neighbour."""
    return name if len(name) <= length else name[: length - 1] + "…"


def robust_span(values: Array) -> tuple[float, float]:
    """Returns a robust range of the values, a little widened."""
    low, high = (float(v) for v in np.quantile(values, (0.003, 0.997)))
    pad = 0.06 * (high - low) or max(abs(high), 1.0) * 1e-3
    return low - pad, high + pad


def bin_edges(low: float, high: float, count: int) -> Array:
    """Returns the edges of equal bins, as many as suit a histogram of ``count`` values."""
    return np.linspace(low, high, int(np.clip(3 * max(count, 1) ** (1 / 3), 12, 50)) + 1)


def dress_tile(ax: Axes, x: tuple[float, float], y: tuple[float, float], ticks: bool = False) -> None:
    """Styles a dark square panel with the given limits."""
    ax.set(xlim=x, ylim=y, facecolor=TILE, box_aspect=1)
    ax.spines[:].set_visible(False)
    ax.tick_params(labelsize=8, labelcolor=MUTED, color=FAINT, length=3)
    if ticks:
        ax.locator_params(nbins=5)
    else:
        ax.set(xticks=[], yticks=[])


def dress_axes(ax: Axes) -> None:
    """Styles a panel of lines or bars."""
    ax.set_facecolor("none")
    ax.tick_params(labelsize=8, labelcolor=MUTED, color=FAINT, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)


def dress_panel(ax: Axes, name: str, note: str) -> None:
    """Styles a small histogram panel: name and note above, no vertical axis."""
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(FAINT)
    ax.set(yticks=[], facecolor="none")
    ax.set_ylim(bottom=0)
    ax.tick_params(labelsize=7.5, labelcolor=MUTED, color=FAINT, length=2)
    ax.locator_params(axis="x", nbins=4)
    ax.margins(x=0)
    ax.set_title(shorten(name, 18), loc="left", fontsize=9, color=INK, pad=3, parse_math=False)
    ax.set_title(note, loc="right", fontsize=7.5, color=MUTED, pad=3)


def draw_dots(ax: Axes, points: Array, colour: str, size: float = 1.6) -> None:
    """Draws points (n, 2), the fainter the more there are."""
    alpha = float(np.clip(2400 / max(len(points), 1), 0.45, 0.9))
    ax.scatter(points[:, 0], points[:, 1], s=size, c=colour, alpha=alpha, lw=0, rasterized=True)


def draw_map(ax: Axes, values: Array, extent: tuple[float, ...], norm: Any, smoothing: str = "bicubic") -> Any:
    """Draws values (rows, columns) over the extent (left, right, bottom, top)."""
    return ax.imshow(
        values,
        MAP,
        norm,
        origin="lower",
        extent=cast(Any, extent),
        aspect="auto",
        interpolation=smoothing,
        rasterized=True,
    )


def draw_filled(ax: Axes, values: Array, edges: Array, label: str = "test data") -> None:
    """Draws a filled histogram, of data."""
    ax.stairs(_heights(values, edges), edges, color=DATA, alpha=0.4, label=label, fill=True)


def draw_outline(ax: Axes, values: Array, edges: Array, label: str = "samples") -> None:
    """Draws the outline of a histogram, of samples, over that of data."""
    ax.stairs(_heights(values, edges), edges, color=MODEL, lw=1.2, label=label)


def _heights(values: Array, edges: Array) -> Array:
    """Returns the densities of a histogram of the values between the edges; 0 if there is none between them."""
    counts = np.histogram(values, edges)[0]
    return counts / max(int(counts.sum()), 1) / np.diff(edges)


def limit_robustly(ax: Axes, values: Sequence[Array]) -> None:
    """Sets the vertical limits so that a single spike does not flatten the rest."""
    joined = np.concatenate([np.asarray(v, dtype=float) for v in values])
    joined = joined[np.isfinite(joined)]
    if len(joined):
        low, high = (float(v) for v in np.quantile(joined, (0.01, 0.97)))
        pad = 0.12 * (high - low) or 0.5
        ax.set_ylim(min(low, float(np.quantile(joined, 0.005))) - pad, high + pad)
