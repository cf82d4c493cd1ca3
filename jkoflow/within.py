"""The log-densities of a flow within a tolerance in nats: grids are sought on some rows and checked on others."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.callers import warn_caller
from jkoflow.composition import Composition, base_log_prob
from jkoflow.discrete import NotContractiveError
from jkoflow.log_densities import PILOT, LogDensities, pilot_of
from jkoflow.ops.grid import Steps
from jkoflow.tolerance import (
    FINER,
    MOST,
    Exact,
    Grids,
    ToleranceWarning,
    Usual,
    cheapest,
    loosest,
    settled,
    sizes,
    steps_of,
    times,
)

ADAPTING = 1.15
"""Cost of an evaluation with adaptive steps, in those with equal steps."""

ROUNDING_ROWS = 64
"""Number of rows that the rounding of the flow's dtype is measured on."""


class Chosen(NamedTuple):
    """Grids that keep a tolerance, and what is known of them from the pilot's rows."""

    grids: Grids
    """The grid of every block."""
    error: Tensor
    """Sizes of the errors of the pilot's rows on these grids, in the flow's dtype, with shape (M,)."""
    usual: Usual
    """The errors that are usual on these grids."""
    lowest: float
    """Smallest log-density of the pilot's rows; inf if none is finite."""


@torch.no_grad()
def choose(density: LogDensities, pilot: Tensor, exact: Exact, tol: float, adaptive: bool = True) -> Chosen:
    """Chooses the cheapest grids on which every row of the pilot errs by at most a tolerance.

    They have equal steps, or steps of its own for every row, which are cheaper where rows differ in difficulty or the
    velocity changes along the way.

    Arguments:
        density: The log-densities.
        pilot: Numbers of the rows to look at, with shape (M,).
        exact: Their exact log-densities.
        tol: Largest error in nats.
        adaptive: Whether steps may adapt to each row.

    Returns:
        The grids. Where rounding alone errs by more, they are those whose steps err by at most half the tolerance.
    """
    target = exact.values
    finite = torch.isfinite(target)
    lowest = float(target[finite].min()) if bool(finite.any()) else math.inf
    compute, allowed, rounding = density.values, tol, torch.zeros_like(target)
    if not density.is_double:
        hard = exact.error.argsort(descending=True)[:ROUNDING_ROWS]
        off = sizes(density.values(pilot[hard], exact.grids).double(), density.in_float64(pilot[hard], exact.grids))
        if float(off.max()) > tol / 8:  # else it does not disturb the search
            compute, allowed = density.in_float64, max(tol - float(off.max()), tol / 2)
    place = torch.zeros(int(pilot.max()) + 1, dtype=torch.long, device=pilot.device)
    place[pilot] = torch.arange(len(pilot), device=pilot.device)

    def error(rows: Tensor, grids: Grids) -> Tensor:
        expected = target[place[rows]]
        return torch.where(torch.isfinite(expected), compute(rows, grids).double() - expected, 0.0)

    grids, errors = cheapest(error, pilot, exact.grids, exact.error, allowed, density.order)
    if adaptive and grids and density.can_adapt:
        least = 1e-12 if density.is_double or compute != density.values else 1e-7
        own = loosest(error, pilot, len(grids), allowed * 1e-2, least, allowed)
        some = pilot[:ROUNDING_ROWS]
        if own is not None and ADAPTING * density.evaluations(some, own) < density.evaluations(some, grids):
            grids, errors = own, error(pilot, own).abs()
    if not density.is_double:
        some = slice(0, ROUNDING_ROWS)
        rounding = sizes(density.values(pilot[some], grids).double(), density.in_float64(pilot[some], grids))
        if compute != density.values:
            errors = sizes(density.values(pilot, grids).double(), target)
    errors = torch.where(finite, errors, 0.0)
    return Chosen(grids, errors, Usual(most_of(errors), most_of(rounding), density.order), lowest)


def most_of(errors: Tensor) -> float:
    """Returns what nine of ten errors do not exceed; infinite ones do not count."""
    finite = errors[torch.isfinite(errors)]
    return float(finite.quantile(0.9)) if len(finite) else 0.0


def log_prob_within(
    flow: Composition, points: Tensor, context: Tensor | None, tol: float, every_error: bool
) -> tuple[Tensor, Tensor]:
    """Computes log-densities within a tolerance, see `jkoflow.JKOFlow.log_prob`.

    Arguments:
        flow: The flow.
        points: Rows in their own units, with shape (N, d).
        context: Conditioning variables, with shape (N, c).
        tol: Largest error in nats.
        every_error: Whether to check every row.

    Returns:
        The log-densities (N,) and estimates of their errors (N,) in float64, NaN for rows that were not checked.
    """
    count, density = len(points), LogDensities(flow, points, context)
    if count == 0:
        return density.values(torch.arange(0, device=points.device), flow.grids()), points.new_zeros(0).double()
    pilot = pilot_of(count, points.device)
    exact = density.exact(pilot, flow.grids(), tol)
    tracked = [points, *(() if context is None else (context,)), *flow.parameters()]
    has_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tracked)
    if len(pilot) == count and not has_gradient:
        values = exact.values.to(points.dtype)
        errors = exact.change + sizes(values.double(), exact.values) + most_of(exact.change) * 2.0**-density.order
        warn_if_beyond(errors, tol, points.dtype, steps_of(exact.grids) >= MOST)
        return values, errors
    chosen = choose(density, pilot, exact, tol)
    values, errors = log_prob_on(density, chosen, tol, every_error, None if len(pilot) < count else pilot)
    if has_gradient:
        errors[pilot] = chosen.error
    else:
        values[pilot] = exact.values.to(values.dtype)
        errors[pilot] = exact.change
    checked = errors if every_error else torch.cat([chosen.error, errors[others_checked(errors, pilot)]])
    warn_if_beyond(checked, tol, points.dtype, steps_of(chosen.grids) >= MOST, len(checked) < count)
    return values, errors


def others_checked(errors: Tensor, pilot: Tensor) -> Tensor:
    """Returns which rows (N,) beside the pilot's have an estimate of their error."""
    checked = ~torch.isnan(errors)
    checked[pilot] = False
    return checked


def log_prob_on(
    density: LogDensities, chosen: Chosen, tol: float, every_error: bool, checked: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Computes log-densities on chosen grids, and those of rows that need it on finer ones.

    Rows less likely than all that the grids were chosen on may be harder than these: they are refined until they stand
    still, and so is every row if its error is asked for.

    Arguments:
        density: The log-densities.
        chosen: The grids.
        tol: Largest error in nats.
        every_error: Whether to check every row.
        checked: Numbers of rows that need no check, with shape (n,); None if there are none.

    Returns:
        The log-densities (N,) and estimates of their errors (N,) in float64, NaN for rows that were not checked.
    """
    everything = torch.arange(len(density.points), device=density.points.device)
    values = density.values(everything, chosen.grids)
    errors = torch.full((len(values),), math.nan, dtype=torch.float64, device=values.device)
    doubtful = torch.full_like(everything, every_error, dtype=torch.bool)
    doubtful |= ~(values.detach() >= chosen.lowest)
    if checked is not None:
        doubtful[checked] = False
    rows = doubtful.nonzero()[:, 0]
    if len(rows):
        finer, errors[rows] = settled(density.values, rows, values[rows], chosen.grids, tol, chosen.usual)
        values = values.index_copy(0, rows, finer)
    return values, errors


@torch.no_grad()
def error_of(density: LogDensities, values: Tensor, grids: Grids) -> Tensor:
    """Returns estimates (N,) of the errors of log-densities (N,) on given grids: of the steps, and of rounding."""
    rows = torch.arange(len(values), device=values.device)
    if len(rows) == 0:
        return values.new_zeros(0).double()
    change = sizes(density.values(rows, times(grids, FINER)).double(), values.detach().double())
    some = pilot_of(len(rows), values.device)[:ROUNDING_ROWS]
    rounding = 0.0
    if not density.is_double:
        rounding = most_of(sizes(values.detach()[some].double(), density.in_float64(some, grids)))
    usual = Usual(most_of(change), rounding, density.order).refined(FINER)
    return change + usual.steps + usual.rounding


@torch.no_grad()
def grids_within(
    flow: Composition,
    points: Tensor,
    context: Tensor | None,
    tol: float,
    part: bool = False,
    adaptive: bool = True,
) -> Chosen:
    """Returns the cheapest grids that keep a tolerance on rows (N, d), and warns if there are none.

    Arguments:
        flow: The flow.
        points: Rows in their own units, with shape (N, d).
        context: Conditioning variables, with shape (N, c).
        tol: Largest error in nats.
        part: Whether the rows are a part of others, chosen to stand for these, so that each of them is looked at.
        adaptive: Whether steps may adapt to each row.

    Raises:
        ValueError: If there is no row.
    """
    if len(points) == 0:
        raise ValueError("x must have at least one row to choose grids on, got none")
    density = LogDensities(flow, points, context)
    pilot = torch.arange(len(points), device=points.device) if part else pilot_of(len(points), points.device)
    chosen = choose(density, pilot, density.exact(pilot, flow.grids(), tol), tol, adaptive)
    warn_if_beyond(chosen.error, tol, points.dtype, steps_of(chosen.grids) >= MOST, part or len(pilot) < len(points))
    return chosen


@torch.no_grad()
def sampling_grids_within(
    flow: Composition, z: Tensor, context: Tensor | None, tol: float, exact: bool = False, adaptive: bool = True
) -> Grids:
    """Returns grids on which the density that comes with a sample is that of the sample within a tolerance.

    Arguments:
        flow: The flow.
        z: Noise of the samples, with shape (n, d); the first rows are looked at.
        context: Conditioning variables in their own units, with shape (n, c).
        tol: Largest difference, in nats, between the log-density given with a sample and its exact log-density.
        exact: Whether the samples are drawn by the exact inverse.
        adaptive: Whether steps may adapt to each sample, which they do not if ``exact``.

    Returns:
        The grids, with a warning if they do not keep the tolerance.
    """
    z = z[: PILOT[0]]
    context = None if context is None else context[: PILOT[0]]
    if len(z) == 0 or not len(flow.blocks):
        return flow.grids()
    rows = torch.arange(len(z), device=z.device)
    drawn = LogDensities(flow, flow.inverse(z, context, validate=False)[0], context)
    grids = choose(drawn, rows, drawn.exact(rows, flow.grids(), tol), tol, adaptive and not exact).grids
    best: Grids | None = None
    error, reference = torch.full((len(z),), math.inf, dtype=torch.float64), drawn
    for _ in range(6):
        try:
            x, logdet = flow.inverse(z, context, grids, exact, validate=False)
        except NotContractiveError:
            grids = times(grids, 1.5)
            continue
        reference = LogDensities(flow, x, context)
        told = (base_log_prob(z) - logdet).double()
        error = sizes(told, reference.exact(rows, grids, tol).values)
        worst = float(error.max())
        if worst <= tol:
            best = grids
            finer_by = max((worst / tol) ** (1 / reference.order), 0.5)
            fewer = times(grids, finer_by)
            if finer_by > 0.9 or fewer == grids:
                break
            grids = fewer
        elif best is not None or steps_of(grids) >= MOST:
            break
        else:
            grids = times(grids, min(max((1.2 * worst / tol) ** (1 / reference.order), 1.05), 2.0))
    if best is None:
        warn_if_beyond(error, tol, z.dtype, steps_of(grids) >= MOST)
    return grids if best is None else best


def warn_if_beyond(errors: Tensor, tol: float, dtype: torch.dtype, at_most: bool, some: bool = False) -> None:
    """Warns if errors (n,) are beyond a tolerance: by how much, on how many rows, and what to do.

    Arguments:
        errors: Sizes of errors; NaN is no error that is known.
        tol: The tolerance.
        dtype: The flow's dtype.
        at_most: Whether the grid is as fine as it may be, so that the steps are at fault and not the rounding.
        some: Whether only some rows were checked.
    """
    beyond = errors > tol
    if not bool(beyond.any()):
        return
    which = "rows that were checked" if some else "rows"
    found = (
        f"tol={tol:g} is not kept for {int(beyond.sum())} of {len(errors)} {which}: their log-densities are off by up "
        f"to {float(errors.nan_to_num(nan=0.0).max()):.1e} nats"
    )
    if at_most or dtype == torch.float64:
        fix = f"with as many as {MOST} steps per block; ask for a larger tol, or train with guard = true"
    else:
        name = str(dtype).removeprefix("torch.")
        fix = f"by the rounding of {name}; compute with precision='float64' or flow.double(), or ask for a larger tol"
    warn_caller(f"{found}, {fix}", ToleranceWarning)


def check_tolerance(tol: float | None, num_steps: Steps | None = None, discrete: bool = False) -> None:
    """Refuses a tolerance that is no positive number, or that stands beside what contradicts it."""
    if discrete:
        raise ValueError("discrete=True has no error of steps: its density is that of the Runge-Kutta map; drop tol")
    if tol is None:
        return
    if isinstance(tol, bool) or not (isinstance(tol, float | int) and 0 < tol < math.inf):
        raise ValueError(f"tol must be a positive number of nats, got {tol!r}")
    if num_steps is not None:
        raise ValueError(f"tol finds the number of steps: pass either tol or num_steps, got {tol!r} and {num_steps!r}")
