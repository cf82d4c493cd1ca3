"""The terms of the JKO objective that trains one block, by name: the readable twin of the fused loss."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from jkoflow.former_names import accepts_former_names


class JKOTerms(NamedTuple):
    """Means over a batch, each a tensor without axes; `total` is what a block minimises."""

    total: Tensor
    """Sum of potential, divergence and movement."""
    potential: Tensor
    """Mean of abs(y)^2 / 2, minus the Gaussian's log-density up to a constant."""
    divergence: Tensor
    """Mean of -logdet."""
    movement: Tensor
    """The proximal penalty, mean of abs(y - x)^2 / (2 h); zero in a free block."""


@accepts_former_names
def jko_terms(x: Tensor, y: Tensor, logdet: Tensor, jko_step: float) -> JKOTerms:
    r"""Computes the JKO objective of a map that carries x to y.

    .. math:: E\left[ \tfrac{1}{2} |y|^2 - \mathrm{logdet} + \tfrac{1}{2h} |y - x|^2 \right]

    Up to a constant, the first two terms are the KL divergence of the pushed density from the Gaussian, so that the
    sum is one proximal step of KL in Wasserstein distance.

    Arguments:
        x: Samples that enter the block, with shape (B, d).
        y: Images of the samples under the map, with shape (B, d).
        logdet: Log abs det of the map's Jacobian, with shape (B,).
        jko_step: JKO step size h, positive; ``inf`` means no penalty.

    Returns:
        The terms, in nats per sample.

    Raises:
        ValueError: If the JKO step size is not positive.

    References:
        | Normalizing flow neural networks by JKO scheme (Xu et al., 2022)
        | https://arxiv.org/abs/2212.14424

    Example:
        >>> x = torch.ones(4, 2)
        >>> jko_terms(x, 2 * x, torch.zeros(4), jko_step=0.5).movement
        tensor(2.)
    """
    if not jko_step > 0:
        raise ValueError(f"jko_step must be positive (inf for a free block), got {jko_step}")
    potential = 0.5 * y.square().sum(1).mean()
    divergence = -logdet.mean()
    if math.isinf(jko_step):  # 0 * (y - x) would turn an overflow into NaN
        return JKOTerms(potential + divergence, potential, divergence, potential.new_zeros(()))
    movement = (y - x).square().sum(1).mean() / (2 * jko_step)
    return JKOTerms(potential + divergence + movement, potential, divergence, movement)
