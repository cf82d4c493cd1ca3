"""JKO step sizes: their growth along a chain, and their change by reparametrisation and refinement."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np


def jko_step(block: int, first: float, growth: float, largest: float) -> float:
    r"""Returns the JKO step size of a block, :math:`h_k = \min(h_0 g^k, h_{max})`.

    Arguments:
        block: Number k of the block, from 0.
        first: JKO step size h_0 of the first block.
        growth: Factor g from one block to the next.
        largest: Upper bound h_max.

    Returns:
        The JKO step size, positive.

    Example:
        >>> [jko_step(k, 1.0, 2.0, 3.0) for k in range(3)]
        [1.0, 2.0, 3.0]
    """
    # in logarithms: growth**block overflows for large k
    return largest if math.log(first) + block * math.log(growth) >= math.log(largest) else first * growth**block


def reparametrized_jko_steps(
    jko_steps: Sequence[float], movements: Sequence[float], damping: float = 1.0, largest: float = math.inf
) -> list[float]:
    r"""Returns JKO step sizes under which blocks are expected to move equally far.

    With movements S_k and times :math:`t_k = h_1 + \ldots + h_k`, the time :math:`t'_k` is where the piecewise linear
    cumulative movement reaches k times its mean; then :math:`t_k \leftarrow t_k + \eta\,(t'_k - t_k)`.

    Arguments:
        jko_steps: JKO step sizes h of the penalised blocks, positive and finite.
        movements: Movements S of these blocks, not negative.
        damping: :math:`\eta`, the share of the way that the times :math:`t_k` go, at most 1.
        largest: Upper bound of the new JKO step sizes.

    Returns:
        The new JKO step sizes; the given ones if nothing has moved.

    Raises:
        ValueError: If a number is out of its range or the lengths differ.

    References:
        | Normalizing flow neural networks by JKO scheme (Xu et al., 2022)
        | https://arxiv.org/abs/2212.14424

    Example:
        >>> reparametrized_jko_steps([1.0, 1.0], [3.0, 1.0])
        [0.6666666666666666, 1.3333333333333335]
    """
    if len(jko_steps) != len(movements):
        raise ValueError(f"movements must have {len(jko_steps)} entries, one per step size, got {len(movements)}")
    if not all(0 < h < math.inf for h in jko_steps):
        raise ValueError(f"jko_steps must be positive and finite, got {list(jko_steps)}")
    if not all(0 <= s < math.inf for s in movements):
        raise ValueError(f"movements must be finite and not negative, got {list(movements)}")
    if not 0 < damping <= 1:
        raise ValueError(f"damping must be greater than 0 and at most 1, got {damping}")
    if not largest > 0:
        raise ValueError(f"largest must be positive, got {largest}")
    total = math.fsum(movements)
    if total == 0 or all(s == movements[0] for s in movements):
        return [min(h, largest) for h in jko_steps]
    count = len(jko_steps)
    times = [0.0, *itertools.accumulate(jko_steps)]
    arc = [0.0, *itertools.accumulate(movements)]
    equal = np.interp([arc[-1] * k / count for k in range(1, count)], arc, times).tolist()
    moved = [t + damping * (target - t) for t, target in zip(times[1:-1], equal, strict=True)]
    return [min(end - start, largest) for start, end in itertools.pairwise([0.0, *moved, times[-1]])]


def refined_jko_steps(jko_steps: Sequence[float], factor: int) -> list[float]:
    """Returns the JKO step sizes, h / factor, of blocks divided into ``factor`` children each; inf stays inf."""
    return [h / factor for h in jko_steps for _ in range(factor)]


def penalised_jko_steps(jko_steps: Sequence[float], fallback: float) -> list[float]:
    """Returns JKO step sizes to train a chain with, of which only the last may be free (inf).

    A free block before the last would leave nothing to do for the blocks after it. It gets the JKO step size of the
    block before it, or ``fallback`` if there is none.

    Example:
        >>> penalised_jko_steps([0.5, math.inf, math.inf], 1.0)
        [0.5, 0.5, inf]
    """
    sizes: list[float] = []
    for index, h in enumerate(jko_steps):
        free = math.isinf(h) and index + 1 < len(jko_steps)
        sizes.append((sizes[-1] if sizes else fallback) if free else h)
    return sizes


def relative_spread(values: Sequence[float]) -> float:
    """Returns the standard deviation over the mean: 0 for equal numbers; NaN without numbers or if all are zero."""
    mean = math.fsum(values) / len(values) if values else 0.0
    if mean == 0:
        return math.nan
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)) / mean
