"""The plan of a run under a time budget: its blocks and their width, as functions of the measured speed."""

from __future__ import annotations

import math
from typing import NamedTuple

DIVIDED_SHARE = 0.7
"""Share of the training after a single block has been divided."""

FINE, COARSE = 4.0, 1.5
"""Scales of the first layer (`jkoflow.training.first_layer`) above which rows are said to have fine details, and below
which they are said to have none."""

MORE_STEPS, LEAST_FOR_MORE_STEPS = 2, 3000
"""Runge-Kutta steps that a block of rows with fine details begins with in addition, and the smallest number of
iterations for which it does."""

FIRST_WIDTH, MOST_WIDTH = 128, 256
"""Width of the hidden layers whose speed is measured, which is the least, and the largest that a plan may have: the
CUDA kernels have no wider ones."""

WIDTH_STEP = 32
"""Widths are multiples of this, which the kernels' tiles are filled by."""

FIRST_WIDTH_ITERATIONS = 1500
"""Iterations from which on wider layers than `FIRST_WIDTH` learn more in the same time (docs/sweep.md)."""

FULL_RATE_ITERATIONS = 8000
"""Iterations up to which peak rates are those of the optimiser."""

LEAST_TO_DIVIDE, LEAST_FOR_FOUR = 500, 4000
"""Smallest numbers of iterations for which there are two blocks, and for which there are four where rows have no
details."""


class RunPlan(NamedTuple):
    """The plan of a run: its blocks, how they come about, and what their training begins with."""

    blocks: int
    """Largest number of blocks."""
    finetune: float
    """Share of the training that goes to fine-tuning."""
    divide: int
    """Number of blocks that every block is divided into before the fine-tuning."""
    width: int = FIRST_WIDTH
    """Width of the hidden layers, where the settings do not have any."""
    more_steps: int = 0
    """Runge-Kutta steps to begin with beyond those that the scale of the first layer asks for."""
    together: bool = False
    """Whether all blocks are trained together from the beginning, as a chain."""
    rate_share: float = 1.0
    """Share of the optimiser's own peak rates."""


def plan_run(
    seconds: float,
    rounds: int,
    iteration_seconds: float,
    most_blocks: int,
    given_blocks: int | None,
    free: bool,
    scale: float,
    chooses: bool = True,
) -> RunPlan:
    """Plans blocks and fine-tuning from the measured speed of the first block.

    A single free block gives the best likelihood for the time. It is divided in two before half of the time has passed
    and trained on as a chain: the first iterations cost one network, the later ones have two, and nothing has to be
    learned twice. Rows with fine details need Runge-Kutta steps more than a second network, so that their block stays
    whole, and has more steps from the beginning where a long training would make its velocity sharper. For rows without
    details one step does for each of two blocks, or of four, which are trained together from the beginning
    (docs/sweep.md). Where a number of blocks is asked for, or later rounds train every block again, the chain is built
    block by block, and trained together where there is time.

    Arguments:
        seconds: Seconds that the budget has left.
        rounds: Rounds of single blocks that will share them.
        iteration_seconds: Expected time of an iteration of the first block.
        most_blocks: Largest number of blocks.
        given_blocks: The number that was asked for; None if the plan may choose.
        free: Whether a block without movement penalty may end the chain.
        scale: Scale of the first layer, which tells how fine the details are that the rows can have.
        chooses: Whether the plan may choose to train blocks together; not where the settings tell how these come about.
    """
    iterations = max(seconds, 0.0) / rounds / max(iteration_seconds, 1e-9)
    if given_blocks is None and free and rounds == 1:
        width, rate = width_within(iterations), rate_share_within(iterations)
        if scale > FINE:
            more_steps = MORE_STEPS if iterations >= LEAST_FOR_MORE_STEPS else 0
            return RunPlan(1, 0.0, 1, width, more_steps, rate_share=rate)
        if iterations < LEAST_TO_DIVIDE:
            return RunPlan(1, 0.0, 1, width, rate_share=rate)
        if scale >= COARSE or not chooses:
            return RunPlan(1, DIVIDED_SHARE, 2, width, rate_share=rate)
        return RunPlan(4 if iterations >= LEAST_FOR_FOUR else 2, 0.0, 1, width, together=True, rate_share=rate)
    blocks = blocks_within(iterations, most_blocks) if given_blocks is None else given_blocks
    return RunPlan(blocks, finetune_share(iterations), 1)


def width_within(iterations: float) -> int:
    r"""Returns the width of hidden layers that a time budget is enough for, :math:`128 (N / 1500)^{1/3}`.

    An iteration takes as long as the square of the width, so that more time makes for wider layers and for more
    iterations alike. Wider layers are not only likelier: their velocities take fewer Runge-Kutta steps (docs/sweep.md).

    Arguments:
        iterations: Iterations N of a single block of `FIRST_WIDTH` that the budget has time for.

    Returns:
        The width, a multiple of `WIDTH_STEP` from `FIRST_WIDTH` to `MOST_WIDTH`.

    Example:
        >>> [width_within(n) for n in (100, 1500, 5000, 100_000)]
        [128, 128, 192, 256]
    """
    width = FIRST_WIDTH * (iterations / FIRST_WIDTH_ITERATIONS) ** (1 / 3)
    return min(MOST_WIDTH, max(FIRST_WIDTH, WIDTH_STEP * round(width / WIDTH_STEP)))


def rate_share_within(iterations: float) -> float:
    r"""Returns the share of the peak learning rates for a training of some length, :math:`\sqrt{8000 / N}`, at most 1.

    At the full rates a long training stays for so long where velocities get sharp that the guard adds steps, and every
    iteration then takes longer for good (docs/sweep.md).

    Arguments:
        iterations: Iterations N of a single block of `FIRST_WIDTH` that the budget has time for.

    Example:
        >>> [round(rate_share_within(n), 2) for n in (1000, 8000, 50_000)]
        [1.0, 1.0, 0.4]
    """
    return min(1.0, math.sqrt(FULL_RATE_ITERATIONS / max(iterations, 1.0)))


def blocks_within(iterations: float, most: int) -> int:
    r"""Returns the number of blocks that a time budget is enough for, :math:`\sqrt{N / 500}` for N iterations in all.

    More time is thus spent on more blocks and on longer ones alike: the likelihood hardly depends on the number near
    the best one, but suffers from blocks of a few hundred iterations as from a chain of one or two (docs/sweep.md).

    Arguments:
        iterations: Iterations N that the budget has time for, in all blocks together.
        most: Largest number of blocks.

    Returns:
        The number of blocks, at least 2 unless ``most`` is less.

    Example:
        >>> [blocks_within(n, 6) for n in (100, 5000, 10_000, 100_000)]
        [2, 3, 4, 6]
    """
    return min(most, max(2, round(math.sqrt(iterations / 500))))


def finetune_share(iterations: float) -> float:
    """Returns the share of a time budget that goes to fine-tuning, the training of all blocks together.

    An iteration of the whole chain takes as long as one of every block. The few hundred that a short budget has for it
    do not make up for the blocks' own; in a longer one short blocks and a long fine-tuning do best (docs/sweep.md).

    Arguments:
        iterations: Iterations of single blocks that the budget has time for.

    Returns:
        The share, 0 for a budget that is too short to profit.

    Example:
        >>> [finetune_share(n) for n in (5000, 50_000)]
        [0.0, 0.8]
    """
    return 0.8 if iterations >= 15_000 else 0.0
