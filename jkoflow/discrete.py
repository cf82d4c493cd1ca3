"""The exact inverse and the exact logdet of the discrete map that Runge-Kutta steps make of a velocity.

Integrating backwards in time inverts the differential equation, and integrating the divergence gives the
log-determinant of its solution. Both differ from the inverse and the log-determinant of the discrete map by the
integrator's error; the functions of this module do not.
"""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import Tensor

from jkoflow.errors import UserError
from jkoflow.ops import integrate
from jkoflow.ops.autocast import without_autocast
from jkoflow.ops.grid import Grid, as_grid
from jkoflow.velocity import Velocity

MAX_ITERATIONS = 40
"""Largest number of fixed-point iterations for one Runge-Kutta step."""


class NotContractiveError(UserError, RuntimeError):
    """Raised if a Runge-Kutta step is so coarse that the fixed-point iteration for its inverse does not converge."""


@without_autocast
def invert(
    velocity: Velocity,
    y: Tensor,
    context: Tensor | None,
    *,
    t0: float,
    t1: float,
    num_steps: int | Grid,
    method: str,
    name: str = "the block",
) -> tuple[Tensor, Tensor]:
    r"""Solves for the points that the discrete map from t0 to t1 carries to y, one Runge-Kutta step S at a time.

    .. math:: x_{n+1} = x_n + B(y) - B(S(x_n)), \qquad x_0 = B(y)

    B is the step backwards in time. It undoes S but for the integrator's error, so that the iteration contracts by that
    error, where the plain residual :math:`y - S(x_n)` would ask for steps shorter than 1 / Lipschitz constant. Steps so
    coarse that they fold space give a point several preimages; one of them is found, or none.

    Arguments:
        velocity: The velocity.
        y: Images, with shape (B, d).
        context: Conditioning variables, with shape (B, c).
        t0: Start time of the map to invert.
        t1: End time of the map to invert.
        num_steps: Runge-Kutta steps of the map.
        method: Runge-Kutta method of the map.
        name: Name of the map in errors.

    Returns:
        The points x (B, d) and minus the map's logdet at x, as `integrate` has it (B,), both without gradients.

    Raises:
        NotContractiveError: If the iteration does not converge in a step.
        ValueError: If y requires a gradient, outside of ``torch.no_grad()``.
    """
    _refuse_gradient(y, "exact=True", "y")
    grid = as_grid(num_steps)
    num_steps, dt = grid.num_steps, (t1 - t0) / grid.num_steps
    with torch.no_grad():
        x = y
        for step in reversed(range(num_steps)):
            start = t0 + step * dt
            where = f"step {step + 1} of {num_steps} in {name}"
            x = _invert_step(velocity, x, context, start, start + dt, method, where, grid.refined())
        forward = integrate(velocity, x, context=context, t0=t0, t1=t1, num_steps=grid, method=method, keep_path=False)
        return x, -forward.logdet


@without_autocast
def forward(
    velocity: Velocity,
    x: Tensor,
    context: Tensor | None,
    *,
    t0: float,
    t1: float,
    num_steps: int | Grid,
    method: str,
) -> tuple[Tensor, Tensor]:
    r"""Carries x along and adds up log abs det of the Jacobian of every Runge-Kutta step.

    The Jacobians come row by row from the integrator's adjoint: the cost is that of d passes forward and back.

    Arguments:
        velocity: The velocity.
        x: Positions at t0, with shape (B, d).
        context: Conditioning variables, with shape (B, c).
        t0: Start time.
        t1: End time.
        num_steps: Runge-Kutta steps.
        method: Runge-Kutta method.

    Returns:
        Positions at t1 (B, d) and the log abs det of the discrete map (B,). No gradient flows through either.

    Raises:
        ValueError: If x requires a gradient, outside of ``torch.no_grad()``.
    """
    _refuse_gradient(x, "discrete=True", "x")
    num_steps = as_grid(num_steps).num_steps
    dt = (t1 - t0) / num_steps
    logdet = x.new_zeros(x.shape[0])
    # Inference mode records no graph at all. Parameters that need no gradient spare the fused adjoint theirs; what runs
    # through its own forward may hold tensors that cannot be copied.
    with torch.inference_mode(False), torch.enable_grad():
        frozen = velocity if velocity.field() is None else copy.deepcopy(velocity).requires_grad_(False)
        for step in range(num_steps):
            start = t0 + step * dt
            x, jacobian = _step_jacobian(frozen, x, context, start, start + dt, method)
            logdet = logdet + torch.linalg.slogdet(jacobian).logabsdet
    return x, logdet


def _step_jacobian(
    velocity: Velocity, x: Tensor, context: Tensor | None, start: float, end: float, method: str
) -> tuple[Tensor, Tensor]:
    """Returns the image of x (B, d) under one Runge-Kutta step and the step's Jacobians (B, d, d)."""
    batch, dim = x.shape
    copies = x.detach().repeat(dim, 1).requires_grad_()
    contexts = None if context is None else context.detach().repeat(dim, 1)
    y = _step(velocity, copies, contexts, start, end, method)
    rows = torch.eye(dim, dtype=x.dtype, device=x.device).repeat_interleave(batch, 0)
    (gradient,) = torch.autograd.grad(y, copies, rows)
    return y.detach()[:batch], gradient.view(dim, batch, dim).transpose(0, 1)


def _invert_step(
    velocity: Velocity,
    y: Tensor,
    context: Tensor | None,
    start: float,
    end: float,
    method: str,
    where: str,
    advised: Grid,
) -> Tensor:
    begin = _step(velocity, y, context, end, start, method)
    # not that of the iterates, which diverging ones would raise
    scale = torch.maximum(y.abs(), begin.abs()).amax(1).clamp(min=1.0) * torch.finfo(y.dtype).eps
    best = begin.clone()
    smallest = y.new_full((y.shape[0],), torch.inf)
    sizes: list[float] = []  # of the largest updates, iteration by iteration
    active = torch.arange(y.shape[0], device=y.device)  # each row stops on its own: results do not depend on the others
    trial = begin
    while active.numel() > 0 and len(sizes) < MAX_ITERATIONS:
        rows = None if context is None else context[active]
        image = _step(velocity, trial, rows, start, end, method)
        update = begin[active] - _step(velocity, image, rows, end, start, method)
        size = update.abs().amax(1)
        sizes.append(float(size.max()))
        before, unit = smallest[active], scale[active]
        better = size < before
        best[active[better]], smallest[active[better]] = trial[better], size[better]
        # rounding ends the decrease at some multiple of eps
        at_rest = (size <= 2 * unit) | ((smallest[active] <= 200 * unit) & ~(size < 0.5 * before))
        going = ~at_rest
        trial, active = (trial + update)[going], active[going]
    if active.numel() == 0:
        return best
    raise NotContractiveError(
        f"{where} has no exact inverse within reach: after {MAX_ITERATIONS} iterations {active.numel()} of "
        f"{y.shape[0]} rows still move by up to {float(smallest[active].max()):.1e} (contraction factor about "
        f"{_contraction(sizes):.2f}, it must be well below 1); use more Runge-Kutta steps, such as "
        f"num_steps={advised.num_steps}, or exact=False"
    )


def _contraction(sizes: list[float]) -> float:
    """Returns the mean factor between the sizes of successive updates, until they overflow."""
    finite = list(itertools.takewhile(math.isfinite, sizes))
    return (finite[-1] / finite[0]) ** (1 / (len(finite) - 1)) if len(finite) > 1 else math.inf


def _step(velocity: Velocity, x: Tensor, context: Tensor | None, start: float, end: float, method: str) -> Tensor:
    return integrate(
        velocity,
        x,
        context=context,
        t0=start,
        t1=end,
        num_steps=1,
        method=method,
        divergence="none",
        keep_path=False,
    ).x


def _refuse_gradient(x: Tensor, option: str, name: str) -> None:
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError(
            f"{option} computes no gradient, but {name} requires one; call it under torch.no_grad(), or leave it out"
        )
