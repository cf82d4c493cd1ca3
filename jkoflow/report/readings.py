"""What a figure tells where it is pointed at: transparent boxes over its panels, each with the text of its values.

The boxes lie in an SVG of their own over that of matplotlib. Their texts are SVG titles, which browsers show without a
script; readings.js makes them quicker, and lets the keyboard reach them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from jkoflow.data import require
from jkoflow.report.page import significant

require("matplotlib", "drawing a figure")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

Array = NDArray[Any]
Text = Callable[[float], str]

NARROWEST = 0.05
"""Boxes that are narrower, in points, cannot be pointed at."""

CELLS = 14
"""Boxes along either axis of a panel that shows a map."""


@dataclass(frozen=True)
class Readings:
    """The boxes of one panel."""

    ax: Axes
    name: str
    """What the panel shows, for those who cannot see it."""
    boxes: Array
    """Left, right, bottom and top (n, 4) in the panel's data units; infinite where a box ends with the panel."""
    texts: Sequence[str]


class Drawing(Figure):
    """A figure that tells its values; `jkoflow.report.page.figure` puts the boxes into the page."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.readings: list[Readings] = []


def tell_boxes(ax: Axes, name: str, boxes: Array, texts: Sequence[str]) -> None:
    """Gives a panel of a `Drawing` boxes (n, 4) in its data units, each with its text."""
    drawing = cast(Drawing, ax.get_figure(root=True))
    drawing.readings.append(Readings(ax, name, np.asarray(boxes, np.float64).reshape(-1, 4), list(texts)))


def tell_between(ax: Axes, name: str, edges: Array, texts: Sequence[str], along_y: bool = False) -> None:
    """Gives a panel a box between each two of n + 1 edges, over its whole height; or width, if ``along_y``."""
    low, high = edges[:-1], edges[1:]
    far = np.full(len(low), np.inf)
    boxes = (-far, far, low, high) if along_y else (low, high, -far, far)
    tell_boxes(ax, name, np.stack(boxes, 1), texts)


def tell_at(ax: Axes, name: str, x: Array, texts: Sequence[str]) -> None:
    """Gives a panel a box around each place x (n,) that is not NaN, halfway to its neighbours."""
    x = np.asarray(x, np.float64)
    seen = np.flatnonzero(np.isfinite(x))
    seen = seen[np.argsort(x[seen], kind="stable")]
    if not len(seen):
        return
    seen = seen[np.append(True, np.diff(x[seen]) > 0)]
    middle = (x[seen][1:] + x[seen][:-1]) / 2
    tell_between(ax, name, np.concatenate([[-np.inf], middle, [np.inf]]), [str(texts[k]) for k in seen])


def tell_shares(
    ax: Axes, name: str, edges: Array, sources: Mapping[str, Array], text: Text = significant, more: Sequence[str] = ()
) -> None:
    """Gives a panel with a histogram the share of each source's values in every bin.

    Arguments:
        ax: The panel.
        name: Name of the column.
        edges: Edges of the bins.
        sources: Values by the names of what they are.
        text: Function that returns the text of an edge.
        more: Another line for each bin.
    """
    lines = intervals(name, edges, text)
    for source, values in sources.items():
        shares = np.histogram(values, edges)[0] / max(len(values), 1)
        lines = [f"{line}\n{source}: {percent(share)}" for line, share in zip(lines, shares, strict=True)]
    if more:
        lines = [f"{line}\n{last}" for line, last in zip(lines, more, strict=True)]
    tell_between(ax, name, edges, lines)


def tell_cells(
    axes: Mapping[str, Axes],
    edges: tuple[Array, Array],
    names: tuple[list[str], list[str]],
    values: Mapping[str, Array],
) -> None:
    """Gives panels that share their axes a box for every cell of a map.

    Arguments:
        axes: The panels by the names of what they show.
        edges: Edges of the cells along x (m + 1,) and along y (n + 1,).
        names: Texts of the m places along x and of the n places along y.
        values: Texts of the cells (n, m), by the names of what they are.
    """
    x, y = edges
    n, m = len(y) - 1, len(x) - 1
    boxes = [np.tile(x[:-1], n), np.tile(x[1:], n), np.repeat(y[:-1], m), np.repeat(y[1:], m)]
    texts = [f"{across}\n{up}" for up in names[1] for across in names[0]]
    for what, cells in values.items():
        texts = [f"{text}\n{what}: {value}" for text, value in zip(texts, np.ravel(cells), strict=True)]
    across, up = (part[0].partition(":")[0] for part in names)
    for what, ax in axes.items():
        tell_boxes(ax, f"{what}, {up} against {across}", np.stack(boxes, 1), texts)


def intervals(name: str, edges: Array, text: Text = significant) -> list[str]:
    """Returns the texts of the intervals between edges (n + 1,)."""
    edges = np.asarray(edges, np.float64)
    return [f"{name}: {text(float(a))} to {text(float(b))}" for a, b in itertools.pairwise(edges)]


def row_counts(points: Array, edges: tuple[Array, Array]) -> Array:
    """Returns the texts of how many points (N, 2) lie in the cells between m + 1 and n + 1 edges, with shape (n, m)."""
    counts = np.histogram2d(points[:, 1], points[:, 0], (edges[1], edges[0]))[0]
    return np.array([[f"{int(count):,}" for count in row] for row in counts])


def percent(share: float) -> str:
    """Returns the text of a share."""
    return f"{100 * share:.3g} %"


def overlay(drawing: Figure) -> str:
    """Returns the SVG of a figure's boxes, to lie over the figure, once that has been drawn; nothing without any."""
    if not isinstance(drawing, Drawing) or not drawing.readings:
        return ""
    width, height = (72 * float(side) for side in drawing.get_size_inches())
    panels = "".join(_panel(readings, width, height) for readings in drawing.readings)
    return f'<svg class="readings" viewBox="0 0 {width:g} {height:g}">{panels}</svg>'


def _panel(readings: Readings, width: float, height: float) -> str:
    ax, drawing = readings.ax, cast(Drawing, readings.ax.get_figure(root=True))
    x0, y0, x1, y1 = ax.get_position().extents
    to_figure = ax.transData + drawing.transFigure.inverted()
    corners = []
    for column in ((0, 2), (1, 3)):
        places = readings.boxes[:, column]
        inside = np.where(np.isfinite(places), places, np.array([ax.get_xlim()[0], ax.get_ylim()[0]]))
        found = to_figure.transform(inside)
        found = np.where(np.isfinite(places), found, np.where(places > 0, [x1, y1], [x0, y0]))
        corners.append(np.clip(found, [x0, y0], [x1, y1]) * [width, height])
    low, high = np.minimum(*corners), np.maximum(*corners)
    boxes = []
    for (left, bottom), (right, top), text in zip(low, high, readings.texts, strict=True):
        if min(right - left, top - bottom) > NARROWEST:  # else it lies outside the panel
            place = f'x="{left:.5g}" y="{height - top:.5g}" width="{right - left:.4g}" height="{top - bottom:.4g}"'
            boxes.append(f"<rect {place}><title>{escape(text)}</title></rect>")
    return f'<g role="img" aria-label="{escape(readings.name)}">{"".join(boxes)}</g>' if boxes else ""
