"""The numbers that the figures of a report show: stages, densities, samples, and the choice of columns to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.flow import JKOFlow, base_log_prob
from jkoflow.metrics import spread_rows
from jkoflow.ops.grid import Grid, as_grid
from jkoflow.training.rounds import FINETUNE

Array = NDArray[np.float64]
Records = Sequence[Mapping[str, Any]]

MAX_POINTS = 4000
MAX_COLUMNS = 24
MAX_CONTEXTS = 16
"""Number of conditions over which the density of a conditional flow is averaged."""
WORK = 1e11
"""Number of floating-point operations that one panel of a figure may take: about a second on two cores."""


def chosen_stages(blocks: int, max_stages: int = 8) -> list[int]:
    """Chooses at most ``max_stages`` evenly spaced stages of 0..blocks, both ends included."""
    return sorted({round(stage) for stage in np.linspace(0, blocks, min(blocks + 1, max(max_stages, 2)))})


def stage_names(count: int) -> list[str]:
    """Returns the names of the stages along an axis; names that would overlap are empty."""
    chosen = set(chosen_stages(count - 1, 7))
    return ["data", *(f"block {k}" if k in chosen else "" for k in range(1, count - 1)), "noise"][:count]


def evaluation_grids(flow: JKOFlow) -> list[Grid]:
    """Returns the grid of each block for an evaluation."""
    return [block.grid if flow.eval_num_steps is None else as_grid(flow.eval_num_steps) for block in flow.stack]


def point_work(flow: JKOFlow, grids: Sequence[Grid], start: int = 0) -> float:
    """Counts the floating-point operations that carry one point and its logdet through the blocks from ``start`` on."""
    work = 0.0
    for block, grid in list(zip(flow.stack, grids, strict=True))[start:]:
        work += 4 * grid.cost * block.velocity.work()  # four stages to a step
    return work


def affordable_points(flow: JKOFlow) -> int:
    """Returns how many points may be carried through the whole flow for one figure."""
    return int(np.clip(WORK / max(point_work(flow, evaluation_grids(flow)), 1), 800, MAX_POINTS))


def noise_like(flow: JKOFlow, count: int, seed: int) -> Tensor:
    """Draws Gaussian noise in the flow's dtype, at most as many points as are affordable, with shape (n, d)."""
    generator = torch.Generator().manual_seed(seed)
    count = min(count, affordable_points(flow))
    return torch.randn(count, flow.dim, generator=generator, dtype=flow.standardize.mean.dtype)


@torch.no_grad()
def flow_samples(flow: JKOFlow, count: int, seed: int = 0, context: Tensor | None = None) -> Tensor:
    """Draws up to ``count`` seeded samples (n, d) in the data's own units; one sample per row of context (N, c)."""
    noise = noise_like(flow, count if context is None else min(count, len(context)), seed)
    return _finite(flow.inverse(noise, matching_context(flow, noise, context))[0])


@torch.no_grad()
def flow_stages(
    flow: JKOFlow, points: Tensor, stages: Sequence[int], *, inverse: bool = False, context: Tensor | None = None
) -> Array:
    """Carries points to the chosen stages; returns their positions (len(stages), n, d) in the blocks' units."""
    count = affordable_points(flow) if context is None else min(affordable_points(flow), len(context))
    points = points[:count].to(flow.standardize.mean)
    path = flow.trajectory(points, matching_context(flow, points, context), inverse=inverse)
    return to_array(_finite(path.x[list(stages)]))


def matching_context(flow: JKOFlow, points: Tensor, context: Tensor | None) -> Tensor | None:
    """Returns the context of as many first rows as there are points, in the flow's dtype."""
    return None if context is None else context[: len(points)].to(flow.standardize.mean)


def shown_contexts(flow: JKOFlow, context: Tensor | None) -> list[Tensor | None]:
    """Returns the conditions (1, c) that a drawn density is averaged over; only None for an unconditional flow."""
    return [None] if context is None else list(spread_rows(context, MAX_CONTEXTS).to(flow.standardize.mean).split(1))


@torch.no_grad()
def stage_log_density(
    flow: JKOFlow, stage: int, points: Tensor, grids: Sequence[Grid], context: Tensor | None = None
) -> Array:
    """Computes the log-density of the data as ``stage`` blocks leave them: (n,), at points (n, d) in the blocks' units.

    The density of a conditional flow is averaged over a few rows of the context (N, c).
    """
    found = []
    for condition in shown_contexts(flow, context):
        x, logdet = points, points.new_zeros(points.shape[0])
        rows = None if condition is None else condition.expand(len(points), -1)
        rows = flow.standardized_context(rows, len(points))
        for block, grid in list(zip(flow.stack, grids, strict=True))[stage:]:
            x, increment = block(x, rows, grid)
            logdet = logdet + increment
        found.append(base_log_prob(x) + logdet)
    return to_array(torch.stack(found).logsumexp(0) - math.log(len(found)))


@torch.no_grad()
def data_log_density(flow: JKOFlow, points: Tensor, context: Tensor | None = None) -> Array:
    """Computes the log-density (n,) at points (n, d), both in the data's own units."""
    entered, logdet = flow.enter(points)
    return stage_log_density(flow, 0, entered, evaluation_grids(flow), context) + to_array(logdet)


def _finite(points: Tensor) -> Tensor:
    bad = int((~torch.isfinite(points)).any(-1).sum())
    if bad:
        raise ValueError(
            f"the flow carries {bad} of {points[..., 0].numel()} points to NaN or inf, nothing to draw: its "
            "training diverged; train it again with more num_steps or a smaller learning_rate"
        )
    return points


def grid_points(flow: JKOFlow, x: tuple[float, float], y: tuple[float, float], side: int) -> Tensor:
    """Returns the centres of side x side cells over the rectangle, row by row, in the flow's dtype: (n, 2)."""
    middle = (torch.arange(side, dtype=flow.standardize.mean.dtype) + 0.5) / side
    columns = torch.meshgrid(y[0] + middle * (y[1] - y[0]), x[0] + middle * (x[1] - x[0]), indexing="ij")
    return torch.stack([columns[1].reshape(-1), columns[0].reshape(-1)], dim=1)


def ks_distance(a: Array, b: Array) -> float:
    """Computes the two-sample Kolmogorov-Smirnov distance between the values a (n,) and b (m,)."""
    values = np.concatenate([a, b])
    left = np.searchsorted(np.sort(a), values, side="right") / len(a)
    return float(np.abs(left - np.searchsorted(np.sort(b), values, side="right") / len(b)).max())


def chance_ks(n: int, m: int) -> float:
    """Returns the distance that n and m values of one distribution exceed in one case of twenty."""
    return 1.358 * math.sqrt((n + m) / (n * m))


def worst_columns(distances: Array, limit: int = MAX_COLUMNS) -> list[int]:
    """Chooses the ``limit`` columns of largest distance, in the order of the columns."""
    return sorted(np.argsort(-distances, kind="stable")[:limit].tolist())


def to_array(values: Tensor) -> Array:
    """Returns the tensor as a float64 array."""
    return values.detach().cpu().double().numpy()


def place_of(record: Mapping[str, Any]) -> tuple[int, int]:
    """Returns round and block of a record; runs of earlier versions have one round."""
    return int(record.get("round") or 0), int(record["block"])


def fine_tuning_rounds(history: Records) -> set[int]:
    """Returns the rounds that trained all blocks at once."""
    return {int(r["round"]) for r in history if r.get("event") == "round" and r.get("kind") == FINETUNE}


def guard_records(history: Records) -> list[Mapping[str, Any]]:
    """Returns the records of the moments at which the integrator guard stepped in."""
    return [record for record in history if record.get("event") == "guard"]


def timeline(history: Records) -> tuple[dict[tuple[int, int], int], int]:
    """Returns the iteration at which each block of each round starts, and the total."""
    lengths: dict[tuple[int, int], int] = {}
    for record in history:
        if "block" in record:
            seen = record.get("iterations") or record.get("iteration") or 1
            lengths[place_of(record)] = max(lengths.get(place_of(record), 1), int(seen))
    offsets, total = {}, 0
    for place in sorted(lengths):
        offsets[place] = total
        total += lengths[place]
    return offsets, total


def running_quantiles(
    history: Records, name: str, offsets: Mapping[tuple[int, int], int], total: int
) -> tuple[Array, Array, Array, Array]:
    """Returns abscissa and 10, 50, 90 % quantiles of a term in some 200 bins that never straddle two blocks."""
    lines: list[list[float]] = []
    width = max(total / 200, 1.0)
    for place, start in offsets.items():
        records = [r for r in history if r.get("event") == "iteration" and place_of(r) == place]
        values = np.array([or_nan(r.get(name)) for r in records])
        bins = np.array([int(r["iteration"] / width) for r in records], dtype=int)
        for index in np.unique(bins):
            inside = values[(bins == index) & np.isfinite(values)]
            if len(inside):
                low, median, high = np.quantile(inside, (0.1, 0.5, 0.9))
                lines.append([start + (index + 0.5) * width, low, median, high])
        lines.append([math.nan] * 4)  # a gap between the lines of two blocks
    x, low, median, high = np.array(lines or [[math.nan] * 4]).T
    return x, low, median, high


def or_nan(value: object) -> float:
    """Returns the number, or NaN for None."""
    return float(value) if isinstance(value, (int, float)) else math.nan
