"""The compiled kernels in which every row has its own time, called on tensors: single evaluations and adaptive steps.

They stand beside `jkoflow.ops.native`, whose steps are equal, and like it know nothing of autograd.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.extension import C as _C
from jkoflow.ops.failure import IntegrationError
from jkoflow.ops.grid import Adaptive
from jkoflow.ops.native import (
    Settings,
    add_linear_gradient,
    address,
    contiguous,
    dense,
    dense_like,
    describe,
    given,
    linear_logdet,
    set_gradient,
)
from jkoflow.ops.network import Network

# ---- Single evaluations


def evaluate(
    x: Tensor, times: Tensor | None, context: Tensor | None, network: Network, noise: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Returns velocity (B, d) and divergence (B,) at x (B, d) and times (B,), None if the velocity does not read t.

    The settings are those of one Euler step over an interval of length 1.
    """
    x, context, network, noise = contiguous(x, context, network, noise)
    times = dense(times)
    problem = _describe_evaluation(x, times, context, network, noise, settings)
    velocity, divergence = dense_like(x), x.new_empty((len(x),))
    problem.x_end, problem.logdet = address(velocity), address(divergence)
    _C.cpu_evaluate(problem)
    if settings.divergence != "none" and network.linear is not None:
        divergence += linear_logdet(network.linear, noise, settings)
    return velocity, divergence


def evaluate_backward(
    bars: tuple[Tensor | None, Tensor | None],
    x: Tensor,
    times: Tensor | None,
    context: Tensor | None,
    network: Network,
    noise: Tensor | None,
    settings: Settings,
    parameters_wanted: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Returns the gradients of x, times, context and parameters; ``bars`` are those of velocity and divergence."""
    x, context, network, noise = contiguous(x, context, network, noise)
    times = dense(times)
    problem = _describe_evaluation(x, times, context, network, noise, settings)
    velocity_bar, divergence_bar = map(dense, bars)
    adjoint, like = _C.Adjoint(), (x.dtype, x.device)
    adjoint.x_end = given("the gradient of the velocity", velocity_bar, x.nbytes, *like)
    adjoint.logdet = given("the gradient of the divergence", divergence_bar, len(x) * x.itemsize, *like)
    x_grad = dense_like(x)
    times_grad = None if times is None else dense_like(times)
    context_grad = None if context is None else dense_like(context)
    adjoint.x, adjoint.times, adjoint.context = address(x_grad), address(times_grad), address(context_grad)
    gradient = set_gradient(adjoint, network, parameters_wanted)
    _C.cpu_evaluate_backward(problem, adjoint)
    if settings.divergence != "none" and divergence_bar is not None and gradient is not None:
        add_linear_gradient(gradient, network, noise, settings, divergence_bar)
    return x_grad, times_grad, context_grad, gradient


def _describe_evaluation(
    x: Tensor, times: Tensor | None, context: Tensor | None, network: Network, noise: Tensor | None, settings: Settings
) -> Any:
    problem = describe(x, context, network, noise, settings)
    problem.row_times = True
    if settings.method != "euler":
        raise ValueError(f"method must be 'euler' for a single evaluation, got {settings.method!r}")
    if (times is None) == settings.time:
        raise ValueError("times must be given for a velocity that reads t, and for no other")
    problem.times = given("times", times, len(x) * x.itemsize, x.dtype, x.device)
    return problem


# ---- Adaptive steps


class Trajectory(NamedTuple):
    """The result of an integration with adaptive steps."""

    x_end: Tensor
    """x at t1, with shape (B, d)."""
    logdet: Tensor
    """Integral of the divergence, with shape (B,)."""
    x_outputs: Tensor
    """x at the output times, with shape (T, B, d)."""
    logdet_outputs: Tensor
    """Integral of the divergence up to the output times, with shape (T, B)."""
    evaluations: Tensor
    """Evaluations of the velocity for each row, int64 with shape (B,)."""
    last_step: Tensor
    """Place of each row's last step among the records, int64 with shape (B,); empty if nothing is recorded."""
    records: Tensor
    """Accepted steps of all rows, as bits in int64 with shape (N, width); empty if nothing is recorded."""


def new_trajectory(x: Tensor, outputs: int, record: bool, steps: int) -> Trajectory:
    """Returns uninitialised tensors for a number of output times and of recorded steps."""
    batch, dim = x.shape
    width = record_width(dim, x.dtype is torch.float64)
    integers = {"dtype": torch.int64, "device": x.device}
    return Trajectory(
        x.new_empty((batch, dim)),
        x.new_empty((batch,)),
        x.new_empty((outputs, batch, dim)),
        x.new_empty((outputs, batch)),
        torch.empty((batch,), **integers),
        torch.empty((batch if record else 0,), **integers),
        torch.empty((steps if record else 0, width), **integers),
    )


def record_width(dim: int, float64: bool) -> int:
    """Returns the size of a step's record, in numbers of 8 bytes."""
    return 4 + (dim if float64 else (dim + 1) // 2)


def adaptive(
    x: Tensor,
    context: Tensor | None,
    network: Network,
    noise: Tensor | None,
    settings: Settings,
    output_times: Tensor,
    record: bool,
) -> Trajectory:
    """Integrates x (B, d) with steps of its own for every row.

    Arguments:
        x: Positions at t0, with shape (B, d).
        context: Conditioning variables, with shape (B, c).
        network: Tensors of the velocity.
        noise: The probe of ``"hutchinson"``.
        settings: Settings of the integration, with an `Adaptive` grid.
        output_times: Times strictly between t0 and t1 in their direction, float64 on the CPU, with shape (T,).
        record: Whether to record the steps for `adaptive_backward`.

    Raises:
        IntegrationError: If a row does not reach t1.
    """
    x, context, network, noise = contiguous(x, context, network, noise)
    output_times = output_times.contiguous()
    problem = describe(x, context, network, noise, settings)
    control = _describe_control(settings, output_times)
    found = new_trajectory(x, len(output_times), record, 0)
    problem.x_end, problem.logdet = address(found.x_end), address(found.logdet)
    control.x_outputs, control.logdet_outputs = address(found.x_outputs), address(found.logdet_outputs)
    control.evaluations, control.last_step = address(found.evaluations), address(found.last_step)
    run = _C.AdaptiveRun(problem, control)
    if (failure := run.failure).row >= 0:
        most = control_of(settings)[0].max_steps
        raise IntegrationError(failure.row, failure.reason.name, failure.t, failure.dt, most)
    if record:
        width = record_width(x.shape[1], x.dtype is torch.float64)
        found = found._replace(records=torch.empty((run.steps, width), dtype=torch.int64))
        run.write(address(found.records))
    return found


def adaptive_backward(
    bars: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    last_step: Tensor,
    records: Tensor,
    x: Tensor,
    context: Tensor | None,
    network: Network,
    noise: Tensor | None,
    settings: Settings,
    output_times: Tensor,
    parameters_wanted: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns the gradients of x (B, d), context and parameters: those of the recorded steps held fixed.

    ``bars`` are the gradients of the first four members of `Trajectory`; None stands for zero.
    """
    x, context, network, noise = contiguous(x, context, network, noise)
    last_step, records, output_times = last_step.contiguous(), records.contiguous(), output_times.contiguous()
    _check_records(last_step, records, x, len(output_times))
    problem = describe(x, context, network, noise, settings)
    control = _describe_control(settings, output_times)
    control.last_step, control.records = address(last_step), address(records)
    x_end_bar, logdet_bar, x_outputs_bar, logdet_outputs_bar = map(dense, bars)
    adjoint, like = _C.Adjoint(), (x.dtype, x.device)
    outputs = len(output_times)
    adjoint.x_end = given("the gradient of x", x_end_bar, x.nbytes, *like)
    adjoint.logdet = given("the gradient of logdet", logdet_bar, len(x) * x.itemsize, *like)
    control.x_outputs = given("the gradient of x at times", x_outputs_bar, outputs * x.nbytes, *like)
    size = outputs * len(x) * x.itemsize
    control.logdet_outputs = given("the gradient of logdet at times", logdet_outputs_bar, size, *like)
    x_grad = dense_like(x)
    context_grad = None if context is None else dense_like(context)
    adjoint.x, adjoint.context = address(x_grad), address(context_grad)
    gradient = set_gradient(adjoint, network, parameters_wanted)
    _C.cpu_adaptive_backward(problem, control, adjoint)
    if settings.divergence != "none" and gradient is not None:
        for bar, until in _logdet_bars(logdet_bar, logdet_outputs_bar, settings, output_times):
            add_linear_gradient(gradient, network, noise, settings._replace(t1=until), bar)
    return x_grad, context_grad, gradient


def _logdet_bars(
    logdet_bar: Tensor | None, outputs_bar: Tensor | None, settings: Settings, output_times: Tensor
) -> list[tuple[Tensor, float]]:
    """Returns every given gradient of a logdet (B,) with the time up to which it integrates."""
    bars = [] if logdet_bar is None else [(logdet_bar, settings.t1)]
    return bars if outputs_bar is None else [*bars, *zip(outputs_bar, output_times.tolist(), strict=True)]


def _check_records(last_step: Tensor, records: Tensor, x: Tensor, outputs: int) -> None:
    """Refuses records that do not belong to x and its outputs, whose places a kernel would follow out of its memory."""
    width, steps = record_width(x.shape[1], x.dtype is torch.float64), len(records)
    given("last_step", last_step, 8 * len(x), torch.int64, x.device)
    given("records", records, 8 * width * steps, torch.int64, x.device)
    if records.shape != (steps, width):
        raise ValueError(f"records must have shape ({steps}, {width}), got {tuple(records.shape)}")
    # as arrays of numpy, whose operations on few numbers take a fifth of the time
    last, table = last_step.numpy(), records.numpy()
    previous, numbers = table[:, 2], table.view("i4")  # the step before; outputs from number 6 up to number 7
    chained = len(last) == 0 or (last.min() >= 0 and last.max() < steps)
    if chained and steps > 0:
        first, end = numbers[:, 6], numbers[:, 7]
        chained = previous.min() >= -1 and (previous < np.arange(steps)).all()
        chained = chained and first.min() >= 0 and (first <= end).all() and end.max() <= outputs
    if not chained:
        raise ValueError(
            f"records must be those of the forward pass, got {steps} of them that do not form chains past {outputs} "
            f"output times"
        )


def control_of(settings: Settings) -> tuple[Adaptive, Any]:
    """Returns the grid of settings and its method.

    Raises:
        ValueError: If the grid is not adaptive.
    """
    if not isinstance(settings.grid, Adaptive):
        raise ValueError(f"grid must be adaptive, got {settings.grid}")
    return settings.grid, EMBEDDED[settings.method]


@functools.lru_cache(maxsize=256)
def _control(settings: Settings) -> Any:
    grid, method = control_of(settings)
    return _C.Adaptive(grid.rtol, grid.atol, grid.max_steps, method.order, method.error, method.dense)


def _describe_control(settings: Settings, output_times: Tensor) -> Any:
    control = _C.Adaptive(_control(settings))
    count = len(output_times)
    place = given("output_times", output_times, 8 * count, torch.float64, torch.device("cpu"))
    if output_times.numel() == 0:  # the usual case, without five operations on nothing
        return control
    ordered = output_times if settings.t1 >= settings.t0 else -output_times
    low, high = min(settings.t0, settings.t1), max(settings.t0, settings.t1)
    inside = bool(((output_times > low) & (output_times < high)).all()) and bool((ordered.diff() >= 0).all())
    if output_times.dim() != 1 or not inside:
        raise ValueError(
            f"output_times must have shape (T,) and lie in order strictly between {settings.t0} and {settings.t1}, "
            f"got {output_times}"
        )
    control.outputs, control.output_times = count, place
    return control
