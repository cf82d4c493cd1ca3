"""The one door to the integrators: checks the arguments and picks the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from jkoflow.callers import warn_caller
from jkoflow.former_names import accepts_former_names
from jkoflow.ops import native, operators, reference
from jkoflow.ops.checks import Request, check_request
from jkoflow.ops.extension import KernelError, UnsupportedError
from jkoflow.ops.grid import Fixed, Grid, as_grid
from jkoflow.ops.modulation import word_of
from jkoflow.ops.network import check_field
from jkoflow.ops.objective import JKOTerms, jko_terms
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.velocity import MLPField, Velocity

__all__ = [
    "FallbackWarning",
    "Fixed",
    "Grid",
    "Integrated",
    "JKOTerms",
    "KernelError",
    "UnsupportedError",
    "integrate",
    "jko_loss",
    "jko_terms",
]

Backend = Literal["auto", "cpu", "cuda", "reference"]
Divergence = Literal["exact", "hutchinson", "none"]
Precision = Literal["auto", "fp32", "bf16x3", "tf32x3", "tf32"]


class FallbackWarning(UserWarning):
    """Warns that ``backend="auto"`` uses the PyTorch reference because no fused kernel covers the request."""


class Integrated(NamedTuple):
    """The result of `integrate`."""

    x: Tensor
    """x at t1, with shape (B, d)."""
    logdet: Tensor
    """Integral of the divergence, with shape (B,)."""
    path: Tensor | None
    """x at every step, with shape (num_steps + 1, B, d); None if ``keep_path=False``."""


def integrate(
    velocity: Callable[..., Tensor],
    x: Tensor,
    *,
    context: Tensor | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
    num_steps: int | Grid = 3,
    method: str = "rk4",
    divergence: Divergence = "exact",
    noise: Tensor | None = None,
    backend: Backend = "auto",
    precision: Precision = "auto",
    keep_path: bool = True,
) -> Integrated:
    r"""Integrates dx/dt = v(x, t) and the divergence of v with a fixed-step Runge-Kutta method.

    .. math:: x(t_1) = x(t_0) + \int_{t_0}^{t_1} v(x, t)\, dt, \qquad
              \mathrm{logdet} = \int_{t_0}^{t_1} \mathrm{tr}\, \partial_x v(x, t)\, dt

    Gradients of x, logdet and path with respect to the input, the context and the parameters are the exact
    derivatives of the discrete map.

    Arguments:
        velocity: An `MLPVelocity` (fused kernels); `ConcatSquashMLP`, `FourierTimeMLP`, `ResidualMLP` or `HyperMLP`
            (PyTorch reference, the divergence in closed form or by tangents); or any callable
            ``velocity(x, t, context)`` that maps (B, d) to (B, d) row by row (PyTorch reference, by autograd).
        x: Positions at t0, float32 or float64, with shape (B, d) and any strides; B may be 0.
        context: Conditioning variables, with shape (B, c).
        t0: Start time.
        t1: End time; ``t1 < t0`` integrates backwards.
        num_steps: Number of equal Runge-Kutta steps, or a grid (`jkoflow.ops.Fixed`).
        method: ``"euler"``, ``"midpoint"``, ``"heun"``, ``"rk4"`` (the 3/8 rule, as in torchdiffeq) or
            ``"rk4_classic"``.
        divergence: ``"exact"``, ``"hutchinson"`` (:math:`\epsilon^T J \epsilon` with one fixed probe) or ``"none"``
            (logdet is zero). Exact costs one extra product per stage for up to two hidden layers, and a factor of
            1 + d for deeper networks.
        noise: The probe of ``"hutchinson"``, with shape (B, d).
        backend: ``"auto"`` picks the fused kernel for the device of x and falls back to the reference with a
            `FallbackWarning`; ``"cpu"``, ``"cuda"`` and ``"reference"`` force one.
        precision: How the CUDA kernels multiply float32 numbers: ``"fp32"``; ``"tf32x3"``, on tensor cores and nearly
            as accurate; ``"tf32"``, on tensor cores with 11 significant bits, errors near 1e-3. ``"auto"`` is
            ``"tf32x3"`` on GPUs on which that is faster (compute capability 8.0, 9.0 and 10), else ``"fp32"``.
            On the CPU ``"auto"`` is ``"fp32"``: products in the precision of x. ``"bf16x3"`` is for float32 on CPUs
            with AMX: products between hidden layers with 16 significant bits, errors near 1e-5, and faster; without
            AMX it is refused. Products for the gradients of the weights stay in float32.
        keep_path: Whether to return x at every step.

    Returns:
        x at t1 (B, d), logdet (B,) and path (num_steps + 1, B, d).

    Raises:
        ValueError: If an argument has the wrong shape, dtype or value.
        RuntimeError: If the backend asked for by name cannot run the request.

    References:
        | FFJORD: Free-form continuous dynamics for scalable reversible generative models (Grathwohl et al., 2018)
        | https://arxiv.org/abs/1810.01367

    Example:
        >>> velocity = jkoflow.MLPVelocity(2)
        >>> z, logdet, path = jkoflow.integrate(velocity, torch.randn(5, 2))
        >>> path.shape
        torch.Size([4, 5, 2])
    """
    request = Request(
        *_field(velocity), x, context, noise, t0, t1, as_grid(num_steps), method, divergence, backend, precision
    )
    check_request(request)
    return _integrate(velocity, request, _use_kernel(request), keep_path)


@accepts_former_names
def jko_loss(
    velocity: Callable[..., Tensor],
    x: Tensor,
    jko_step: float,
    *,
    context: Tensor | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
    num_steps: int | Grid = 3,
    method: str = "rk4",
    divergence: Literal["exact", "hutchinson"] = "exact",
    noise: Tensor | None = None,
    backend: Backend = "auto",
    precision: Precision = "auto",
) -> JKOTerms:
    r"""Computes the JKO objective of one block, for training: the same numbers as `integrate` followed by `jko_terms`.

    The fused kernel computes the value and the gradient in one pass over the batch, while the activations of a tile
    are still in the cache, where ``integrate`` and its backward pass have to compute them twice.

    .. math:: E\left[ \tfrac{1}{2} |y|^2 - \mathrm{logdet} + \tfrac{1}{2h} |y - x|^2 \right], \qquad y = x(t_1)

    Arguments:
        velocity: An `MLPVelocity` or any callable, see `integrate`.
        x: Pushed samples, with shape (B, d), B at least 1.
        jko_step: JKO step size h, positive; ``inf`` means no penalty.
        context: Conditioning variables, with shape (B, c).
        t0: Start time.
        t1: End time.
        num_steps: Number of equal Runge-Kutta steps, or a grid (`jkoflow.ops.Fixed`).
        method: Runge-Kutta method.
        divergence: ``"exact"`` or ``"hutchinson"``.
        noise: The probe of ``"hutchinson"``, with shape (B, d).
        backend: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"reference"``.
        precision: Precision of products, see `integrate`.

    Returns:
        The terms. Differentiate ``total``; with a kernel the other three are there to be looked at and carry no
        gradient.

    Raises:
        ValueError: If an argument has the wrong shape, dtype or value.
        RuntimeError: If the backend asked for by name cannot run the request.

    References:
        | Normalizing flow neural networks by JKO scheme (Xu et al., 2022)
        | https://arxiv.org/abs/2212.14424

    Example:
        >>> velocity = jkoflow.MLPVelocity(2)
        >>> jkoflow.jko_loss(velocity, torch.randn(5, 2), jko_step=1.0).total.backward()
    """
    request = Request(
        *_field(velocity), x, context, noise, t0, t1, as_grid(num_steps), method, divergence, backend, precision
    )
    check_request(request)
    if divergence == "none":
        raise ValueError("divergence must be exact or hutchinson: the objective contains it, got 'none'")
    if x.shape[0] == 0:
        raise ValueError(f"x must have at least one row for a mean over the batch, got {tuple(x.shape)}")
    if not jko_step > 0:
        raise ValueError(f"jko_step must be positive (inf for a free block), got {jko_step}")
    kernel = _use_kernel(request)
    field = request.field
    if kernel and field is not None and operators.needs_gradient(field, x, context):
        return operators.jko_loss_mlp(field, x, context, noise, _settings(request, field), jko_step)
    end, logdet, _ = _integrate(velocity, request, kernel, keep_path=False)
    return jko_terms(x, end, logdet, jko_step)


def _field(velocity: object) -> tuple[MLPField | None, str]:
    """Returns the weights of a velocity for the kernels, or None, and the reason if there are none."""
    if not isinstance(velocity, Velocity):
        return None, "the kernels integrate an MLPVelocity; another velocity is differentiated by autograd"
    field = velocity.field()
    return field, "" if field is not None else velocity.unfused() or ""


def _integrate(velocity: Callable[..., Tensor], request: Request, kernel: bool, keep_path: bool) -> Integrated:
    field, x, context, noise = request.field, request.x, request.context, request.noise
    if kernel and field is not None:
        result = operators.integrate_mlp(field, x, context, noise, _settings(request, field), keep_path)
    else:
        if field is None:
            field_at = _field_at(velocity, x, request.t0)
            if field_at is None:
                rhs = reference.autograd_rhs(velocity, context, request.divergence, noise)
            else:
                rhs = reference.field_rhs(field_at, context, request.divergence, noise)
        else:
            rhs = reference.mlp_rhs(field, context, request.divergence, noise)
        tableau = TABLEAUX[request.method]
        result = reference.integrate_steps(rhs, x, request.t0, request.t1, request.grid, tableau)
    end, logdet, path = result
    return Integrated(end, logdet, path if keep_path else None)


def _field_at(velocity: object, x: Tensor, t: float) -> Callable[[float], MLPField] | None:
    """Returns what gives the weights of a velocity at any time, checked at one; None if nothing does."""
    field = velocity.field_at(t) if isinstance(velocity, Velocity) else None
    if field is None:
        return None
    check_field(field, x)
    return velocity.field_at  # type: ignore[union-attr, return-value]


def _settings(request: Request, field: MLPField) -> native.Settings:
    interval = float(request.t0), float(request.t1)
    kind = request.divergence, field.time or field.modulation is not None, field.activation.text
    how = request.grid, request.method, request.precision
    return native.Settings(*kind, *interval, *how, word_of(field))


def _use_kernel(request: Request) -> bool:
    backend, precision = request.backend, request.precision
    if backend == "reference":
        return False
    field = request.unfused if request.field is None else request.field
    reason = native.unsupported(field, request.x, request.divergence, request.noise, backend, precision)
    if reason is not None and precision == "bf16x3":
        raise UnsupportedError("precision 'bf16x3' cannot be had", reason)
    if reason is not None and backend != "auto":
        raise UnsupportedError(f"backend {backend!r} cannot run this", reason)
    if reason is not None:
        _warn_fallback(reason)
    return reason is None


_warned: set[str] = set()


def _warn_fallback(reason: str) -> None:
    if reason not in _warned and not torch.compiler.is_compiling():
        _warned.add(reason)
        warn_caller(f"using the PyTorch reference: {reason}", FallbackWarning)
