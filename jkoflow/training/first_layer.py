"""How fine the first layer of a velocity begins, measured on the rows that enter its block.

PyTorch's initial weights make a network that is smooth on the scale of the whole data, and training has to sharpen it
first. How fine a detail rows can show at all depends on how far apart they are: a network whose units change over the
distance within which a row has `NEIGHBORS` others can learn the detail from the beginning, and cannot tell single rows
apart. Few columns have such neighbors close by, many columns have them nowhere. Where there are no such details, as in
a smooth density of one column, a network that fine only has to unlearn it: larger neighborhoods count there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jkoflow.block import Block
from jkoflow.metrics import spread_numbers, spread_rows
from jkoflow.velocity import MLPVelocity

NEIGHBORS = 50
"""Number of other rows that a detail must have to be more than chance."""

MOST_SHARE = 0.2
"""Largest share of the rows that `NEIGHBORS` of them may be."""

LEAST_LOSS = 0.1
"""Nats by which the estimated density must fall for a twice as large neighborhood to hide details."""

EQUAL = 1e-4
"""Share of the distance between two rows below which rows count as equal."""

MOST_SCALE = 30.0
"""Largest factor; finer details than the thirtieth part of the data's width are left to training."""

ROWS = 20_000
"""Largest number of rows among which neighbors are looked for."""

PROBES = 300
"""Largest number of rows whose neighbors are looked for."""


@torch.no_grad()
def first_layer_scale(rows: Tensor, context: Tensor | None = None) -> float:
    """Returns the factor by which the first layer's initial weights and biases are multiplied.

    It is the median distance between two rows, over the median distance from a row to the last of its `NEIGHBORS`.
    These are looked for among all rows, and then among half as many again and again, as long as the density that they
    show is as high, on average of its logarithm, as in any smaller neighborhood, but for `LEAST_LOSS`.

    Arguments:
        rows: The rows that enter the block, with shape (N, d).
        context: Standardised conditioning variables, with shape (N, c), beside which the rows are looked at.

    Returns:
        The factor, from 1 to `MOST_SCALE`; 1 if there are no more rows than neighbors wanted.

    References:
        | Sample estimate of the entropy of a random vector (Kozachenko and Leonenko, 1987)
        | https://www.mathnet.ru/eng/ppi797

    Example:
        >>> rows = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
        >>> clusters = torch.randint(0, 5, (4000, 2), generator=torch.Generator().manual_seed(1))
        >>> [round(first_layer_scale(x)) for x in (rows, clusters + 0.1 * rows)]
        [2, 21]
    """
    conditions = [] if context is None else [spread_rows(context, ROWS)]
    rows = torch.cat([spread_rows(rows, ROWS), *conditions], 1)
    if len(rows) <= NEIGHBORS:
        return 1.0
    numbers = spread_numbers(len(rows), PROBES)
    distances = torch.cdist(rows[numbers], rows)
    width = float(distances[:, numbers].median())
    if not width > 0:
        return 1.0
    distances[torch.arange(len(numbers)), numbers] = math.inf  # no row is a neighbor of its own
    best, scale = -math.inf, math.nan
    while (count := distances.shape[1]) > NEIGHBORS:
        near = distances.kthvalue(NEIGHBORS, dim=1).values.clamp(min=EQUAL * width)
        log_density = -math.log(count) - rows.shape[1] * float(near.log().mean())
        if not log_density > best - LEAST_LOSS:
            break
        best, scale = max(best, log_density), width / float(near.median())
        if 0.5 * MOST_SHARE * count < NEIGHBORS:
            break
        distances = distances[:, ::2]
    return min(max(scale, 1.0), MOST_SCALE)


def first_steps(scale: float) -> int:
    """Returns the number of Runge-Kutta steps that the training of a block begins with.

    A network that is trained with too few steps finds what these get wrong, and stays wild when it has more.

    Arguments:
        scale: The scale of the first layer.

    Example:
        >>> [first_steps(scale) for scale in (1.3, 3.0, 20.0)]
        [2, 4, 6]
    """
    return max(1, 2 * round(1 + math.log2(scale) / 2))


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
    layer.weight[:, : velocity.dim + int(velocity.time)].mul_(float(scale))
    layer.bias.mul_(float(scale))
