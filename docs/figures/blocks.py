"""Draws a pinwheel on its way through four blocks: docs/pinwheel.png, docs/figures/blocks.png and blocks.webp.

The last one moves. `python docs/figures/blocks.py` trains the flow first, which takes a minute.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

import jkoflow
from jkoflow.data import Dataset, load_dataset
from jkoflow.report.figures import stages_figure

HERE = Path(__file__).parent
BLOCKS, PARTS = 4, 6
"""Blocks of the flow, and pictures of each."""
EDGE, CELLS, POINTS = 3.2, 160, 400
"""Half of the side of a picture in standardised units, cells along a side, and points that move along."""
MILLISECONDS, PAUSE = 90, 1200
"""Time of a picture, and of the first and the last."""


def trained(data: Dataset) -> jkoflow.JKOFlow:
    """Trains a free block, which moves evenly all the way, and divides it."""
    config = jkoflow.TrainConfig(initial_map="whiten", hidden=(128, 128), max_blocks=1, iterations_per_block=1200)
    return jkoflow.train(data, config).refine(BLOCKS)


def density_from(flow: jkoflow.JKOFlow, block: int, grid: Tensor) -> np.ndarray:
    """Returns the density on a grid of what has passed the blocks before the given one, in standardised units."""
    rest = jkoflow.JKOFlow(2, flow.stack[block:])
    with torch.no_grad():
        return rest.log_prob(grid).exp().reshape(CELLS, CELLS).numpy()


def draw(axes: Axes, density: np.ndarray, points: np.ndarray, title: str) -> None:
    """Draws a density, bright where it is high, and points."""
    axes.imshow(np.sqrt(density), origin="lower", extent=(-EDGE, EDGE, -EDGE, EDGE), cmap="magma", vmin=0, vmax=0.75)
    axes.scatter(*points.T, s=1.5, color="white", alpha=0.7, linewidths=0)
    axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)


def picture(density: np.ndarray, points: np.ndarray, title: str) -> Image.Image:
    """Returns one picture of those that move."""
    figure, axes = plt.subplots(figsize=(3.6, 3.8), layout="constrained")
    draw(axes, density, points, title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return Image.open(buffer).convert("RGB")


def main() -> None:
    """Trains, and writes the files."""
    plt.switch_backend("agg")
    data = load_dataset("pinwheel")
    assert isinstance(data, Dataset)
    flow = trained(data)
    fine, rows = flow.refine(PARTS), data.test
    stages_figure(flow, rows[:4000]).savefig(HERE.parent / "pinwheel.png", dpi=95)
    path = fine.trajectory(rows[:POINTS]).x.numpy()
    axis = torch.linspace(-EDGE, EDGE, CELLS)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    last = BLOCKS * PARTS
    densities = [density_from(fine, block, grid) for block in range(last)]
    densities.append(np.exp(-0.5 * grid.square().sum(1).reshape(CELLS, CELLS).numpy()) / (2 * np.pi))

    figure, panels = plt.subplots(1, BLOCKS + 1, figsize=(10, 2.3), layout="constrained")
    for number, axes in enumerate(panels):
        title = "data" if number == 0 else f"after block {number}" if number < BLOCKS else "noise"
        draw(axes, densities[number * PARTS], path[number * PARTS], title)
    figure.savefig(HERE / "blocks.png", dpi=110)

    titles = ["data", *(f"block {1 + part // PARTS} of {BLOCKS}" for part in range(last - 1)), "noise"]
    pictures = [picture(*each) for each in zip(densities, path, titles, strict=True)]
    times = [PAUSE, *[MILLISECONDS] * (last - 1), PAUSE]
    first, *others = pictures
    first.save(HERE / "blocks.webp", save_all=True, append_images=others, duration=times, loop=0, quality=60, method=6)


if __name__ == "__main__":
    main()
