"""A tolerance in nats: values on finer and finer grids, and the cheapest grid on which no row errs by more.

Nothing here knows of flows: values are a function of rows, by their numbers, and of a grid for each block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from jkoflow.ops.failure import IntegrationError
from jkoflow.ops.grid import Adaptive, AnyGrid, Fixed

T = TypeVar("T")

Grids = tuple[AnyGrid, ...]
"""A grid for each block."""

Values = Callable[[Tensor, Grids], Tensor]
"""Function of numbers of rows (n,) and of grids that returns the rows' values (n,)."""

MOST = 2048
"""Largest number of Runge-Kutta steps per block that a tolerance is sought with."""

PROBE = 32
"""Number of rows that the first guess of a grid, and the share of each block, are taken from."""

FINER = 1.5
"""Ratio of the numbers of steps by which a single row is refined."""

NEAR = 1.04
"""Ratio of the numbers of steps between which no better grid is looked for."""

LOOSEST = 1.0
"""Largest tolerance of a step that is tried."""

LOOSER = 1.3
"""Ratio of the tolerances of a step between which no better one is looked for: 5 % of the evaluations."""

LONGEST_SEARCH = 24
"""Number of grids at which a search ends; some eight are usual."""


class ToleranceWarning(UserWarning):
    """Told if a tolerance in nats is not kept, with the error that was reached, on how many rows, and the fix."""


def refinements(values: Callable[[Fixed], T], grid: Fixed) -> Iterator[tuple[Fixed, T, T]]:
    """Yields a finer grid, with the values on the grid before it and those on it, without end.

    This is the one comparison that tells whether a result depends on the integrator: of a mean over rows in an
    evaluation, of a block on some samples for the guard of the training.

    Example:
        >>> next(refinements(lambda grid: 1 / grid.num_steps, jkoflow.ops.Fixed(2)))
        (Fixed(num_steps=4), 0.5, 0.25)
    """
    coarse = values(grid)
    while True:
        grid = grid.refined()
        fine = values(grid)
        yield grid, coarse, fine
        coarse = fine


class Exact(NamedTuple):
    """Values that stand still within a tolerance, with what they change by on the way there."""

    values: Tensor
    """Values on a grid that is fine enough, row by row, with shape (n,)."""
    change: Tensor
    """Size of the last change of every row, with shape (n,), which is more than what its value is still off by."""
    grids: Grids
    """The first grid that all rows were integrated on."""
    error: Tensor
    """Size of the errors on that first grid, with shape (n,)."""


class Usual(NamedTuple):
    """Errors that nine of ten rows do not exceed."""

    steps: float
    """Error of the steps."""
    rounding: float
    """Error of rounding."""
    order: int
    """Order of the methods, by which the error of the steps falls."""

    def refined(self, factor: float) -> Usual:
        """Returns the errors of ``factor`` times the steps."""
        return Usual(self.steps * factor**-self.order, self.rounding, self.order)


def sizes(one: Tensor, other: Tensor) -> Tensor:
    """Returns the size of differences (n,): 0 where neither value is finite, inf where only one is."""
    both = torch.isfinite(one) & torch.isfinite(other)
    neither = ~torch.isfinite(one) & ~torch.isfinite(other)
    return torch.where(both, (one - other).abs(), torch.where(neither, 0.0, math.inf))


def exact_values(values: Values, rows: Tensor, start: Grids, tol: float, order: int) -> Exact:
    """Computes values on finer and finer grids until each row stands still within a tolerance, or `MOST` steps.

    Arguments:
        values: Function of the values, in float64 and by methods of at least this order.
        rows: Numbers of the rows, in no particular order, with shape (n,).
        start: Grids to begin with; where they are far from what the tolerance needs, others are taken.
        tol: Largest change of a value under a refinement.
        order: Order of the methods.

    Returns:
        The values; where ``change`` is more than the tolerance, it was not reached.
    """
    grids = _first_guess(values, rows[:PROBE], start, tol, order)
    coarse, finer = values(rows, grids), refined(grids)
    fine = values(rows, finer)
    change = sizes(fine, coarse)
    pending = (change > tol).nonzero()[:, 0]
    while len(pending) and steps_of(refined(finer)) <= MOST:
        finer = refined(finer)
        new = values(rows[pending], finer)
        change[pending] = sizes(new, fine[pending])
        fine[pending] = new
        pending = pending[change[pending] > tol]
    return Exact(fine, change, grids, sizes(fine, coarse))


def _first_guess(values: Values, rows: Tensor, start: Grids, tol: float, order: int) -> Grids:
    """Returns grids, of the proportions of ``start``, on which a few rows err by about half the tolerance."""
    grids = start
    for _ in range(3):
        worst = float(sizes(values(rows, grids), values(rows, refined(grids))).max())
        if tol / 4 <= worst <= tol:
            break
        factor = min(max((2 * worst / tol) ** (1 / order), 1 / 4), 4.0)
        guess = times(grids, min(factor, MOST / (2 * max(steps_of(grids), 1))))
        if guess == grids:
            break
        grids = guess
    return grids


def cheapest(error: Values, rows: Tensor, start: Grids, found: Tensor, tol: float, order: int) -> tuple[Grids, Tensor]:
    """Finds the fewest steps of each block with which no row errs by more than a tolerance.

    The rows that err most decide; all are looked at before grids are taken. The proportion of the blocks' numbers, by
    which the last step of each brings equally much, is measured on the first grids, and once more where these led to.

    Arguments:
        error: Function of the errors.
        rows: Numbers of the rows, with shape (n,).
        start: Grids whose errors are known.
        found: Sizes of the errors on these, with shape (n,).
        tol: Largest error that is allowed.
        order: Order of the methods.

    Returns:
        The grids and the sizes of the errors on them, with shape (n,): of `MOST` steps if these are not enough, and
        ``start`` without blocks.
    """
    if not start:
        return start, found
    ranked = found.argsort(descending=True)
    hard = ranked[: max(PROBE, len(rows) // 4)]
    grids = start
    while True:
        worst = float(_largest(error(rows[hard], grids)))
        for again in range(2 if len(start) > 1 else 1):
            shares = _shares(error, rows[hard[:PROBE]], grids, order)
            other, reached = _along(shares, error, rows[hard], grids, worst, tol, order)
            if not again or (reached <= tol and cost_of(other) < cost_of(grids)):
                grids, worst = other, reached
        errors = _sizes(error(rows, grids))
        beyond = (errors > tol).nonzero()[:, 0]
        new = beyond[~torch.isin(beyond, hard)]
        if not len(new):
            return grids, errors
        hard = torch.cat([new[errors[new].argsort(descending=True)], hard])


def _along(
    shares: list[float], error: Values, rows: Tensor, start: Grids, found: float, tol: float, order: int
) -> tuple[Grids, float]:
    """Returns the cheapest grids of a proportion that keep a tolerance on all of some rows, and the largest error.

    How many steps are needed is guessed by the order of the method, and then found between too few and enough.
    """

    def grids_at(steps: float) -> Grids:
        return tuple(Fixed(max(1, math.ceil(steps * share - 1e-9))) for share in shares)

    low, high = (0.0, math.inf), (math.inf, 0.0)  # numbers of steps that are too few, and enough, with their errors
    steps = float(steps_of(start)) * _factor(found, tol, order)
    for _ in range(LONGEST_SEARCH):
        steps = min(steps, float(MOST))
        worst = float(_largest(error(rows, grids_at(steps))))
        if worst <= tol:
            high = steps, worst
        else:
            low = steps, worst
        if low[0] >= MOST:
            return grids_at(MOST), worst
        steps = _next_steps(low, high, tol, order)
        known = [grids_at(edge) for edge in (low[0], high[0]) if 0 < edge < math.inf]
        if high[0] <= NEAR * low[0] or (grids_at(steps) in known and math.isfinite(high[0])):
            break
        if grids_at(steps) in known:
            steps = low[0] + 1
    return grids_at(min(high[0], MOST)), high[1]


def loosest(error: Values, rows: Tensor, blocks: int, start: float, least: float, tol: float) -> Grids | None:
    """Finds the adaptive grid of the largest tolerances, the same in all blocks, with which no row errs by more.

    Arguments:
        error: Function of the errors.
        rows: Numbers of the rows, with shape (n,).
        blocks: Number of blocks.
        start: Tolerance of a step to begin with.
        least: Smallest tolerance of a step that is tried.
        tol: Largest error that is allowed.

    Returns:
        The grids; None if there are none, or a row does not come to its end.
    """

    def grids_at(step_tol: float) -> Grids:
        return (Adaptive(step_tol, step_tol),) * blocks

    low, high = least, math.inf  # what is strict enough, and what is too loose
    found, step_tol = False, start
    for _ in range(LONGEST_SEARCH):
        try:
            worst = float(_largest(error(rows, grids_at(step_tol))))
        except IntegrationError:
            return None
        if worst <= tol:
            low, found = step_tol, True
        else:
            high = step_tol
        if high <= LOOSER * low or step_tol <= least or low >= LOOSEST:
            break
        step_tol *= min(max(0.9 * tol / max(worst, tol / 1e6), 1e-2), 1e2)  # errors go with the tolerance of a step
        if not low < step_tol < high:
            step_tol = math.sqrt(low * high)
        step_tol = min(max(step_tol, least), LOOSEST)
    return grids_at(low) if found else None


def _next_steps(low: tuple[float, float], high: tuple[float, float], tol: float, order: int) -> float:
    """Returns the number of steps to try next, between what was too few and what was enough."""
    if not math.isfinite(high[0]):
        return low[0] * max(1.02 * _factor(low[1], tol, order), 1.05)
    if low[0] == 0:
        return high[0] * min(0.99 * _factor(high[1], tol, order), 0.95)
    span = math.log(high[0] / low[0])
    part = 0.5
    if math.isfinite(low[1]) and high[1] > 0:
        part = math.log(low[1] / tol) / math.log(low[1] / high[1])
    return low[0] * math.exp(span * min(max(part, 0.2), 0.8))


def _factor(error: float, tol: float, order: int) -> float:
    """Returns how many times the steps a method of some order needs to bring an error to the tolerance."""
    return min(max((error / tol) ** (1 / order), 0.5), 2.0)


def _shares(error: Values, rows: Tensor, grids: Grids, order: int) -> list[float]:
    """Returns how many steps each block needs, relative to the one that needs the most.

    With errors c_k / n_k^p that add up, the sum of n_k is least for n_k ~ c_k^(1 / (p + 1)).
    """
    if len(grids) == 1:
        return [1.0]
    coarse = error(rows, grids)
    needs = []
    for place, grid in enumerate(grids):
        finer = (*grids[:place], grid.refined(), *grids[place + 1 :])
        change = float(_largest(error(rows, finer) - coarse))
        needs.append((change * float(grid.cost) ** order) ** (1 / (order + 1)))
    most = max(needs)
    if not 0 < most < math.inf:
        return [grid.cost / steps_of(grids) for grid in grids]
    return [need / most for need in needs]


def _largest(errors: Tensor) -> Tensor:
    """Returns the size of the largest of errors (n,); what is no number is infinitely large."""
    return _sizes(errors).max()


def _sizes(errors: Tensor) -> Tensor:
    return errors.abs().nan_to_num(nan=math.inf, posinf=math.inf)


def settled(
    values: Values, rows: Tensor, found: Tensor, grids: Grids, tol: float, usual: Usual
) -> tuple[Tensor, Tensor]:
    """Refines rows one by one until each stands still within a tolerance, or moves by rounding alone.

    Arguments:
        values: Function of the values, which may have gradients.
        rows: Numbers of the rows, with shape (n,).
        found: Their values on some grids, with shape (n,).
        grids: These grids.
        tol: Largest error that is allowed.
        usual: Errors that are usual on these grids.

    Returns:
        The values (n,) on grids of one and a half times the steps at least, and estimates (n,) of their errors: the
        last change of each, which is the error of the coarser grid, and what is usual on the finer one: a row may stand
        still by accident.
    """
    error = torch.full((len(rows),), math.inf, dtype=torch.float64, device=found.device)
    changes = error.clone()
    pending = torch.arange(len(rows), device=found.device)
    while len(pending) and 0 < steps_of(grids) < MOST:
        grids = times(grids, FINER)
        usual = usual.refined(FINER)
        fine = values(rows[pending], grids)
        change = sizes(fine.detach().double(), found.detach().double()[pending])
        found = found.index_copy(0, pending, fine)
        moves = change > 2 * usual.rounding
        moves &= change < changes[pending] / FINER  # else it is the rounding of a row that is worse off than others
        changes[pending] = change
        error[pending] = change + usual.steps + usual.rounding
        pending = pending[(error[pending] > tol) & moves]
    if not grids:
        error.zero_()
    return found, error


def refined(grids: Grids) -> Grids:
    """Returns grids of twice the steps in every block."""
    return tuple(grid.refined() for grid in grids)


def times(grids: Grids, factor: float) -> Grids:
    """Returns grids of ``factor`` times the steps in every block, rounded up."""
    return tuple(grid.times(factor) for grid in grids)


def cost_of(grids: Grids) -> int:
    """Returns the cost of a row in all blocks together."""
    return sum(grid.cost for grid in grids)


def steps_of(grids: Grids) -> int:
    """Returns the largest number of steps that a block takes; 0 without blocks."""
    return max((grid.cost for grid in grids), default=0)
