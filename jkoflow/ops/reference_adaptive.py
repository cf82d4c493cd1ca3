"""The readable PyTorch twin of the adaptive kernels: steps of its own for every row, or the same for all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.ops.embedded import EmbeddedMethod
from jkoflow.ops.extension import UnsupportedError
from jkoflow.ops.failure import IntegrationError
from jkoflow.ops.grid import Adaptive
from jkoflow.ops.reference import RightHandSide
from jkoflow.ops.transforms import batched

_SAFETY = 0.9


class AdaptiveResult(NamedTuple):
    """The result of `integrate_adaptively`."""

    x: Tensor
    """x at t1, with shape (B, d)."""
    logdet: Tensor
    """Integral of the divergence, with shape (B,)."""
    x_outputs: Tensor
    """x at the output times, with shape (T, B, d)."""
    logdet_outputs: Tensor
    """Integral of the divergence up to the output times, with shape (T, B)."""
    evaluations: Tensor
    """Evaluations of the right-hand side for each row, int64 with shape (B,)."""


class Slopes(NamedTuple):
    """The derivatives of x and of logdet at the stages of a step, (stages, B, d) and (stages, B)."""

    velocity: list[Tensor]
    divergence: list[Tensor]

    def combine(self, weights: tuple[float, ...] | list[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the weighted sums; weights are numbers, or tensors (B,)."""
        x, logdet = torch.zeros_like(self.velocity[0]), torch.zeros_like(self.divergence[0])
        for weight, velocity, divergence in zip(weights, self.velocity, self.divergence, strict=False):
            if isinstance(weight, Tensor):
                x, logdet = x + weight.unsqueeze(1) * velocity, logdet + weight * divergence
            elif weight != 0.0:
                x, logdet = x + weight * velocity, logdet + weight * divergence
        return x, logdet


class ErrorSize:
    """The size of errors relative to the tolerances: the root mean square over x and logdet, row by row or of all."""

    def __init__(self, grid: Adaptive, has_logdet: bool, common: bool) -> None:
        self._grid, self._has_logdet, self._common = grid, has_logdet, common

    def size(self, error: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> Tensor:
        """Returns sizes (B,) of errors of x (B, d) and logdet (B,), to the scale of their values around the step."""
        columns = []
        for value, first, last in zip(error, before, after, strict=True):
            scale = self._grid.atol + self._grid.rtol * torch.maximum(first.abs(), last.abs()).double()
            columns.append((value.double() / scale).square().reshape(len(value), -1))
        squares = torch.cat(columns if self._has_logdet else columns[:1], dim=1).mean(1)
        return squares.mean().expand_as(squares).sqrt() if self._common else squares.sqrt()


def integrate_adaptively(
    rhs: RightHandSide,
    x: Tensor,
    t0: float,
    t1: float,
    grid: Adaptive,
    method: EmbeddedMethod,
    output_times: Tensor,
    has_logdet: bool = True,
    common: bool = False,
) -> AdaptiveResult:
    r"""Integrates dx/dt and the divergence with an embedded method whose steps follow the error.

    The error of a step is the root mean square, over the columns of x and logdet, of its estimate over
    :math:`\mathrm{atol} + \mathrm{rtol} \max(|y_0|, |y_1|)`; the next step comes from this error and the last one
    (proportional and integral control). Steps are constants to autograd.

    Arguments:
        rhs: The right-hand side, called with times (B,).
        x: Positions at t0, with shape (B, d).
        t0: Start time.
        t1: End time.
        grid: Tolerances and the largest number of steps.
        method: The embedded method.
        output_times: Times strictly between t0 and t1 in their direction, float64 with shape (T,).
        has_logdet: Whether the divergence is integrated, so that its error counts.
        common: Whether all rows take the same steps, which follow the error over the whole batch.

    Raises:
        IntegrationError: If a row does not reach t1.

    References:
        | Solving Ordinary Differential Equations I, section II.4 (Hairer, Norsett and Wanner, 1993)
        | https://doi.org/10.1007/978-3-540-78862-1
    """
    if batched(x):
        raise UnsupportedError(
            "torch.func.vmap cannot batch adaptive steps of PyTorch's operations, whose number depends on the rows",
            "pass num_steps for equal steps, or all rows at once as x (B, d), which step one by one anyway",
        )
    batch = len(x)
    error_of = ErrorSize(grid, has_logdet, common)
    t = torch.full((batch,), t0, dtype=torch.float64, device=x.device)
    end = torch.full_like(t, t1)
    logdet = x.new_zeros(batch)
    start = slopes_at(rhs, x, t)
    with torch.no_grad():
        dt = first_step(rhs, x, t, end, start, method, error_of).detach()  # forward mode heeds no no_grad
    attempts = torch.zeros(batch, dtype=torch.int64, device=x.device)
    last_error = torch.full_like(t, 1e-4)
    rejected = torch.zeros(batch, dtype=torch.bool, device=x.device)
    finite = torch.ones_like(rejected)
    outputs = [(x, logdet)] * len(output_times)
    done = torch.zeros_like(rejected)
    least = 1e-15 * max(abs(t0), abs(t1))
    while not bool(done.all()):
        left = end - t
        is_last = dt.abs() >= left.abs() * (1 - 1e-12)
        dt = torch.where(is_last, left, dt)
        failed = ~done & (attempts >= grid.max_steps)
        _refuse(failed, "max_steps", finite, t, dt, grid)
        _refuse(~done & ~is_last & ~(dt.abs() > least), "underflow", finite, t, dt, grid)
        attempts = attempts + ~done
        slopes, moved, gain = step_from(rhs, x, t, torch.where(done, 0.0, dt), start, method)
        with torch.no_grad():
            wrong = slopes.combine([(dt * e).to(x.dtype) for e in method.error])
            size = error_of.size(wrong, (x, logdet), (moved, logdet + gain)).detach()
        accepted = ~done & (size <= 1)
        finite = done | torch.isfinite(size)
        step = dt
        dt = dt * _factor(size, last_error, accepted, rejected, method.order)
        last_error = torch.where(accepted, size.clamp(min=1e-4), last_error)
        rejected = ~accepted
        if not bool(accepted.any()):
            continue
        if torch.is_grad_enabled() and not bool((accepted | done).all()):
            # Again, and only what is accepted: a rejected step may be infinite, and so would be its gradient.
            slopes, moved, gain = step_from(rhs, x, t, torch.where(accepted, step, 0.0), start, method)
        for i, time in enumerate(output_times.tolist()):
            theta = (time - t) / step
            inside = accepted & (theta > 0) & (theta <= 1)
            if bool(inside.any()):
                weights = [
                    (torch.where(inside, step * dense_weight(row, theta), 0.0)).to(x.dtype) for row in method.dense
                ]
                x_change, logdet_change = slopes.combine(weights)
                rows = inside.unsqueeze(1)
                outputs[i] = (
                    torch.where(rows, x + x_change, outputs[i][0]),
                    torch.where(inside, logdet + logdet_change, outputs[i][1]),
                )
        t = torch.where(accepted, torch.where(is_last, end, t + step), t)
        x = torch.where(accepted.unsqueeze(1), moved, x)
        logdet = torch.where(accepted, logdet + gain, logdet)
        start = (
            torch.where(accepted.unsqueeze(1), slopes.velocity[-1], start[0]),
            torch.where(accepted, slopes.divergence[-1], start[1]),
        )
        done = done | (accepted & is_last)
    evaluations = 2 + (method.stages - 1) * attempts
    x_outputs = torch.stack([output[0] for output in outputs]) if outputs else x.new_empty((0, *x.shape))
    logdet_outputs = torch.stack([output[1] for output in outputs]) if outputs else x.new_empty((0, batch))
    return AdaptiveResult(x, logdet, x_outputs, logdet_outputs, evaluations)


def slopes_at(rhs: RightHandSide, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns velocity and divergence at times in float64."""
    return rhs(x, t.to(x.dtype))


def step_from(
    rhs: RightHandSide, x: Tensor, t: Tensor, dt: Tensor, start: tuple[Tensor, Tensor], method: EmbeddedMethod
) -> tuple[Slopes, Tensor, Tensor]:
    """Returns the slopes of a step, x at its end and what it adds to logdet; the first slope is known."""
    slopes = Slopes([start[0]], [start[1]])
    moved = x
    for row, c in zip(method.a[1:], method.c[1:], strict=True):
        weights = [(dt * a).to(x.dtype) for a in row]
        moved = x + slopes.combine(weights)[0]
        velocity, divergence = slopes_at(rhs, moved, t + c * dt)
        slopes.velocity.append(velocity)
        slopes.divergence.append(divergence)
    gain = slopes.combine([(dt * b).to(x.dtype) for b in method.b])[1]
    return slopes, moved, gain


def first_step(
    rhs: RightHandSide,
    x: Tensor,
    t: Tensor,
    end: Tensor,
    start: tuple[Tensor, Tensor],
    method: EmbeddedMethod,
    error_of: ErrorSize,
) -> Tensor:
    """Returns first steps (B,) from the sizes of x, its derivative and its second derivative."""
    zero = torch.zeros_like(start[1])
    scale = (x, zero), (x, zero)
    position, speed = error_of.size((x, zero), *scale), error_of.size(start, *scale)
    bad = ~(torch.isfinite(position) & torch.isfinite(speed))
    if bool(bad.any()):
        own = ~(torch.isfinite(x).all(1) & torch.isfinite(start[0]).all(1) & torch.isfinite(start[1]))
        row = int((own if bool(own.any()) else bad).nonzero()[0])  # with common steps all rows are bad with one
        raise IntegrationError(row, "not_finite", float(t[row]), 0.0, 0)
    whole = (end - t).abs()
    guess = torch.where((position < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * position / speed).minimum(whole)
    trial = torch.sign(end - t) * guess
    after = slopes_at(rhs, x + trial.unsqueeze(1).to(x.dtype) * start[0], t + trial)
    bend = error_of.size((after[0] - start[0], after[1] - start[1]), *scale) / guess
    most = torch.maximum(bend, speed)
    step = torch.where(most <= 1e-15, (guess * 1e-3).clamp(min=1e-6), (0.01 / most) ** (1 / method.order))
    step = torch.where(torch.isfinite(bend), step.minimum(100 * guess), guess)
    return torch.sign(end - t) * step


def _factor(size: Tensor, last_error: Tensor, accepted: Tensor, rejected: Tensor, order: int) -> Tensor:
    """Returns the factors of the next steps (B,) from the errors of this step and the last accepted one."""
    memory = 0.2 / order
    growth = size ** (1 / order - 0.75 * memory)
    after_success = (_SAFETY * last_error**memory / growth).clamp(0.2, 10.0)
    after_success = torch.where(rejected, after_success.clamp(max=1.0), after_success)
    after_failure = (_SAFETY / growth).nan_to_num(0.2, 0.2, 0.2).clamp(min=0.2)
    return torch.where(accepted, after_success, after_failure)


def dense_weight(row: tuple[float, ...], theta: Tensor) -> Tensor:
    """Returns the weight of a stage at a part theta of a step, from its row of a method's interpolant."""
    total = torch.zeros_like(theta)
    for coefficient in reversed(row):
        total = theta * (total + coefficient)
    return total


def _refuse(failed: Tensor, reason: str, finite: Tensor, t: Tensor, dt: Tensor, grid: Adaptive) -> None:
    if bool(failed.any()):
        row = int(failed.nonzero()[0])
        reason = reason if bool(finite[row]) else "not_finite"
        raise IntegrationError(row, reason, float(t[row]), float(dt[row]), grid.max_steps)
