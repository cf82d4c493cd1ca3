"""The integrator guard: notices when a block's likelihood is an artefact of too few steps, and says what to do.

A fixed-step integrator gets exploited: an optimiser finds velocities on which the quadrature of the divergence is wrong
in its favour, and the loss falls without end while the density gets worse. A finer grid tells the difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.metrics import ShareOut, by_itself
from jkoflow.ops.grid import Grid
from jkoflow.tolerance import refinements
from jkoflow.training.chain import Trainable
from jkoflow.training.state import FitCounters

MAX_DAMPINGS = 4
"""Number of times that the guard halves a warm-started block's velocity before it starts the block afresh."""

RESOLVED = 500.0
"""Distance from the origin up to which float32 resolves a sample's NLL to the guard's tolerance."""

RELAX_BELOW = 1 / 8
"""Share of its tolerances below which the guard tries fewer steps: with two thirds a fourth-order method errs 5 times
more."""


class Action(StrEnum):
    """An action that the guard asks of the fit; the history holds the values."""

    KEEP = "kept"
    """Do nothing: the parameters are good."""
    LOWER = "lowered"
    """Take fewer steps: the parameters are good, and fewer steps are enough."""
    RAISE = "raised"
    """Go back to the last good parameters, and take more steps."""
    DAMP = "damped"
    """Halve the velocity that the block was warm-started with, and ask the guard again."""
    RESET = "reset"
    """Start the block afresh."""
    STOP = "stopped"
    """End the block with its best parameters, since it may not have more steps."""


class GuardReading(NamedTuple):
    """Two measures of how much a block's result depends on its integrator."""

    nll_difference: float
    """Mean absolute difference of the samples' NLL between the block's grid and its refinement, in nats."""
    round_trip: float
    """Mean Euclidean distance between x and the end of its way through the block and back, in the units of x."""

    def within(self, nll_tolerance: float, round_trip_tolerance: float) -> bool:
        """Tells whether both numbers are at most their tolerances; False if one is NaN or inf."""
        return self.nll_difference <= nll_tolerance and self.round_trip <= round_trip_tolerance


class Tolerances(NamedTuple):
    """The largest values of a `GuardReading` that the guard allows."""

    nll: float
    """Largest mean absolute difference of the NLL, in nats."""
    round_trip: float
    """Largest mean distance of the round trip, in standardised units."""

    def times(self, factor: float) -> Tolerances:
        """Returns both tolerances multiplied by a factor."""
        return Tolerances(self.nll * factor, self.round_trip * factor)


@dataclass
class Guard:
    """Measures a block on some samples and answers what should be done; changes nothing itself.

    Arguments:
        block: The block, or several in a chain.
        x: Samples that enter the block, with shape (B, d).
        context: Standardised conditioning variables of the samples, with shape (B, c).
        tolerances: The largest readings that are allowed.
        coarsest: The grid that training began with, below which steps are not lowered.
        most_steps: Largest number of Runge-Kutta steps per block.
        may_soften: Whether the velocity may be shortened before the first iteration, where it overshoots on samples
            that it has already moved.
        share_out: What computes the readings of the samples.
    """

    block: Trainable
    x: Tensor
    context: Tensor | None
    tolerances: Tolerances
    coarsest: Grid
    most_steps: int
    may_soften: bool
    share_out: ShareOut = by_itself

    def __post_init__(self) -> None:
        self._dampings = 0

    def read(self) -> GuardReading:
        """Measures how much the block's result depends on its grid."""
        return read_guard(self.block, self.x, self.context, self.share_out)

    def look(self, counters: FitCounters) -> tuple[Action, GuardReading]:
        """Returns what to do at this point of the fit, and the reading that is the reason."""
        reading = self.read()
        if reading.within(*self.tolerances):
            coarser = self._fewer_would_do(reading, counters)
            return (Action.KEEP, reading) if coarser is None else (Action.LOWER, coarser)
        if counters.iteration == 0 and self.may_soften:
            self._dampings += 1
            return (Action.DAMP if self._dampings <= MAX_DAMPINGS else Action.RESET), reading
        affordable = self.block.grid.raised().cost <= self.most_steps
        return (Action.RAISE if affordable else Action.STOP), reading

    def _fewer_would_do(self, reading: GuardReading, counters: FitCounters) -> GuardReading | None:
        """Returns the reading on the next coarser grid if that is enough, else None.

        A velocity is wildest while the learning rate is high, so that fewer steps may be enough later.
        """
        grid = self.block.grid
        waited = counters.iteration - counters.steps_changed
        if grid.cost <= self.coarsest.cost or waited < counters.relax_after:
            return None
        if not reading.within(*self.tolerances.times(RELAX_BELOW)):
            return None
        with tried_on(self.block, grid.lowered()):
            reading = self.read()
        return reading if reading.within(*self.tolerances.times(0.5)) else None


@contextmanager
def tried_on(block: Trainable, grid: Grid) -> Iterator[None]:
    """Gives a block another grid inside a ``with`` statement."""
    before, block.grid = block.grid, grid
    try:
        yield
    finally:
        block.grid = before


def guard_samples(x: Tensor, context: Tensor | None, limit: int) -> tuple[Tensor, Tensor | None]:
    """Returns the first ``limit`` samples of x (N, d) that a guard can read, and their context.

    What lies far out differs between grids by rounding alone, and one such sample would decide the mean.
    """
    resolved = x.square().sum(1) <= RESOLVED**2
    if not bool(resolved[:limit].all()) and bool(resolved.any()):
        x, context = x[resolved], None if context is None else context[resolved]
    return x[:limit], None if context is None else context[:limit]


@torch.no_grad()
def read_guard(
    block: Trainable, x: Tensor, context: Tensor | None = None, share_out: ShareOut = by_itself
) -> GuardReading:
    """Compares a block's results on its grid with those on the refinement of the grid.

    Arguments:
        block: The block, or several in a chain.
        x: Samples that enter the block, with shape (B, d).
        context: Standardised conditioning variables of the samples, with shape (B, c).
        share_out: What computes the readings of the samples.

    Returns:
        The reading, which holds NaN or inf if the block is so broken that a number overflows.
    """

    def differences(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        _, (y, logdet), (fine_y, fine_logdet) = next(refinements(lambda grid: block(x, context, grid), block.grid))
        back = block.carry(y, context, inverse=True)
        difference = 0.5 * (y.square().sum(1) - fine_y.square().sum(1)) - (logdet - fine_logdet)
        return difference.abs(), (back - x).square().sum(1).sqrt()

    # Not a tolerance of single rows: the mean over rows is what an optimiser exploits, and what training has time for.
    difference, distance = share_out(differences, x, context)
    return GuardReading(*torch.stack([difference.mean(), distance.mean()]).tolist())


def guard_tolerances(nll: float, round_trip: float, columns: int) -> Tolerances:
    """Returns the guard's tolerances for rows with a given number of columns.

    Errors of the NLL add up over columns; errors of positions add up as squares.

    Arguments:
        nll: Tolerance of the NLL for rows of up to ten columns, in nats.
        round_trip: Tolerance of the round trip for rows of up to ten columns, in standardised units.
        columns: Number of columns.

    Returns:
        The tolerances of both.

    Example:
        >>> [tuple(guard_tolerances(0.02, 0.02, d)) for d in (2, 10, 40)]
        [(0.02, 0.02), (0.02, 0.02), (0.08, 0.04)]
    """
    factor = max(1.0, columns / 10)
    return Tolerances(nll * factor, round_trip * math.sqrt(factor))
