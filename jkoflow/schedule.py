"""What the trainer does when: step sizes, stopping, learning rates and the time budget, as functions of numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np


def jko_step(block: int, first: float, growth: float, largest: float) -> float:
    r"""JKO step size of a block, :math:`h_k = \min(h_0 g^k, h_{max})`.

    Arguments:
        block: Number k of the block, from 0.
        first: Step size h_0 of the first block.
        growth: Factor g from one block to the next.
        largest: Upper bound h_max.

    Returns:
        The step size, positive.

    Example:
        >>> [jko_step(k, 1.0, 2.0, 3.0) for k in range(3)]
        [1.0, 2.0, 3.0]
    """
    # in logarithms: growth**block overflows for large k
    return largest if math.log(first) + block * math.log(growth) >= math.log(largest) else first * growth**block


def reparametrized_jko_steps(
    jko_steps: Sequence[float], movements: Sequence[float], damping: float = 1.0, largest: float = math.inf
) -> list[float]:
    r"""JKO step sizes under which blocks are expected to move equally far.

    With movements S_k and times :math:`t_k = h_1 + \dots + h_k`, the time :math:`t'_k` is where the piecewise linear
    cumulative movement reaches k times its mean; then :math:`t_k \leftarrow t_k + \eta\,(t'_k - t_k)`.

    Arguments:
        jko_steps: Step sizes h of the penalised blocks, positive and finite.
        movements: Their movements S, not negative.
        damping: :math:`\eta`, the share of the way that the times go, at most 1.
        largest: Upper bound of the new step sizes.

    Returns:
        The new step sizes; those given if nothing has moved.

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
    """Step sizes of blocks that are divided into ``factor`` children each: h / factor; a free block's are free."""
    return [h / factor for h in jko_steps for _ in range(factor)]


def penalised_jko_steps(jko_steps: Sequence[float], fallback: float) -> list[float]:
    """Step sizes to train a chain with: only its last block may be free (inf).

    A free block before the last would leave nothing to do for those after it. It gets the step size of the block before
    it, or ``fallback`` if there is none.

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
    """Standard deviation over the mean: 0 for equal numbers; NaN for none, or all zero."""
    mean = math.fsum(values) / len(values) if values else 0.0
    if mean == 0:
        return math.nan
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)) / mean


def has_converged(
    movements: Sequence[float], val_nlls: Sequence[float], movement_tolerance: float, gain_tolerance: float
) -> bool:
    """Whether the last block did so little that no further one is worth its cost.

    Arguments:
        movements: Movement of every block so far.
        val_nlls: Validation NLL in nats before the first block and after every block, one more than the movements.
        movement_tolerance: A block that moves less than this ends the chain.
        gain_tolerance: A block that lowers the validation NLL by less than this ends the chain.

    Returns:
        True if the last block is under either tolerance; False before the first block.

    Raises:
        ValueError: If the lengths do not fit together.
    """
    if len(val_nlls) != len(movements) + 1:
        raise ValueError(
            f"val_nlls must have {len(movements) + 1} entries, one more than movements, got {len(val_nlls)}"
        )
    if not movements:
        return False
    return movements[-1] < movement_tolerance or val_nlls[-2] - val_nlls[-1] < gain_tolerance


def peak_learning_rate(columns: int) -> float:
    """Peak learning rate for rows of so many columns: 5e-3 for up to ten, less for more, whose gradients are noisier.

    Example:
        >>> [peak_learning_rate(d) for d in (2, 10, 40)]
        [0.005, 0.005, 0.0025]
    """
    return 5e-3 / math.sqrt(max(1.0, columns / 10))


def learning_rate(iteration: int, iterations: int, peak: float, warmup: int) -> float:
    r"""Learning rate of an iteration: linear warm-up to the peak, then half a cosine down to 1 % of it.

    Arguments:
        iteration: Number of the iteration, from 0.
        iterations: Iterations in all.
        peak: Largest learning rate.
        warmup: Iterations of the warm-up; at most a fifth of all is used.

    Returns:
        The learning rate, positive.
    """
    warmup = min(warmup, iterations // 5)
    if iteration < warmup:
        return peak * (iteration + 1) / (warmup + 1)
    progress = min(1.0, (iteration - warmup) / max(1, iterations - warmup))
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def guard_tolerances(nll: float, round_trip: float, columns: int) -> tuple[float, float]:
    """What the guard allows rows of many columns: errors of the NLL add up over columns, those of positions as squares.

    Arguments:
        nll: What it allows the NLL of rows of up to ten columns, in nats.
        round_trip: What it allows their way through a block and back, in standardised units.
        columns: Number of columns.

    Returns:
        Both tolerances.

    Example:
        >>> [guard_tolerances(0.02, 0.02, d) for d in (2, 10, 40)]
        [(0.02, 0.02), (0.02, 0.02), (0.08, 0.04)]
    """
    factor = max(1.0, columns / 10)
    return nll * factor, round_trip * math.sqrt(factor)


def seconds_for_block(budget: float, elapsed: float, reserve: float, blocks_left: int) -> float:
    """A block's share of what a time budget has left when it begins: equal parts for the blocks still to come.

    Arguments:
        budget: Seconds for the whole run.
        elapsed: Seconds spent before this block.
        reserve: Seconds to keep for the evaluation at the end.
        blocks_left: Blocks still to train, this one included.

    Returns:
        Seconds for this block, its push included; zero if nothing is left.
    """
    return max(0.0, budget - elapsed - reserve) / max(1, blocks_left)


def blocks_within(iterations: float, most: int) -> int:
    r"""Blocks that a time budget is enough for, :math:`\sqrt{N / 500}` for N iterations in all.

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
    """Share of a time budget that goes to fine-tuning, the training of all blocks together.

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


def iterations_within(seconds: float, seconds_per_iteration: float, least: int = 1) -> int:
    """Iterations that fit into a time, and never fewer than ``least``."""
    return max(least, int(seconds / max(seconds_per_iteration, 1e-9)))


def evaluation_seconds(
    seconds_per_row_step: float,
    blocks: int,
    num_steps: int,
    val_rows: int,
    test_rows: int,
    inversion_rows: int,
    exact_rows: int = 0,
    samples: int = 0,
) -> float:
    """Seconds that the evaluation of a finished flow is expected to take.

    Step-converged numbers need about two doublings of the Runge-Kutta steps that training has arrived at, which will be
    four in some block if they are fewer yet; the test rows take the last doubling, and the inversion error a pass
    forward and one back.

    Arguments:
        seconds_per_row_step: Measured time of one Runge-Kutta step of one block on one row.
        blocks: Blocks in the finished flow.
        num_steps: Runge-Kutta steps of training, the most of any block so far.
        val_rows: Rows of the calibration.
        test_rows: Rows of the test NLL.
        inversion_rows: Rows of the inversion error.
        exact_rows: Rows of the exact inverse's error, which costs about as much as five passes.
        samples: Samples to compare with test rows.

    Returns:
        Seconds.
    """
    fine = 4 * max(num_steps, 4)
    row_steps = 2 * fine * val_rows + 1.5 * fine * test_rows + 2 * fine * inversion_rows
    row_steps += 5 * fine * exact_rows + fine * samples
    return seconds_per_row_step * blocks * row_steps
