"""The plans of how a time budget is spent, as functions of numbers.

Nothing here measures, trains or remembers anything. A fit measures its `Costs`, the trainer describes the `Outlook`,
and both act on the plans that are returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jkoflow.ops.grid import Fixed, Grid, finest

EVALUATION_SHARE = 0.2
"""Share of a time budget that may be set aside to score more than `LEAST_TEST_ROWS` test rows."""

MOST_RESERVED = 0.4
"""Largest share of a time budget that is set aside for the evaluation, which can use fewer rows as training cannot."""

PLANS_SHARE = 0.02
"""Share of a time budget that is kept free, since plans are off by about that much."""

LEAST_TEST_ROWS = 10_000
"""Number of test rows that time is always set aside for; all if there are fewer."""

SLACK_SHARE, SLACK_SECONDS = 0.05, 1.0
"""Share of a time budget, and seconds, that an evaluation may take beyond it rather than look at fewer rows than
`LEAST_TEST_ROWS` or stop before it has converged."""

TOLERATED_SHARE, TOLERATED_SECONDS = 0.1, 2.0
"""Share of a time budget, and seconds, by which a run may exceed it without a word."""

FEWEST_ROWS = 500
"""Smallest number of rows for every part of an evaluation, however little time is left; all if there are fewer."""

PUSH_SHARE = 0.1
"""Share of a block's time that pushing the training rows through it may take; other rows are left behind."""

LEAST_PUSHED = 10_000
"""Smallest number of training rows that are pushed on; later blocks would learn fewer rows by heart."""

DIVIDED_SHARE = 0.7
"""Share of the training after a single block has been divided."""

DIVIDED_AT_ONCE = 0.98
"""The same where rows have no details that a block by itself would have to find first."""

FINE, COARSE = 4.0, 1.5
"""Scales of the first layer (`jkoflow.training.first_layer`) above which rows are said to have fine details, and below
which they are said to have none."""

FIRST_WIDTH, LEAST_WIDTH, MOST_WIDTH = 128, 64, 256
"""Width of the hidden layers whose speed is measured, and the least and largest that a plan may have; the CUDA kernels
have no wider ones."""

WIDTH_STEP = 32
"""Widths are multiples of this, which the kernels' tiles are filled by."""

FIRST_WIDTH_ITERATIONS = 1000
"""Iterations in which `FIRST_WIDTH` learns most (docs/sweep.md)."""

LEAST_TO_DIVIDE, LEAST_FOR_FOUR = 500, 4000
"""Smallest numbers of iterations for which a single block is divided, and for which one without details is divided in
four."""

VALIDATION_SHARE = 0.05
"""Share of a block's time that validations may take under a time budget; if they take more, they become rarer."""


@dataclass(frozen=True)
class Budget:
    """A limit of time for the whole of a run.

    Arguments:
        clock: A function that returns the seconds into the run.
        seconds: The limit, in seconds.
    """

    clock: Callable[[], float]
    seconds: float

    def left(self) -> float:
        """Returns the seconds that are left; negative beyond the limit."""
        return self.seconds - self.clock()

    def is_overrun(self) -> bool:
        """Tells whether more than the limit has passed, by a tenth and two seconds."""
        return -self.left() > TOLERATED_SHARE * self.seconds + TOLERATED_SECONDS

    def left_with_slack(self) -> float:
        """Returns the seconds that are left, with the slack that only an evaluation may use."""
        return self.left() + SLACK_SHARE * self.seconds + SLACK_SECONDS


class Costs(NamedTuple):
    """The times that a fit has measured of its own parts, in seconds."""

    iteration: float
    """Seconds of one iteration, with its share of the guard's."""
    validation: float
    """Seconds of one validation."""
    row_step: float
    """Seconds of one step of one row, logdet included."""
    row_carry: float
    """Seconds of one step of one row without the logdet."""


class RunPlan(NamedTuple):
    """The blocks of a run and the share of its fine-tuning."""

    blocks: int
    """Largest number of blocks."""
    finetune: float
    """Share of the training that goes to fine-tuning."""
    divide: int
    """Number of blocks that every block is divided into before the fine-tuning."""
    width: int = FIRST_WIDTH
    """Width of the hidden layers, where the settings do not have any."""


class FitPlan(NamedTuple):
    """The plan of how a fit spends its share of the time."""

    validate_every: int
    """Iterations between two looks at the validation loss."""
    iteration_seconds: float
    """Expected seconds of an iteration, guard and validation included."""


class PushPlan(NamedTuple):
    """The plan of which samples a fit pushes on at its end."""

    kept_rows: int
    """Number of training rows that are pushed on."""
    seconds: float
    """Expected seconds to push these rows and the validation rows through the block."""


class EvaluationRows(NamedTuple):
    """Number of rows for each part of the evaluation."""

    val: int
    """Validation rows of the calibration."""
    test: int
    """Test rows of the test NLL."""
    inversion: int
    """Test rows of the inversion error."""
    exact: int
    """Test rows of the exact inverse's error."""
    samples: int
    """Number of samples that are compared with as many test rows."""

    def within(self, most: int) -> EvaluationRows:
        """Returns the numbers with at most ``most`` test rows for every part; the calibration has validation rows."""
        return EvaluationRows(self.val, *(min(rows, most) for rows in self[1:]))

    def scaled(self, share: float) -> EvaluationRows:
        """Returns the numbers with a share of the test rows for every part, at least `FEWEST_ROWS`."""
        return EvaluationRows(self.val, *(min(rows, max(int(share * rows), FEWEST_ROWS)) for rows in self[1:]))

    def calibrated(self) -> EvaluationRows:
        """Returns the numbers that are left after the calibration, whose rows become 0."""
        return self._replace(val=0)


@dataclass(frozen=True)
class Outlook:
    """The work of a run from the beginning of a fit on, as the trainer describes it."""

    round_blocks: int
    """Number of blocks of the present round; the chain of fine-tuning counts as one."""
    blocks_left: int
    """Number of blocks of the present round that are still to train, this one included."""
    later_rounds: int
    """Number of rounds of single blocks after the present one."""
    children: int
    """Number of blocks that every block will be divided into."""
    grid: Grid
    """The finest grid of any block so far."""
    finetune: float
    """Share of the training for fine-tuning."""
    divide: int
    """Number of blocks that every block is divided into before the fine-tuning."""
    rows: EvaluationRows
    """Numbers of rows that the evaluation looks at when time is not short."""


def plan_run(
    seconds: float,
    rounds: int,
    iteration_seconds: float,
    most_blocks: int,
    given_blocks: int | None,
    free: bool,
    scale: float,
) -> RunPlan:
    """Plans blocks and fine-tuning from the measured speed of the first block.

    A single free block gives the best likelihood for the time. It is divided in two before half of the time has passed
    and trained on as a chain: the first iterations cost one network, the later ones have two, and nothing has to be
    learned twice. Rows with fine details need Runge-Kutta steps more than a second network, so that their block stays
    whole; for rows without details one step does for each of two networks, or of four, which are trained from the
    beginning (docs/sweep.md). Where a number of blocks is asked for, or later rounds train every block again, the
    chain is built block by block, and trained together where there is time.

    Arguments:
        seconds: Seconds that the budget has left.
        rounds: Rounds of single blocks that will share them.
        iteration_seconds: Expected time of an iteration of the first block.
        most_blocks: Largest number of blocks.
        given_blocks: The number that was asked for; None if the plan may choose.
        free: Whether a block without movement penalty may end the chain.
        scale: Scale of the first layer, which tells how fine the details are that the rows can have.
    """
    iterations = max(seconds, 0.0) / rounds / max(iteration_seconds, 1e-9)
    if given_blocks is None and free and rounds == 1:
        width = width_within(iterations)
        if iterations < LEAST_TO_DIVIDE or scale > FINE:
            return RunPlan(1, 0.0, 1, width)
        if scale >= COARSE:
            return RunPlan(1, DIVIDED_SHARE, 2, width)
        return RunPlan(1, DIVIDED_AT_ONCE, 4 if iterations >= LEAST_FOR_FOUR else 2, width)
    blocks = blocks_within(iterations, most_blocks) if given_blocks is None else given_blocks
    return RunPlan(blocks, finetune_share(iterations), 1)


def width_within(iterations: float) -> int:
    r"""Returns the width of hidden layers that a time budget is enough for, :math:`128 (N / 1000)^{1/4}`.

    An iteration takes as long as the square of the width, so that twice the time makes for wider layers and for more
    iterations alike. Wider layers are not only likelier: their velocities take fewer Runge-Kutta steps (docs/sweep.md).

    Arguments:
        iterations: Iterations N of a single block of `FIRST_WIDTH` that the budget has time for.

    Returns:
        The width, a multiple of `WIDTH_STEP` from `LEAST_WIDTH` to `MOST_WIDTH`.

    Example:
        >>> [width_within(n) for n in (100, 1000, 5000, 100_000)]
        [64, 128, 192, 256]
    """
    width = FIRST_WIDTH * (iterations / FIRST_WIDTH_ITERATIONS) ** 0.25
    return min(MOST_WIDTH, max(LEAST_WIDTH, WIDTH_STEP * round(width / WIDTH_STEP)))


def plan_fit(costs: Costs, validate_every: int) -> FitPlan:
    """Plans how often a fit validates, at least ``validate_every`` iterations apart."""
    affordable = math.ceil((1 / VALIDATION_SHARE - 1) * costs.validation / max(costs.iteration, 1e-9))
    every = max(validate_every, affordable)
    return FitPlan(every, costs.iteration + costs.validation / every)


def plan_push(
    seconds: float,
    grid: Grid,
    row_step: float,
    row_carry: float,
    train_rows: int,
    val_rows: int,
    batch_size: int,
    last: bool,
) -> PushPlan:
    """Plans how many training rows are pushed through a finished block.

    Rows that a later block has no time to look at, or that no block follows for, need not be carried on.

    Arguments:
        seconds: Seconds that the block may take.
        grid: The block's grid.
        row_step: Measured seconds of one step of one row.
        row_carry: Measured seconds of one step of one row without the logdet.
        train_rows: Number of training rows.
        val_rows: Number of validation rows, all of which are pushed on.
        batch_size: Rows of a batch, the smallest number of training rows that can be pushed on.
        last: Whether no block follows, so that the rows only tell how far they have moved.
    """
    steps = grid.refined().cost
    affordable = 0 if last else int(PUSH_SHARE * seconds / max(steps * row_carry, 1e-12))
    kept = min(train_rows, max(affordable, LEAST_PUSHED, batch_size))
    return PushPlan(kept, steps * (row_carry * kept + row_step * val_rows))


def seconds_for_fit(budget: float, started: float, outlook: Outlook, row_step: float) -> float:
    """Returns a fit's share of a time budget: all rounds get equal parts, and so do all blocks of a round.

    Arguments:
        budget: Seconds for the whole run.
        started: Seconds into the run at which the fit began.
        outlook: The work of the run from then on.
        row_step: Measured seconds of one step of one row.
    """
    divided = outlook.divide if outlook.finetune else 1
    blocks = outlook.round_blocks * outlook.children
    grid = outlook.grid.split(outlook.children)  # the children of a refinement to come share their parents' steps

    def evaluation(most: int) -> float:
        return row_step * blocks * evaluation_work(expected_grid(grid), outlook.rows.within(most))

    everything, least = evaluation(outlook.rows.test), evaluation(LEAST_TEST_ROWS)
    wanted = min(everything, max(least, EVALUATION_SHARE * budget))
    reserve = min(wanted, MOST_RESERVED * budget) + PLANS_SHARE * budget
    if blocks * divided > 1:
        reserve += outlook.finetune * max(budget - reserve, 0.0)
    fits = outlook.blocks_left + outlook.round_blocks * outlook.later_rounds
    return seconds_for_block(budget, started, reserve, fits)


def seconds_for_block(budget: float, elapsed: float, reserve: float, blocks_left: int) -> float:
    """Returns a block's share of the time that is left when it begins: equal parts for the blocks still to train.

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


def iterations_within(seconds: float, seconds_per_iteration: float, least: int = 1) -> int:
    """Returns the number of iterations that fit into a time, never fewer than ``least``."""
    return max(least, int(seconds / max(seconds_per_iteration, 1e-9)))


def expected_grid(grid: Grid) -> Grid:
    """Returns the grid that the evaluation is expected to need, given the finest grid of the training.

    Step-converged numbers need about two refinements of that grid, and some block will take four steps in the end.
    """
    return finest([grid, Fixed(4)]).refined().refined()


def evaluation_work(grid: Grid, rows: EvaluationRows) -> float:
    """Returns the work of an evaluation that ends on a grid, in steps of one row through one block.

    The calibration takes all grids up to that one. The test rows take the last two, and the inversion error a pass
    forward and one back; an exact inverse costs about as much as five passes.
    """
    passes = 2 * rows.val + 1.5 * rows.test + 2 * rows.inversion + 5 * rows.exact + rows.samples
    return grid.cost * passes


def plan_evaluation(rows: EvaluationRows, grid: Grid, seconds: float, slack: float, row_step: float) -> EvaluationRows:
    """Plans how many rows the rest of an evaluation looks at, after its calibration has ended on a grid.

    Time that is short costs test rows first, down to `LEAST_TEST_ROWS`, and then rows of every part.

    Arguments:
        rows: Numbers of rows that it looks at when time is not short.
        grid: The grid on which the calibration has ended.
        seconds: Seconds that are left.
        slack: Seconds that it may take beyond these at most.
        row_step: Measured seconds of one step of one row through all blocks.
    """

    def needed(rows: EvaluationRows) -> float:
        return row_step * evaluation_work(grid, rows.calibrated())

    if needed(rows) <= seconds:
        return rows
    others = needed(rows._replace(test=0))
    test = int(rows.test * (seconds - others) / max(needed(rows) - others, 1e-12))
    if test >= LEAST_TEST_ROWS:
        return rows._replace(test=test)
    least = rows.within(LEAST_TEST_ROWS)
    return least.scaled(min(1.0, max(seconds + slack, 0.0) / max(needed(least), 1e-12)))
