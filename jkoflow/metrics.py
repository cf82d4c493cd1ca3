"""Measures of a flow: step-converged likelihood, inversion error, movement."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.flow import JKOFlow
from jkoflow.left_out import RowNames, warn_of_left_out
from jkoflow.mapped import gather, is_mapped, parts
from jkoflow.ops.grid import Fixed, Grid, Steps, as_grid, finest
from jkoflow.tolerance import refinements

ROUNDING = 64
"""Units of rounding, as a multiple of a row's NLL, by which the NLL may change without an effect of the steps."""

CHUNK = 10_000
"""Number of rows that go through a flow at once, which bounds the memory whatever the size of the data."""


RowsCall = Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]
"""Function of rows (n, d) and their context (n, c) that returns tensors with one entry for each row."""

ShareOut = Callable[[RowsCall, Tensor, Tensor | None], tuple[Tensor, ...]]
"""Function that returns the tensors of a call for rows (N, d) and their context, such as one that has several processes
compute them."""


def by_itself(call: RowsCall, rows: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    """Returns the tensors of a call, computed here for all rows: the `ShareOut` of a process that shares nothing."""
    return call(rows, context)


class ConvergedNLL(NamedTuple):
    """A negative log-likelihood that no longer depends on the integrator."""

    nll: float
    """Mean NLL of the rows in nats, in the data's own units; NaN if no row has a finite density."""
    stderr: float
    """Standard error of the mean."""
    num_steps: int
    """Runge-Kutta steps per block that the NLL was computed with."""
    converged: bool
    """Whether the last doubling of num_steps moved the NLL by less than the tolerance."""
    change: float
    """Change of the NLL under the last doubling of num_steps, in nats."""
    out_of_time: bool = False
    """Whether doubling ended because there was no time for a finer grid."""
    left_out: int = 0
    """Number of rows that the mean leaves out, since their density is not finite."""
    decisive: int | None = None
    """Index of the row that alone makes most of the last change; None if there is none."""


class InversionError(NamedTuple):
    """Distances between x and inverse(forward(x)), in standardised units."""

    mean: float
    """Mean distance over the rows."""
    maximum: float
    """Largest distance over the rows."""
    stderr: float
    """Standard error of the mean; NaN for a single row."""


class Movement(NamedTuple):
    """The movement of samples in a block."""

    value: float
    """Root mean square distance that the samples travel."""
    stderr: float
    """Standard error of the movement; NaN for a single row, and 0 if nothing moves."""


@torch.no_grad()
def row_nll(
    flow: JKOFlow,
    x: Tensor,
    num_steps: Steps | None = None,
    context: Tensor | None = None,
    share_out: ShareOut = by_itself,
) -> Tensor:
    """Returns the negative log-likelihood of every row in nats, as float64 with shape (N,), see `mean_nll`."""

    def nll(x: Tensor, context: Tensor | None) -> tuple[Tensor]:
        return (torch.cat([-flow.log_prob(*rows, num_steps=num_steps).double() for rows in chunks(x, context)]),)

    return share_out(nll, x, context)[0]


def mean_nll(
    flow: JKOFlow, x: Tensor, num_steps: int | Grid | None = None, context: Tensor | None = None
) -> tuple[float, float]:
    """Computes the mean negative log-likelihood and its standard error, at a given number of Runge-Kutta steps.

    Rows without a finite density are left out, with a `jkoflow.data.DataWarning` that names them.

    Arguments:
        flow: The flow.
        x: Rows in their own units, with shape (N, d).
        num_steps: Runge-Kutta steps per block; None means the calibrated number.
        context: Conditioning variables, with shape (N, c).

    Returns:
        The mean in nats and its standard error (NaN for a single row), accumulated in float64.
    """
    nll = row_nll(flow, x, num_steps, context)
    finite = torch.isfinite(nll)
    warn_of_left_out(flow, x, finite, RowNames())
    return mean_and_stderr(nll[finite])


def mean_and_stderr(values: Tensor) -> tuple[float, float]:
    """Returns the mean of values (N,) and its standard error, NaN where there are too few values."""
    spread = float(values.std()) if len(values) > 1 else math.nan
    return (float(values.mean()) if len(values) else math.nan), spread / math.sqrt(max(len(values), 1))


def step_converged_nll(
    flow: JKOFlow,
    x: Tensor,
    num_steps: int | Grid | None = None,
    tolerance: float = 1e-3,
    max_num_steps: int = 384,
    context: Tensor | None = None,
    affordable: Callable[[Grid], bool] | None = None,
    names: RowNames = RowNames(),  # noqa: B008 (immutable)
    share_out: ShareOut = by_itself,
) -> ConvergedNLL:
    """Computes the mean negative log-likelihood on finer and finer grids until it stands still.

    A fixed-step integrator can flatter the likelihood by any amount; at twice the steps the flattery shows. Rows
    without a finite density are left out, with a `jkoflow.data.DataWarning` that names them.

    Arguments:
        flow: The flow.
        x: Rows in their own units, with shape (N, d).
        num_steps: First number of steps; None means half the calibrated number, or the most any block trained with.
        tolerance: Nats by which the last doubling may move the mean.
        max_num_steps: Largest number of steps.
        context: Conditioning variables, with shape (N, c).
        affordable: Function that tells whether there is time for a grid beyond the first two; None if there always is.
        names: What the rows are called in warnings.
        share_out: What computes the rows' likelihoods.

    Returns:
        The mean on the finer of the last two grids; check ``converged``.

    Raises:
        ValueError: If x is empty or does not fit the flow.

    Example:
        >>> flow = JKOFlow(2)
        >>> step_converged_nll(flow, torch.zeros(10, 2)).converged
        True
    """
    if len(x) == 0:
        raise ValueError("x must have at least one row, got none")
    if num_steps is None:
        num_steps = training_grid(flow) if flow.eval_num_steps is None else Fixed(flow.eval_num_steps).halved()

    def nlls(grid: Grid) -> Tensor:
        return row_nll(flow, x, grid, context, share_out)

    for grid, coarse, fine in refinements(nlls, as_grid(num_steps)):
        change, decisive = _change(coarse, fine, tolerance, float(torch.finfo(x.dtype).eps))
        converged = change < tolerance  # False for NaN
        finer = grid.refined()
        too_fine = finer.cost > max_num_steps
        out_of_time = not converged and not too_fine and affordable is not None and not affordable(finer)
        if converged or too_fine or out_of_time:
            finite = torch.isfinite(fine)
            warn_of_left_out(flow, x, finite, names)
            nll, stderr = mean_and_stderr(fine[finite])
            left_out = len(x) - int(finite.sum())
            return ConvergedNLL(nll, stderr, grid.num_steps, converged, change, out_of_time, left_out, decisive)
    raise AssertionError("refinements have no end")


def _change(coarse: Tensor, fine: Tensor, tolerance: float, eps: float) -> tuple[float, int | None]:
    """Returns the change of the mean of NLLs (N,), and the index of the row that alone makes most of it, if one does.

    Rows that are finite on neither grid do not count; one that is finite on one grid only has moved without bound. Rows
    so far out that their rounding alone would move the mean by more than the tolerance count beyond their rounding.
    """
    finite = torch.isfinite(fine)
    moved = torch.where(finite == torch.isfinite(coarse), fine - coarse, math.inf)
    moved = torch.where(finite | torch.isfinite(coarse), moved, 0.0)
    rounding = ROUNDING * eps * fine.abs()
    unresolved = finite & (rounding > tolerance * len(fine)) & (moved.abs() <= rounding)
    moved = torch.where(unresolved, 0.0, moved)
    if not bool(finite.any()):
        return math.nan, None
    change = abs(float(moved.sum()) / int(finite.sum()))
    sizes = moved.abs().nan_to_num(posinf=1e300)  # several of these are no single row
    largest = int(sizes.argmax())
    alone = len(fine) > 1 and float(sizes[largest]) > float(sizes.sum() - sizes[largest])
    return change, largest if alone else None


def training_grid(flow: JKOFlow) -> Grid:
    """Returns the finest grid that any block of the flow was trained with; a grid of one step without blocks."""
    return finest(block.grid for block in flow.stack)


def calibrate(
    flow: JKOFlow,
    x: Tensor,
    tolerance: float = 1e-3,
    context: Tensor | None = None,
    affordable: Callable[[Grid], bool] | None = None,
    names: RowNames = RowNames(),  # noqa: B008 (immutable)
    share_out: ShareOut = by_itself,
) -> ConvergedNLL:
    """Sets ``flow.eval_num_steps`` to the number of steps at which the NLL of x (N, d) stands still.

    Arguments:
        flow: The flow; it is changed in place.
        x: Validation rows in their own units, with shape (N, d).
        tolerance: Nats by which the last doubling may move the mean.
        context: Conditioning variables, with shape (N, c).
        affordable: Function that tells whether there is time for a grid, see `step_converged_nll`.
        names: What the rows are called in warnings.
        share_out: What computes the rows' likelihoods.

    Returns:
        The step-converged NLL of x.
    """
    grid = training_grid(flow)
    result = step_converged_nll(
        flow, x, grid, tolerance, context=context, affordable=affordable, names=names, share_out=share_out
    )
    flow.eval_num_steps = result.num_steps
    return result


@torch.no_grad()
def inversion_error(
    flow: JKOFlow,
    x: Tensor,
    num_steps: int | None = None,
    exact: bool = False,
    context: Tensor | None = None,
    share_out: ShareOut = by_itself,
) -> InversionError:
    """Measures the distance between rows and their images under the way to the noise and back.

    Arguments:
        flow: The flow.
        x: Rows in their own units, with shape (N, d).
        num_steps: Runge-Kutta steps per block; None means the calibrated number.
        exact: Whether the way back is the exact inverse of the discrete map, see `JKOFlow.inverse`.
        context: Conditioning variables, with shape (N, c).
        share_out: What computes the rows' distances; if exact, it must not divide the rows, since any of them may raise
            the error.

    Returns:
        Mean and largest Euclidean distance in standardised units, ``inf`` if a point does not come back at all, and the
        standard error of the mean.

    Raises:
        jkoflow.discrete.NotContractiveError: If exact and the steps of a block are too coarse to be inverted.
    """

    def distances(x: Tensor, context: Tensor | None) -> tuple[Tensor]:
        found = []
        for rows, conditions in chunks(x, context):
            z = flow.carry(rows, conditions, num_steps)
            if not bool(torch.isfinite(z).all()):
                return (x.new_full((len(x),), math.inf, dtype=torch.float64),)
            if exact:
                back, _ = flow.inverse(z, conditions, num_steps, exact)
            else:
                back = flow.carry(z, conditions, num_steps, inverse=True)
            if flow.links is None:
                way = (back - rows) / flow.standardize.std
            else:
                way = flow.standardized(back)[0] - flow.standardized(rows)[0]
            found.append(way.double().square().sum(1).sqrt())
        return (torch.cat(found),)

    distance = share_out(distances, x, context)[0].nan_to_num(nan=math.inf, posinf=math.inf)
    spread = float(distance.std()) if len(distance) > 1 else math.nan
    return InversionError(float(distance.mean()), float(distance.max()), spread / math.sqrt(len(distance)))


@torch.no_grad()
def mean_log_scale(flow: JKOFlow, x: Tensor) -> float:
    """Computes what the unit of the columns adds to a mean NLL in the data's own units, in nats.

    Arguments:
        flow: The flow.
        x: The rows of the mean, in their own units, with shape (N, d).

    Returns:
        Minus the mean logdet of links and standardisation, over the rows that are inside the bounds of the links. The
        NLL "on standardised columns" is the NLL in the data's own units less this number.
    """
    scale = float(flow.standardize.std.double().log().sum())
    if flow.links is None:
        return scale
    logdet = torch.cat([flow.links(rows)[1].double() for rows in x.split(CHUNK)])
    inside = logdet[torch.isfinite(logdet)]
    return scale - float(inside.mean()) if len(inside) else scale


def chunks(x: Tensor, context: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields rows (N, d) with their context (N, c), in pieces that bound the memory."""
    contexts = itertools.repeat(None) if context is None else parts(context, CHUNK)
    yield from zip(parts(x, CHUNK), contexts, strict=context is not None)  # there is no end of no context


def spread_rows(x: Tensor, limit: int) -> Tensor:
    """Returns at most ``limit`` evenly spread rows of x (N, d); in sorted files the first rows would mislead."""
    return x if len(x) <= limit else gather(x, spread_numbers(len(x), limit))


def spread_numbers(count: int, limit: int) -> Tensor:
    """Returns at most ``limit`` evenly spread numbers from 0 to ``count`` - 1, as integers."""
    if count <= limit:
        return torch.arange(count)
    return torch.linspace(0, count - 1, limit, dtype=torch.float64).long()


def movement(x: Tensor, y: Tensor, sums: Callable[[Sequence[float]], Sequence[float]] | None = None) -> Movement:
    r"""Returns the root mean square distance of points x and y (N, d), the arc length :math:`\sqrt{E |y - x|^2}`.

    The standard error is derived from that of the mean square. If other processes hold other points, ``sums`` returns
    the sums of numbers over all processes.
    """
    if sums is None:
        count, (mean, spread) = len(x), _mean_and_deviation(x, y)
    else:
        squares = (y - x).double().square().sum(1)
        count, total = sums([len(squares), float(squares.sum())])
        mean = total / count
        (deviations,) = sums([float((squares - mean).square().sum())])
        spread = math.sqrt(deviations / max(count - 1, 1))
    value = math.sqrt(mean)
    if count < 2:
        return Movement(value, math.nan)
    error = spread / math.sqrt(count)
    return Movement(value, error / (2 * value) if value > 0 else 0.0)


def _mean_and_deviation(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Returns mean and standard deviation of the squared distances of points x and y (N, d)."""
    if not is_mapped(x):
        squares = (y - x).double().square().sum(1)
        return float(squares.mean()), float(squares.std()) if len(squares) > 1 else math.nan
    count, mean, about = 0, 0.0, 0.0  # merged as Chan, Golub and LeVeque do
    for before, after in zip(parts(x, CHUNK), parts(y, CHUNK), strict=True):
        squares = (after - before).double().square().sum(1)
        away, total = float(squares.mean()) - mean, count + len(squares)
        about += float((squares - squares.mean()).square().sum()) + away**2 * count * len(squares) / total
        mean, count = mean + away * len(squares) / total, total
    return mean, math.sqrt(about / max(count - 1, 1))


def bits_per_dim(nats: float, dim: int) -> float:
    """Converts a negative log-likelihood per row, or its standard error, from nats to bits per column.

    Example:
        >>> bits_per_dim(4 * math.log(2), 2)
        2.0
    """
    return nats / (dim * math.log(2))
