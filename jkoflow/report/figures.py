"""The figures of a report as matplotlib `Figure` objects, without pyplot, global state or display.

Tensors and arrays of points have shape (n, d). Dense panels are rasterised inside the vector image. All colours but
those of density maps come from the palette of `style`; the report exchanges them for the colours of the reader's theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from jkoflow.flow import JKOFlow
from jkoflow.ops.grid import Fixed, finest
from jkoflow.report.page import number
from jkoflow.report.probes import (
    MAX_COLUMNS,
    MAX_POINTS,
    WORK,
    Array,
    chosen_stages,
    data_log_density,
    evaluation_grids,
    flow_samples,
    flow_stages,
    grid_points,
    ks_distance,
    noise_like,
    point_work,
    shown_contexts,
    stage_log_density,
    stage_names,
    to_array,
    worst_columns,
)
from jkoflow.report.readings import CELLS, intervals, percent, row_counts, tell_at, tell_cells, tell_shares
from jkoflow.report.style import (
    DATA,
    DATA_DOT,
    FAINT,
    INK,
    LEGEND,
    MODEL,
    MODEL_DOT,
    MUTED,
    WIDTH,
    bin_edges,
    draw_dots,
    draw_filled,
    draw_map,
    draw_outline,
    dress_axes,
    dress_panel,
    dress_tile,
    name_axes,
    new_figure,
    new_panels,
    robust_span,
)


def stages_figure(
    flow: JKOFlow, data: Tensor, *, max_stages: int = 8, seed: int = 0, context: Tensor | None = None
) -> Figure:
    r"""Draws a two-dimensional flow stage by stage: data to noise, noise to data, and the density of each stage.

    The density before block k+1 is :math:`p_k(x) = N(z) \prod_{j>k} |\det J_j|`, with z the image of x under the
    blocks that remain.

    Arguments:
        flow: A flow of dimension 2.
        data: Points in the data's own units, with shape (n, 2).
        max_stages: Largest number of columns of the figure; of more stages, evenly spaced ones are drawn.
        seed: Seed of the noise that is carried back.
        context: Conditioning variables of the points, with shape (n, c); the densities are averaged over a few of them.

    Returns:
        A figure of three rows; axes are those of the standardised data, shared by all panels.

    Raises:
        ValueError: If the flow is not two-dimensional.

    References:
        | Normalizing flow neural networks by JKO scheme, Figure 1 (Xu et al., 2022)
        | https://arxiv.org/abs/2212.14424

    Example:
        >>> flow = jkoflow.JKOFlow(2, [jkoflow.Block(jkoflow.MLPVelocity(2))])
        >>> figure = stages_figure(flow, torch.randn(100, 2))
        >>> [ax.get_title() for ax in figure.axes if ax.get_title()]
        ['data', 'noise']
    """
    _require_dim(flow, 2)
    stages = chosen_stages(len(flow.blocks), max_stages)
    grids = evaluation_grids(flow)
    pushed = flow_stages(flow, data, stages, context=context)
    carried = flow_stages(flow, noise_like(flow, MAX_POINTS, seed), stages, inverse=True, context=context)
    limit = float(np.clip(np.quantile(np.abs(pushed[0]), 0.998) * 1.08, 3.2, 6.0))
    # Half the steps of a reported NLL: the difference cannot be seen in an image.
    coarser = [finest((grid.split(2), Fixed(2))) for grid in grids]
    conditions = len(shown_contexts(flow, context))
    work = conditions * sum(point_work(flow, coarser, stage) for stage in stages)
    side = int(np.clip(math.sqrt(1.5 * WORK / max(work, 1)), 48, 104))
    points = grid_points(flow, (-limit, limit), (-limit, limit), side)

    size = min(2.25, (WIDTH - 0.5) / len(stages))
    figure = new_figure(len(stages) * size + 0.5, 3 * size + 0.35)
    for column, stage in enumerate(stages):
        title = "data" if stage == 0 else "noise" if stage == len(flow.blocks) else f"block {stage}"
        axes = [figure.add_subplot(3, len(stages), row * len(stages) + column + 1) for row in range(3)]
        axes[0].set_title(title, fontsize=9, color=INK, pad=4)
        draw_dots(axes[0], pushed[column], DATA_DOT)
        draw_dots(axes[1], carried[column], MODEL_DOT)
        density = np.exp(stage_log_density(flow, stage, points, coarser, context)).reshape(side, side)
        top = max(float(np.quantile(density, 0.998)), 1e-30)
        draw_map(axes[2], density, (-limit, limit, -limit, limit), PowerNorm(0.8, 0, top))
        for row, ax in enumerate(axes):
            dress_tile(ax, (-limit, limit), (-limit, limit))
            if column == 0:
                ax.set_ylabel(("data → noise", "noise → data", "density")[row], fontsize=9, color=INK)
    return figure


def density_figure(
    flow: JKOFlow,
    data: Tensor,
    features: Sequence[str] = ("x", "y"),
    *,
    seed: int = 0,
    context: Tensor | None = None,
) -> Figure:
    """Draws data, as many samples, and the log-density of a two-dimensional flow side by side, in the data's units.

    Arguments:
        flow: A flow of dimension 2.
        data: Points in the data's own units, with shape (n, 2).
        features: Names of the two columns.
        seed: Seed of the samples.
        context: Conditioning variables of the points, with shape (n, c); the density is averaged over a few of them.

    Returns:
        A figure of three panels that share their axes.

    Raises:
        ValueError: If the flow is not two-dimensional.
    """
    _require_dim(flow, 2)
    samples = flow_samples(flow, min(data.shape[0], MAX_POINTS), seed, context)
    rows = data[: samples.shape[0]]
    low, high = np.quantile(to_array(rows), (0.002, 0.998), axis=0)
    middle, half = (low + high) / 2, (high - low) / 2 * 1.2
    if half.max() < 2.5 * half.min():
        half[:] = half.max()
    (x0, x1), (y0, y1) = ((float(m - h), float(m + h)) for m, h in zip(middle, half, strict=True))
    work = len(shown_contexts(flow, context)) * point_work(flow, evaluation_grids(flow))
    side = int(np.clip(math.sqrt(WORK / max(work, 1)), 72, 220))
    log_density = data_log_density(flow, grid_points(flow, (x0, x1), (y0, y1), side), context).reshape(side, side)

    figure = new_figure(WIDTH, 4.1)
    left, centre, right = (figure.add_subplot(1, 3, i + 1) for i in range(3))
    draw_dots(left, to_array(rows), DATA_DOT, size=3.0)
    draw_dots(centre, to_array(samples), MODEL_DOT, size=3.0)
    top = float(np.quantile(log_density, 0.999))
    image = draw_map(right, np.maximum(log_density, top - 8), (x0, x1, y0, y1), None)
    edges = np.linspace(x0, x1, CELLS + 1), np.linspace(y0, y1, CELLS + 1)
    centres = ((np.arange(CELLS) + 0.5) * side / CELLS).astype(int)
    told = {name: row_counts(to_array(points), edges) for name, points in (("test rows", rows), ("samples", samples))}
    told["log-density in the middle"] = np.vectorize(lambda v: number(float(v), 2))(
        log_density[np.ix_(centres, centres)]
    )
    panels = {"test data": left, "samples": centre, "log-density": right}
    tell_cells(panels, edges, (intervals(features[0], edges[0]), intervals(features[1], edges[1])), told)
    for ax, title in ((left, "test data"), (centre, "samples"), (right, "log-density")):
        dress_tile(ax, (x0, x1), (y0, y1), ticks=True)
        ax.set_title(title, fontsize=10, color=INK, pad=5)
        name_axes(ax, features[0], features[1] if ax is left else "")
        if ax is not left:
            ax.tick_params(labelleft=False)
    bar = figure.colorbar(image, cax=right.inset_axes((1.03, 0, 0.035, 1)))
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, labelcolor=MUTED, color=FAINT, length=2)
    bar.set_label("nats, cut 8 below the top", fontsize=8, color=MUTED)
    return figure


def curve_figure(
    flow: JKOFlow, data: Tensor, feature: str = "x", *, seed: int = 0, context: Tensor | None = None
) -> Figure:
    """Draws the density of a one-dimensional flow over the histogram of the data, and how quantiles reach the noise.

    Arguments:
        flow: A flow of dimension 1.
        data: Points in the data's own units, with shape (n, 1).
        feature: Name of the column.
        seed: Seed of the samples.
        context: Conditioning variables of the points, with shape (n, c); the density is averaged over a few of them,
            the paths are those of the points closest to the quantiles.

    Returns:
        A figure of two panels.

    Raises:
        ValueError: If the flow is not one-dimensional.
    """
    _require_dim(flow, 1)
    values = to_array(data)[:, 0]
    samples = to_array(flow_samples(flow, MAX_POINTS, seed, context))[:, 0]
    low, high = robust_span(values)
    grid = torch.linspace(low, high, 600, dtype=flow.standardize.mean.dtype)[:, None]
    density = np.exp(data_log_density(flow, grid, context))
    # whole rows, so that each keeps its context
    rows = data[:, 0].argsort()[torch.linspace(0.01 * (len(data) - 1), 0.99 * (len(data) - 1), 33).long()]
    with torch.no_grad():
        conditions = None if context is None else context[rows].to(grid)
        paths = to_array(flow.trajectory(data[rows].to(grid), conditions).x[:, :, 0])

    figure = new_figure(WIDTH, 3.9)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    edges = bin_edges(low, high, len(values))
    draw_filled(left, values, edges)
    draw_outline(left, samples, edges)
    left.plot(to_array(grid)[:, 0], density, color=INK, lw=1.6, label="density of the flow")
    at = np.exp(np.interp((edges[1:] + edges[:-1]) / 2, to_array(grid)[:, 0], np.log(np.maximum(density, 1e-300))))
    told = [f"density of the flow in the middle: {number(float(value))}" for value in at]
    tell_shares(left, feature, edges, {"test data": values, "samples": samples}, more=told)
    left.set_xlim(low, high)
    left.set_ylim(bottom=0)
    name_axes(left, feature)
    left.set_title("density", fontsize=10, color=INK)
    left.legend(**{**LEGEND, "ncols": 1})
    stage = np.arange(paths.shape[0])
    right.plot(stage, paths, color=DATA, lw=0.9, alpha=0.75)
    told = [
        f"{'data' if k == 0 else 'noise' if k == len(paths) - 1 else f'after block {k}'}\n1 % quantile: "
        f"{number(row[0])}\nmedian: {number(row[16])}\n99 % quantile: {number(row[-1])}"
        for k, row in enumerate(paths.tolist())
    ]
    tell_at(right, f"Quantiles of {feature}, stage by stage", stage, told)
    right.set_xticks(stage, stage_names(paths.shape[0]))
    right.set_title("quantiles of the data on their way to the noise", fontsize=10, color=INK)
    name_axes(right, y="standardised")
    for ax in (left, right):
        dress_axes(ax)
    return figure


def marginals_figure(data: Tensor, samples: Tensor, features: Sequence[str]) -> Figure:
    """Draws the histogram of every column of the data against that of the samples.

    Arguments:
        data: Points in their own units, with shape (n, d).
        samples: Samples in the same units, with shape (m, d).
        features: Names of the d columns.

    Returns:
        A grid of panels clipped to robust quantiles of the data, each with its Kolmogorov-Smirnov distance; of more
        than 24 columns, the 24 that fit worst.
    """
    rows, drawn = to_array(data), to_array(samples)
    distances = np.array([ks_distance(rows[:, i], drawn[:, i]) for i in range(rows.shape[1])])
    chosen = worst_columns(distances)
    figure, axes = new_panels(len(chosen))
    for ax, i in zip(axes, chosen, strict=False):
        edges = bin_edges(*robust_span(rows[:, i]), min(len(rows), len(drawn)))
        draw_filled(ax, rows[:, i], edges)
        draw_outline(ax, drawn[:, i], edges)
        dress_panel(ax, features[i], f"KS {distances[i]:.3f}")
        tell_shares(ax, features[i], edges, {"test data": rows[:, i], "samples": drawn[:, i]})
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", **LEGEND)
    return figure


def noise_figure(z: Tensor, features: Sequence[str] | None = None) -> Figure:
    """Draws the columns of z against the standard Gaussian, and the norms of z against the chi distribution.

    Arguments:
        z: Data carried to the noise side, with shape (n, d).
        features: Names of the d columns; z1, z2, ... if None.

    Returns:
        A grid of panels as in `marginals_figure`; the last panel holds the norms, which show dependence between columns
        that the other panels cannot show.
    """
    rows = to_array(z)
    dim = rows.shape[1]
    sorted_rows = np.sort(rows, axis=0)
    rank = (np.arange(len(rows)) + 0.5) / len(rows)
    cdf = 0.5 * (1 + torch.erf(torch.from_numpy(sorted_rows) / math.sqrt(2)).numpy())
    distances = np.abs(cdf - rank[:, None]).max(0) + 0.5 / len(rows)
    chosen = worst_columns(distances, MAX_COLUMNS - 1)
    figure, axes = new_panels(len(chosen) + (dim > 1))
    grid, edges = np.linspace(-4, 4, 161), bin_edges(-4, 4, len(rows))
    below = 0.5 * (1 + torch.erf(torch.from_numpy(edges) / math.sqrt(2)).numpy())
    expected = [f"standard Gaussian: {percent(share)}" for share in np.diff(below)]
    for ax, i in zip(axes, chosen, strict=False):
        draw_filled(ax, rows[:, i], edges, "data carried to the noise side")
        ax.plot(grid, np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi), color=MODEL, lw=1.4, label="standard Gaussian")
        name = f"z{i + 1}" if features is None else features[i]
        dress_panel(ax, name, f"KS {distances[i]:.3f}")
        tell_shares(ax, name, edges, {"data carried to the noise side": rows[:, i]}, more=expected)
        ax.set_xticks([-3, 0, 3])
    if dim > 1:
        _draw_norms(axes[-1], np.linalg.norm(rows, axis=1), dim)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", **LEGEND)
    return figure


def _draw_norms(ax: Axes, norms: Array, dim: int) -> None:
    """Draws a histogram of the norms of z against the chi distribution."""
    high = max(float(np.quantile(norms, 0.995)), math.sqrt(dim) + 2.5)
    low = max(0.0, min(float(np.quantile(norms, 0.005)), math.sqrt(dim) - 2.5))
    radius = np.linspace(max(low, 1e-6), high, 161)
    log_chi = (dim - 1) * np.log(radius) - radius**2 / 2 - (dim / 2 - 1) * math.log(2) - math.lgamma(dim / 2)
    edges = bin_edges(low, high, len(norms))
    draw_filled(ax, norms, edges)
    below = torch.special.gammainc(torch.tensor(dim / 2, dtype=torch.float64), torch.from_numpy(edges).square() / 2)
    expected = [f"chi distribution: {percent(share)}" for share in below.diff().tolist()]
    tell_shares(ax, "norm |z|", edges, {"data carried to the noise side": norms}, more=expected)
    ax.plot(radius, np.exp(log_chi), color=MODEL, lw=1.4)
    dress_panel(ax, "|z|", f"chi, {dim} d.o.f.")


def _require_dim(flow: JKOFlow, dim: int) -> None:
    if flow.dim != dim:
        raise ValueError(f"this figure needs a flow of dimension {dim}, got {flow.dim}")
