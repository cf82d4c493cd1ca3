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
