"""Adaptive steps that all rows take together, because every stage has a network of its own, in the fused kernels.

The steps are those of `jkoflow.ops.reference_adaptive` with ``common``: the same first step, error and control.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.ops import stage_operators
from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.failure import IntegrationError
from jkoflow.ops.grid import Adaptive
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
    rhs: RightHandSide,
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
        rhs: The right-hand side, called with one time for all rows.
        x: Positions at t0, with shape (B, d).
        context: Conditioning variables, with shape (B, c).
        noise: The probe of ``"hutchinson"``.
        settings: Settings of the integration, with an `Adaptive` grid.
        output_times: Times strictly between t0 and t1 in their direction, float64 with shape (T,).

    Raises:
        IntegrationError: If the rows do not reach t1.
    """
    found = _find_steps(fields_at, rhs, x, context, noise, settings, output_times)
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


@torch.compiler.disable()  # how many steps there are depends on data
@torch.no_grad()
def _find_steps(
    fields_at: FieldsAt,
    rhs: RightHandSide,
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
    stepper = Stepper(x, context, networks_at([t]), noise, settings)
    dt = _start(stepper, rhs, settings)
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
            raise IntegrationError(0, "max_steps" if finite else "not_finite", t, dt, grid.max_steps)
        if not is_last and not abs(dt) > least:
            raise IntegrationError(0, "underflow" if finite else "not_finite", t, dt, grid.max_steps)
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


def _start(stepper: Stepper, rhs: RightHandSide, settings: Settings) -> float:
    """Evaluates the start and returns the first step, which the reference chooses."""
    x, grid = stepper.state.x, settings.grid
    assert isinstance(grid, Adaptive)

    def at_one_time(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        return rhs(x, torch.as_tensor(t)[:1])

    t, t1 = (torch.full((len(x),), time, dtype=torch.float64) for time in (settings.t0, settings.t1))
    start = at_one_time(x, t)
    stepper.start_with(*start)
    error_of = ErrorSize(grid, settings.divergence != "none", common=True)
    return float(first_step(at_one_time, x, t, t1, start, EMBEDDED[settings.method], error_of)[0])


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
