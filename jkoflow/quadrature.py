"""Points and weights by which a mass is integrated over noise."""

from __future__ import annotations

import math

import numpy as np

from jkoflow.data.columns.codec import Floats

POINTS = (16, 64)
"""Points of noise over which a mass is integrated: for one column with noise, and for more."""


def quadrature(dims: int, points: int | None = None) -> tuple[Floats, Floats]:
    """Returns points in the unit cube (n, dims) and the logarithms of their weights (n,), to integrate over noise.

    In one dimension, and in two and three if their number is a square or a cube, they are those of Gauss and Legendre;
    else those of a Kronecker sequence.
    """
    count = POINTS[dims > 1] if points is None else points
    side = round(count ** (1 / dims))
    if dims <= 3 and side**dims == count:
        nodes, weights = np.polynomial.legendre.leggauss(side)
        grid = np.stack(np.meshgrid(*[(nodes + 1) / 2] * dims, indexing="ij"), -1).reshape(-1, dims)
        products = np.stack(np.meshgrid(*[weights / 2] * dims, indexing="ij"), -1).reshape(-1, dims).prod(1)
        return grid, np.log(products)
    root = 2.0  # the root of x^(dims + 1) = x + 1 spreads the points most evenly
    for _ in range(50):
        root = (1 + root) ** (1 / (dims + 1))
    nodes = (0.5 + np.outer(np.arange(1, count + 1), root ** -np.arange(1.0, dims + 1))) % 1
    return np.clip(nodes, 1e-6, 1 - 1e-6), np.full(count, -math.log(count))
