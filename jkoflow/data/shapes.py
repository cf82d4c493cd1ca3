"""Two-dimensional densities drawn by formulas, on which a flow can be looked at."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Points = NDArray[np.float64]

GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


def draw(name: str, n: int, seed: int = 0) -> Tensor:
    """Draws points of one of the `SHAPES`.

    Arguments:
        name: A key of `SHAPES`.
        n: Number of points.
        seed: Seed of the generator; the same seed gives the same points.

    Returns:
        Independent points, float32, with shape (n, 2), within about four units of the origin.

    Example:
        >>> draw("rose", 5).shape
        torch.Size([5, 2])
    """
    return torch.from_numpy(SHAPES[name](n, np.random.default_rng(seed)).astype(np.float32))


def rose(n: int, rng: np.random.Generator) -> Points:
    """Draws a rose in bloom seen from above: petals with dark rims, each hiding a part of the petals behind it."""
    return _from_picture(_rose_picture(), 3.2, n, rng)


@lru_cache(maxsize=1)
def _rose_picture(size: int = 480) -> Points:
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis, axis)
    tone = np.zeros_like(x)
    petals = 24
    for k in range(petals):  # from the outermost petal to the heart
        reach = 0.9 * (1 - k / petals) ** 0.85 + 0.07
        azimuth = k * GOLDEN_ANGLE
        along = x * np.cos(azimuth) + y * np.sin(azimuth)
        across = -x * np.sin(azimuth) + y * np.cos(azimuth)
        length, width = 0.62 * reach, 0.66 * reach
        tip = 0.035 * reach * np.exp(-((across / (0.16 * reach)) ** 2))  # the petal's small point
        radius = np.hypot((along - (reach - length) - tip) / length, across / width)
        inside = radius < 1
        shade = 0.03 + np.exp(-(((1 - radius) * reach / 0.03) ** 2)) + 0.2 * radius**5 * (along > 0)
        tone = np.where(inside, shade, tone)
    return tone


def fractal_tree(n: int, rng: np.random.Generator) -> Points:
    """Draws a tree whose every branch ends in two shorter and thinner branches."""
    starts, ends, widths = _tree_segments()
    lengths = np.linalg.norm(ends - starts, axis=1)
    mass = lengths * widths**0.75
    chosen = rng.choice(len(starts), size=n, p=mass / mass.sum())
    along = rng.random((n, 1))
    points = starts[chosen] + along * (ends - starts)[chosen]
    return points + widths[chosen, None] * rng.uniform(-0.5, 0.5, (n, 2))


@lru_cache(maxsize=1)
def _tree_segments() -> tuple[Points, Points, Points]:
    starts, ends, widths = [], [], []
    level = [(np.array([0.0, -3.0]), np.pi / 2)]
    length, width = 1.75, 0.16
    for _ in range(8):
        following = []
        for start, angle in level:
            end = start + length * np.array([np.cos(angle), np.sin(angle)])
            starts.append(start)
            ends.append(end)
            widths.append(width)
            following += [(end, angle + 0.48), (end, angle - 0.48)]
        level = following
        length, width = 0.75 * length, 0.68 * width
    return np.array(starts), np.array(ends), np.array(widths)


def checkerboard(n: int, rng: np.random.Generator) -> Points:
    """Draws the black fields of a 4 by 4 board, uniform within each."""
    field = rng.integers(0, 8, n)
    row = field // 2
    column = 2 * (field % 2) + row % 2
    return 2 * (np.stack([column, row], 1) - 2 + rng.random((n, 2)))


def rings(n: int, rng: np.random.Generator) -> Points:
    """Draws five interlaced rings, three above two."""
    centres = np.array([[-2.4, 0.55], [0.0, 0.55], [2.4, 0.55], [-1.2, -0.55], [1.2, -0.55]])
    angle = rng.uniform(0, 2 * np.pi, n)
    radius = 1.05 + rng.normal(0, 0.05, n)
    return centres[rng.integers(0, 5, n)] + _polar(radius, angle)


def pinwheel(n: int, rng: np.random.Generator) -> Points:
    """Draws five blades, each a long Gaussian that bends more the farther out it lies."""
    outward = 1.6 + 0.55 * rng.normal(size=n)
    aside = 0.16 * rng.normal(size=n)
    blade = rng.integers(0, 5, n) * (2 * np.pi / 5)
    angle = blade + 0.55 * np.exp(0.5 * outward)
    return _polar(outward, angle) + _polar(aside, angle + np.pi / 2)


def spirals(n: int, rng: np.random.Generator) -> Points:
    """Draws two interleaved arms of an Archimedean spiral, one turn and a half each."""
    turn = 3 * np.pi * np.sqrt(rng.random(n))  # the root spreads the points evenly along the arm
    arm = rng.integers(0, 2, n) * np.pi
    return _polar(turn / 3, turn + arm) + rng.normal(0, 0.1, (n, 2))


def moons(n: int, rng: np.random.Generator) -> Points:
    """Draws two half circles that reach into each other."""
    angle = rng.uniform(0, np.pi, n)
    lower = rng.integers(0, 2, n)
    arc = _polar(np.full(n, 2.0), angle)
    arc *= np.where(lower, -1, 1)[:, None]
    shift = np.where(lower[:, None], [1.0, 0.5], [-1.0, -0.5])
    return arc + shift + rng.normal(0, 0.14, (n, 2))


def _polar(radius: Points, angle: Points) -> Points:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _from_picture(tone: Points, scale: float, n: int, rng: np.random.Generator) -> Points:
    """Draws points with density proportional to a square picture's tone, uniform within each pixel."""
    cumulative = np.cumsum(tone.ravel())
    pixel = np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right")
    row, column = np.divmod(pixel, tone.shape[1])
    return scale * ((np.stack([column, row], 1) + rng.random((n, 2))) / tone.shape[0] * 2 - 1)


SHAPES: dict[str, Callable[[int, np.random.Generator], Points]] = {
    shape.__name__: shape for shape in (rose, fractal_tree, checkerboard, rings, pinwheel, spirals, moons)
}
"""The built-in two-dimensional densities by name."""
