"""The steps of zuko's solver over the fused kernels: one sequence for the whole batch, found as zuko finds it.

A solver's own error in log_prob is far above rounding at zuko's tolerances, so that only the same steps give the same
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.ops import integrate, velocity_and_divergence
from jkoflow.ops.checks import Divergence
from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.failure import IntegrationError
from jkoflow.velocity import MLPField

METHOD = "dopri5"
LOGDET_SCALE = 1e-2
"""What zuko multiplies the log-determinant by where errors are compared with the tolerance."""


class Step(NamedTuple):
    """One accepted step, from ``start`` to ``end``."""

    start: float
    end: float


def integrate_in_common_steps(
    field: MLPField,
    x: Tensor,
    context: Tensor | None,
    noise: Tensor | None,
    t0: float,
    t1: float,
    rtol: float,
    atol: float,
    divergence: Divergence,
) -> tuple[Tensor, Tensor]:
    """Integrates with the steps that zuko's solver takes for the batch, each of them in one fused call.

    Arguments:
        field: Weights of the velocity.
        x: Positions at t0, with shape (B, d).
        context: Conditioning variables, with shape (B, c).
        noise: The probe of ``"hutchinson"``, with shape (B, d).
        t0: Start time.
        t1: End time.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        divergence: ``"exact"``, ``"hutchinson"`` or ``"none"``.

    Returns:
        x at t1 (B, d) and logdet (B,), with the gradients of the accepted steps held fixed.

    Raises:
        jkoflow.ops.IntegrationError: If the steps do not reach t1.
    """
    dim = x.shape[1]

    def slope(state: Tensor, t: float) -> Tensor:
        velocity, trace = velocity_and_divergence(field, state[:, :dim], t, context, divergence=divergence, noise=noise)
        return velocity if divergence == "none" else torch.cat([velocity, LOGDET_SCALE * trace.unsqueeze(1)], 1)

    with torch.no_grad():
        state = x if divergence == "none" else torch.cat([x, x.new_zeros(len(x), 1)], 1)
        steps = common_steps(slope, state, t0, t1, rtol, atol) if len(x) else []
    logdet = x.new_zeros(len(x))
    for step in steps:
        x, gain, _ = integrate(
            field,
            x,
            context=context,
            t0=step.start,
            t1=step.end,
            num_steps=1,
            method=METHOD,
            divergence=divergence,
            noise=noise,
            keep_path=False,
        )
        logdet = logdet + gain
    return x, logdet


def common_steps(
    slope: Callable[[Tensor, float], Tensor], state: Tensor, t0: float, t1: float, rtol: float, atol: float
) -> list[Step]:
    """Returns the steps that zuko's solver accepts from t0 to t1.

    It tries the whole interval first. A step is accepted if no entry of the state errs by more than
    ``atol + rtol * abs(state)``; the next one is longer or shorter by the fifth root of the largest error.

    Arguments:
        slope: The derivative of a state at a time.
        state: The state at t0, with shape (B, k), B at least 1.
        t0: Start time.
        t1: End time.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Raises:
        jkoflow.ops.IntegrationError: If a step shrinks to nothing, where zuko's solver does not return.
    """
    method = EMBEDDED[METHOD]
    steps: list[Step] = []
    t, dt = t0, t1 - t0
    first = slope(state, t)
    while t != t1:
        last = abs(dt) >= abs(t1 - t)
        dt = t1 - t if last else dt
        slopes, moved = [first], state
        for row, c in zip(method.a[1:], method.c[1:], strict=True):
            moved = _combined(state, slopes, row, dt)
            slopes.append(slope(moved, t + c * dt))
        wrong = _combined(torch.zeros_like(state), slopes, method.error, dt).abs_()
        allowed = torch.maximum(state.abs(), moved.abs()).mul_(rtol).add_(atol)
        errors = wrong.div_(allowed).amax(1)
        error = max(float(errors.max()), 1e-9)
        if error < 1:
            end = t1 if last else t + dt
            steps.append(Step(t, end))
            state, first, t = moved, slopes[-1], end
        elif t + 0.1 * dt == t:
            reason = "underflow" if math.isfinite(error) else "not_finite"
            raise IntegrationError(int(errors.argmax()), reason, t, dt, 0)
        dt *= min(10.0, max(0.1, 0.9 / error**0.2))
    return steps


def _combined(state: Tensor, slopes: list[Tensor], weights: tuple[float, ...], dt: float) -> Tensor:
    """Returns a state moved along slopes by dt times their weights."""
    moved = state.clone()
    for weight, slope in zip(weights, slopes, strict=True):
        if weight != 0.0:
            moved.add_(slope, alpha=weight * dt)
    return moved
