"""Adaptive steps that all rows take together, because every stage has a network of its own, in the fused kernels.

The steps are those of `jkoflow.ops.reference_adaptive` with ``common``: the same first step, error and control.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.ops import row_operators, stage_operators
from jkoflow.ops.compiler_marks import uncompiled
from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.failure import IntegrationError
from jkoflow.ops.grid import Adaptive, Fixed
from jkoflow.ops.library import recording
from jkoflow.ops.native import Settings
from jkoflow.ops.native_stages import (
    Stepper,
    counted_stages,
    dense_networks,
    output_shares,
    outputs_within,
    stage_times,
)
from jkoflow.ops.network import Network
from jkoflow.ops.reference import RightHandSide
from jkoflow.ops.reference_adaptive import AdaptiveResult, ErrorSize, first_step
from jkoflow.velocity import MLPField

FieldsAt = Callable[[Tensor], MLPField]
"""Function that maps times (N,) to the weights at all of them, with a leading axis."""

_SAFETY = 0.9


def integrate_together(
    fields_at: FieldsAt,
    start: MLPField,
    x: Tensor,
    context: Tensor | None,
    noise: Tensor | None,
    settings: Settings,
    output_times: Tensor,
) -> AdaptiveResult:
    """Integrates x (B, d) with the same adaptive steps for all rows.

    The steps are found without gradients, with one call of ``fields_at`` for each. Gradients are those of the accepted
    steps held fixed: they take one call more, for all stages of all steps.

    Arguments:
        fields_at: The weights at times.
        start: The weights at t0.
        x: Positions at t0, with shape (B, d).
        context: Conditioning variables, with shape (B, c).
        noise: The probe of ``"hutchinson"``.
        settings: Settings of the integration, with an `Adaptive` grid.
        output_times: Times strictly between t0 and t1 in their direction, float64 with shape (T,).

    Raises:
        IntegrationError: If the rows do not reach t1.
    """
    found = _find_steps(fields_at, start, x, context, noise, settings, output_times)
    if not recording() or len(found.steps) == 0:
        return found.result
    stages = counted_stages(settings, len(output_times))
    times = stage_times(settings, found.steps, stages)
    field = fields_at(torch.tensor(times, dtype=x.dtype))
    steps = torch.tensor(found.steps, dtype=torch.float64)
    results = stage_operators.differentiable(
        field, x, context, noise, settings, steps, output_times, found.path, found.result[:4]
    )
    return AdaptiveResult(*results, found.result.evaluations)


class _Found(NamedTuple):
    """Steps, and where they have led."""

    result: AdaptiveResult
    steps: list[tuple[float, float]]
    """Time and length of each accepted step."""
    path: Tensor
    """x at the start of each accepted step, with shape (S, B, d)."""


@uncompiled  # how many steps there are depends on data
@torch.no_grad()
def _find_steps(
    fields_at: FieldsAt,
    start: MLPField,
    x: Tensor,
    context: Tensor | None,
    noise: Tensor | None,
    settings: Settings,
    output_times: Tensor,
) -> _Found:
    grid, method = settings.grid, EMBEDDED[settings.method]
    assert isinstance(grid, Adaptive)
    x = x.detach()
    batch, times = len(x), output_times.tolist()
    x_outputs, logdet_outputs = x.new_empty((len(times), *x.shape)), x.new_empty((len(times), batch))
    evaluations = torch.zeros(batch, dtype=torch.int64)
    if batch == 0:
        result = AdaptiveResult(x.clone(), x.new_empty(0), x_outputs, logdet_outputs, evaluations)
        return _Found(result, [], x.new_empty((0, *x.shape)))

    def networks_at(times: list[float]) -> Network:
        field = fields_at(torch.tensor(times, dtype=x.dtype))
        return dense_networks(Network(list(field.weights), list(field.biases), field.linear))

    t, t1 = settings.t0, settings.t1
    first = Network([w.unsqueeze(0) for w in start.weights], [b.unsqueeze(0) for b in start.biases], None)
    stepper = Stepper(x, context, first, noise, settings)
    single = settings._replace(t0=0.0, t1=1.0, grid=Fixed(1), method="euler")  # what describes a single evaluation

    def evaluate(field: MLPField, x: Tensor) -> tuple[Tensor, Tensor]:
        return row_operators.evaluate_mlp(field, x, None, context, noise, single)

    def later(x: Tensor, time: float | Tensor) -> tuple[Tensor, Tensor]:
        field = fields_at(torch.as_tensor(time)[:1])  # one time is that of all rows
        weights, biases = (tuple(tensor[0] for tensor in tensors) for tensors in (field.weights, field.biases))
        return evaluate(field._replace(weights=weights, biases=biases), x)

    slopes = evaluate(start, x)
    stepper.start_with(*slopes)
    dt = _first_step(later, x, slopes, settings)
    least = 1e-15 * max(abs(t), abs(t1))
    attempts, last_error, rejected, finite = 0, 1e-4, False, True
    steps: list[tuple[float, float]] = []
    path: list[Tensor] = []
    first_output = 0
    while True:
        left = t1 - t
        is_last = abs(dt) >= abs(left) * (1 - 1e-12)
        dt = left if is_last else dt
        if attempts >= grid.max_steps:
            raise IntegrationError(stepper.worst_row(), "max_steps" if finite else "not_finite", t, dt, grid.max_steps)
        if not is_last and not abs(dt) > least:
            raise IntegrationError(stepper.worst_row(), "underflow" if finite else "not_finite", t, dt, grid.max_steps)
        attempts += 1
        size = stepper.attempt(networks_at(stage_times(settings, [(t, dt)], method.stages)), dt)
        factor = _factor(size, last_error, rejected, method.order)
        finite, rejected = math.isfinite(size), not size <= 1
        if rejected:
            dt *= factor
            continue
        within = outputs_within([(t, dt)], times[first_output:])[0]
        for place in range(first_output, first_output + within.stop):
            shares = output_shares(settings, t, dt, times[place])
            weights = torch.tensor(shares, dtype=torch.float64).to(x.dtype)
            x_outputs[place] = stepper.state.x + torch.tensordot(weights, stepper.velocity, 1)
            logdet_outputs[place] = stepper.state.logdet + weights @ stepper.divergence
        first_output += within.stop
        steps.append((t, dt))
        path.append(stepper.state.x)
        stepper.accept()
        if is_last:
            break
        t, dt, last_error = t + dt, dt * factor, max(size, 1e-4)
    evaluations += 2 + (method.stages - 1) * attempts
    end = stepper.state
    return _Found(AdaptiveResult(end.x, end.logdet, x_outputs, logdet_outputs, evaluations), steps, torch.stack(path))


def _first_step(rhs: RightHandSide, x: Tensor, slopes: tuple[Tensor, Tensor], settings: Settings) -> float:
    """Returns the step that the reference begins with."""
    assert isinstance(settings.grid, Adaptive)
    t0, t1 = (torch.full((len(x),), time, dtype=torch.float64) for time in (settings.t0, settings.t1))
    error_of = ErrorSize(settings.grid, settings.divergence != "none", common=True)
    return float(first_step(rhs, x, t0, t1, slopes, EMBEDDED[settings.method], error_of)[0])


def _factor(size: float, last_error: float, rejected: bool, order: int) -> float:
    """Returns the factor of the next step from the error of this one and of the last accepted one."""
    memory = 0.2 / order
    if not math.isfinite(size):
        return 0.2
    growth = size ** (1 / order - 0.75 * memory)
    if not size <= 1:
        return max(_SAFETY / growth, 0.2)
    factor = min(max(_SAFETY * last_error**memory / growth, 0.2), 10.0) if growth > 0 else 10.0
    return min(factor, 1.0) if rejected else factor
