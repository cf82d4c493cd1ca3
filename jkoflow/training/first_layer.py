"""How fine the first layer of a velocity begins, measured on the rows that enter its block.

PyTorch's initial weights make a network that is smooth on the scale of the whole data, and training has to sharpen it
first. How fine a detail rows can show at all depends on how far apart they are: a network whose units change over the
distance within which a row has `NEIGHBORS` others can learn the detail from the beginning, and cannot tell single rows
apart. Few columns have such neighbors close by, many columns have them nowhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jkoflow.block import Block
from jkoflow.metrics import spread_rows
from jkoflow.velocity import MLPVelocity

NEIGHBORS = 50
"""Number of other rows that a detail must have to be more than chance."""

MOST_SCALE = 30.0
"""Largest factor; finer details than the thirtieth part of the data's width are left to training."""

FINE = 4.0
"""Scale above which rows are said to have fine details."""

ROWS = 20_000
"""Largest number of rows among which neighbors are looked for."""

PROBES = 500
"""Largest number of rows whose neighbors are looked for."""


@torch.no_grad()
def first_layer_scale(rows: Tensor, context: Tensor | None = None) -> float:
    """Returns the factor by which the first layer's initial weights and biases are multiplied.

    It is the median distance between two rows, over the median distance from a row to its `NEIGHBORS`-th neighbor.

    Arguments:
        rows: The rows that enter the block, with shape (N, d).
        context: Standardised conditioning variables, with shape (N, c), beside which the rows are looked at.

    Returns:
        The factor, from 1 to `MOST_SCALE`; 1 if there are no more rows than neighbors wanted.

    Example:
        >>> rows = torch.randn(4000, 10, generator=torch.Generator().manual_seed(0))
        >>> [round(first_layer_scale(rows[:, :d])) for d in (1, 2, 10)]
        [30, 8, 2]
    """
    rows = spread_rows(rows if context is None else torch.cat([rows, context], 1), ROWS)
    if len(rows) <= NEIGHBORS:
        return 1.0
    probes = spread_rows(rows, PROBES)
    near = torch.cdist(probes, rows).kthvalue(NEIGHBORS + 1, dim=1).values.median()  # a row is nearest to itself
    width = torch.cdist(probes, probes).median()
    scale = float(width / near)
    return min(max(scale, 1.0), MOST_SCALE) if scale == scale else 1.0  # equal rows: nan


def first_steps(scale: float) -> int:
    """Returns the number of Runge-Kutta steps that the training of a block begins with.

    A network that is trained with too few steps finds what these get wrong, and stays wild when it has more.

    Arguments:
        scale: The scale of the first layer.

    Example:
        >>> [first_steps(scale) for scale in (1.3, 3.0, 20.0)]
        [2, 4, 6]
    """
    return 2 * round(1 + math.log2(scale) / 2)


@torch.no_grad()
def sharpen(block: Block, scale: float) -> None:
    """Multiplies the weights of x and t and the biases in the first layer of a new block by a factor.

    Weights of conditioning variables stay, since the factor was not measured on these.
    """
    velocity = block.velocity
    if not isinstance(velocity, MLPVelocity):
        return
    layer = next(velocity.layers.children())
    assert isinstance(layer, torch.nn.Linear)
    layer.weight[:, : velocity.dim + int(velocity.time)].mul_(scale)
    layer.bias.mul_(scale)
