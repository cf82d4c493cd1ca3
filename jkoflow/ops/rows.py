"""Integrations and evaluations in which every row has its own time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jkoflow.ops import reference, row_operators
from jkoflow.ops.backend import field_of, settings_of, stages_settings, use_kernel
from jkoflow.ops.checks import Backend, Divergence, Precision, Request, check_request
from jkoflow.ops.common_steps import integrate_together
from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.grid import Adaptive, Fixed
from jkoflow.ops.integrated import Integrated
from jkoflow.ops.interval import Time
from jkoflow.ops.reference import RightHandSide
from jkoflow.ops.reference_adaptive import integrate_adaptively
from jkoflow.velocity import MLPField, Velocity


def velocity_and_divergence(
    velocity: Callable[..., Tensor] | MLPField,
    x: Tensor,
    t: float | Tensor = 0.0,
    context: Tensor | None = None,
    *,
    divergence: Divergence = "exact",
    noise: Tensor | None = None,
    backend: Backend = "auto",
    precision: Precision = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Computes v(x, t) and its divergence at once: the right-hand side of a continuous normalizing flow.

    .. math:: v(x, t), \qquad \mathrm{tr}\, \partial_x v(x, t)

    Both are differentiable, twice, with respect to x, t, the context and the parameters.

    Arguments:
        velocity: What `jkoflow.integrate` takes. A `HyperMLP` runs in the fused kernels if t is one for all rows.
        x: Positions, float32 or float64, with shape (B, d).
        t: Time: a number, a tensor without axes, or one for each row (B,). A tensor may be on the device of x and is
            not waited for.
        context: Conditioning variables, with shape (B, c).
        divergence: ``"exact"``, ``"hutchinson"`` (:math:`\epsilon^T J \epsilon`) or ``"none"`` (zero).
        noise: The probe of ``"hutchinson"``, with shape (B, d).
        backend: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"reference"``, see `jkoflow.integrate`.
        precision: Precision of products, see `jkoflow.integrate`.

    Returns:
        The velocity (B, d) and its divergence (B,).

    Raises:
        ValueError: If an argument has the wrong shape, dtype or value.
        RuntimeError: If the backend asked for by name cannot run the request.

    References:
        | FFJORD: Free-form continuous dynamics for scalable reversible generative models (Grathwohl et al., 2018)
        | https://arxiv.org/abs/1810.01367

    Example:
        >>> velocity = jkoflow.MLPVelocity(2)
        >>> v, divergence = jkoflow.velocity_and_divergence(velocity, torch.randn(5, 2), t=torch.rand(5))
        >>> v.shape, divergence.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    grid = Fixed(1)  # one Euler step over an interval of length 1: what describes a single evaluation
    request = Request(*field_of(velocity), x, context, noise, 0.0, 1.0, grid, "euler", divergence, backend, precision)
    check_request(request)
    t = _checked_time(t, x)
    if request.field is None and isinstance(velocity, Velocity) and not (isinstance(t, Tensor) and t.numel() > 1):
        at_t = velocity.field_at(t)
        request = request if at_t is None else request._replace(field=at_t)
        check_request(request)
    field = request.field
    if use_kernel(request) and field is not None:
        times = t.expand(len(x)) if isinstance(t, Tensor) else x.new_full((len(x),), t)
        settings = settings_of(request, field)
        return row_operators.evaluate_mlp(field, x, times if settings.time else None, context, noise, settings)
    return right_hand_side(velocity, request)(x, t)


def integrate_rows(
    velocity: Callable[..., Tensor] | MLPField, request: Request, kernel: bool, times: list[Time] | None
) -> Integrated:
    """Integrates with adaptive steps; times, if there are any, begin with t0 and end with t1."""
    field, x, grid = request.field, request.x, request.grid
    assert isinstance(grid, Adaptive)
    inner = torch.empty(0, dtype=torch.float64) if times is None else torch.tensor(times[1:-1], dtype=torch.float64)
    if kernel and field is not None:
        found = row_operators.integrate_adaptively(
            field, x, request.context, request.noise, settings_of(request, field), inner
        )
        end, logdet, x_outputs, logdet_outputs, evaluations = found[:5]
    elif kernel and request.fields_at is not None:
        assert request.field_at_start is not None
        end, logdet, x_outputs, logdet_outputs, evaluations = integrate_together(
            request.fields_at,
            request.field_at_start,
            x,
            request.context,
            request.noise,
            stages_settings(request),
            inner,
        )
    else:
        rhs = right_hand_side(velocity, request, kernel)
        common = request.field_at is not None  # weights at one time are those of all rows, which so step together
        has_logdet = request.divergence != "none"
        end, logdet, x_outputs, logdet_outputs, evaluations = integrate_adaptively(
            (lambda x, t: rhs(x, torch.as_tensor(t)[:1])) if common else rhs,
            x,
            float(request.t0),
            float(request.t1),
            grid,
            EMBEDDED[request.method],
            inner,
            has_logdet,
            common,
        )
    if times is None:
        return Integrated(end, logdet, None, evaluations)
    path = torch.cat([x.unsqueeze(0), x_outputs, end.unsqueeze(0)])
    logdet_path = torch.cat([torch.zeros_like(logdet).unsqueeze(0), logdet_outputs, logdet.unsqueeze(0)])
    return Integrated(end, logdet, path, evaluations, logdet_path)


def right_hand_side(
    velocity: Callable[..., Tensor] | MLPField, request: Request, kernel: bool = False
) -> RightHandSide:
    """Returns velocity and divergence as a function: of the reference, or of a kernel with the weights at each time."""
    context, divergence, noise, field_at = request.context, request.divergence, request.noise, request.field_at
    if request.field is not None:
        return reference.mlp_rhs(request.field, context, divergence, noise)
    if field_at is None:
        assert not isinstance(velocity, MLPField)
        return reference.autograd_rhs(velocity, context, divergence, noise)
    if not kernel:
        return reference.field_rhs(field_at, context, divergence, noise)
    single = request._replace(t0=0.0, t1=1.0, grid=Fixed(1), method="euler")  # what describes a single evaluation

    def rhs(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        field = field_at(float(t))
        return row_operators.evaluate_mlp(field, x, None, context, noise, settings_of(single, field))

    return rhs


def _checked_time(t: float | Tensor, x: Tensor) -> float | Tensor:
    if not isinstance(t, Tensor):
        if isinstance(t, bool) or not isinstance(t, (int, float)):
            raise ValueError(f"t must be a number or a tensor of shape () or ({len(x)},), got {t!r}")
        return float(t)
    if t.shape not in ((), (1,), (len(x),)):
        raise ValueError(f"t must be a number or a tensor of shape () or ({len(x)},), got {tuple(t.shape)}")
    if not t.is_floating_point() or (t.device != x.device and t.dim() > 0):
        raise ValueError(f"t must be a floating-point tensor on {x.device}, got {t.dtype} on {t.device}")
    return t.to(dtype=x.dtype, device=x.device)
