"""The one door to the integrators: checks the arguments and picks the backend."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from jkoflow.former_names import accepts_former_names
from jkoflow.ops import native, operators, reference
from jkoflow.ops.grid import Fixed, Grid, as_grid
from jkoflow.ops.objective import JKOTerms, jko_terms
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.velocity import MLPField, MLPVelocity

__all__ = ["FallbackWarning", "Fixed", "Grid", "Integrated", "JKOTerms", "integrate", "jko_loss", "jko_terms"]

Backend = Literal["auto", "cpu", "cuda", "reference"]
Divergence = Literal["exact", "hutchinson", "none"]
Precision = Literal["auto", "fp32", "bf16x3", "tf32x3", "tf32"]


class FallbackWarning(UserWarning):
    """``backend="auto"`` uses the PyTorch reference because no fused kernel covers the request."""


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
        velocity: An `MLPVelocity` (fused kernels), or any callable ``velocity(x, t, context)`` that maps (B, d) to
            (B, d) row by row (PyTorch reference).
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
    field = _field(velocity)
    grid = as_grid(num_steps)
    _check(field, x, context, t0, t1, method, divergence, noise, backend, precision)
    if _use_kernel(field, x, divergence, noise, backend, precision):
        assert field is not None
        settings = _settings(field, divergence, t0, t1, grid, method, precision)
        result = operators.integrate_mlp(field, x, context, noise, settings, keep_path)
    else:
        rhs = (
            reference.autograd_rhs(velocity, context, divergence, noise)
            if field is None
            else reference.mlp_rhs(field, context, divergence, noise)
        )
        result = reference.integrate_steps(rhs, x, t0, t1, grid, TABLEAUX[method])
    end, logdet, path = result
    return Integrated(end, logdet, path if keep_path else None)


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
    r"""The JKO objective of one block, for training: the same numbers as `integrate` followed by `jko_terms`.

    The fused kernel computes the value and the gradient in one pass over the batch, while the activations of a tile
    are still in the cache, where ``integrate`` and its backward pass have to compute them twice.

    .. math:: E\left[ \tfrac{1}{2} |y|^2 - \mathrm{logdet} + \tfrac{1}{2h} |y - x|^2 \right], \qquad y = x(t_1)

    Arguments:
        velocity: As in `integrate`.
        x: Pushed samples, with shape (B, d), B at least 1.
        jko_step: JKO step size h, positive; ``inf`` means no penalty.
        context: As in `integrate`, like the rest.
        t0: Start time.
        t1: End time.
        num_steps: Number of equal Runge-Kutta steps, or a grid (`jkoflow.ops.Fixed`).
        method: Runge-Kutta method.
        divergence: ``"exact"`` or ``"hutchinson"``.
        noise: The probe of ``"hutchinson"``, with shape (B, d).
        backend: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"reference"``.
        precision: As in `integrate`.

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
    field = _field(velocity)
    grid = as_grid(num_steps)
    _check(field, x, context, t0, t1, method, divergence, noise, backend, precision)
    if divergence == "none":
        raise ValueError("divergence must be exact or hutchinson: the objective contains it, got 'none'")
    if x.shape[0] == 0:
        raise ValueError(f"x must have at least one row for a mean over the batch, got {tuple(x.shape)}")
    if not jko_step > 0:
        raise ValueError(f"jko_step must be positive (inf for a free block), got {jko_step}")
    kernel = _use_kernel(field, x, divergence, noise, backend, precision)
    if kernel and field is not None and operators.needs_gradient(field, x, context):
        settings = _settings(field, divergence, t0, t1, grid, method, precision)
        return operators.jko_loss_mlp(field, x, context, noise, settings, jko_step)
    end, logdet, _ = integrate(
        velocity,
        x,
        context=context,
        t0=t0,
        t1=t1,
        num_steps=grid,
        method=method,
        divergence=divergence,
        noise=noise,
        backend=backend,
        precision=precision,
        keep_path=False,
    )
    return jko_terms(x, end, logdet, jko_step)


def _use_kernel(
    field: MLPField | None, x: Tensor, divergence: str, noise: Tensor | None, backend: str, precision: str
) -> bool:
    if backend == "reference":
        return False
    reason = native.unsupported(field, x, divergence, noise, backend, precision)
    if reason is not None and precision == "bf16x3":
        raise RuntimeError(f"precision 'bf16x3' cannot be had: {reason}")
    if reason is not None and backend != "auto":
        raise RuntimeError(f"backend {backend!r} cannot run this: {reason}")
    if reason is not None:
        _warn_fallback(reason)
    return reason is None


def _settings(
    field: MLPField, divergence: str, t0: float, t1: float, grid: Grid, method: str, precision: str
) -> native.Settings:
    interval = float(t0), float(t1)
    return native.Settings(divergence, field.time, field.activation.text, *interval, grid, method, precision)


def _field(velocity: object) -> MLPField | None:
    return velocity.field() if isinstance(velocity, MLPVelocity) else None


def _check(
    field: MLPField | None,
    x: Tensor,
    context: Tensor | None,
    t0: float,
    t1: float,
    method: str,
    divergence: str,
    noise: Tensor | None,
    backend: str,
    precision: str,
) -> None:
    if x.dim() != 2 or x.shape[1] < 1 or (field is not None and x.shape[1] != field.dim):
        expected = f"(B, {field.dim}) to match velocity.dim" if field is not None else "(B, d)"
        raise ValueError(f"x must have shape {expected}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor, got {x.dtype}; convert it with x.float()")
    if field is not None:
        parameter = field.weights[0]
        if parameter.dtype != x.dtype or parameter.device != x.device:
            raise ValueError(
                f"x must match the velocity's dtype and device ({parameter.dtype}, {parameter.device}), got "
                f"({x.dtype}, {x.device}); convert one with .to(...)"
            )
        if x.device.type != "cpu":  # a kernel on a GPU cannot even notice that an address is not the GPU's
            for part in (*field.weights, *field.biases, *(() if field.linear is None else (field.linear,))):
                if part.device != x.device:
                    raise ValueError(
                        f"the velocity must be on one device, x's {x.device}, but has parameters on {part.device}; "
                        "move all of it with .to(...)"
                    )
        # in plain comparisons: torch.compile with dynamic shapes cannot trace the message, nor all that Python can
        c = field.context_dim
        if c == 0:
            if context is not None:
                raise ValueError(_context_message(field, x, context))
        elif context is None or context.dim() != 2 or context.shape[0] != x.shape[0] or context.shape[1] != c:
            raise ValueError(_context_message(field, x, context))
    if context is not None and (context.dtype != x.dtype or context.device != x.device):
        raise ValueError(
            f"context must match x's dtype and device ({x.dtype}, {x.device}), got ({context.dtype}, {context.device})"
        )
    if not all(isinstance(t, (int, float)) and abs(t) < float("inf") for t in (t0, t1)):
        raise ValueError(f"t0 and t1 must be finite numbers, got {t0!r} and {t1!r}")
    for name, value, known in (
        ("method", method, tuple(TABLEAUX)),
        ("divergence", divergence, ("exact", "hutchinson", "none")),
        ("backend", backend, ("auto", "cpu", "cuda", "reference")),
        ("precision", precision, ("auto", "fp32", "bf16x3", "tf32x3", "tf32")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if precision == "bf16x3" and (x.dtype != torch.float32 or x.device.type != "cpu" or backend not in ("auto", "cpu")):
        raise ValueError(
            "precision 'bf16x3' is for float32 tensors in the CPU kernels, got "
            f"{x.dtype} on {x.device} with backend={backend!r}"
        )
    if precision in ("tf32x3", "tf32") and (x.device.type != "cuda" or backend not in ("auto", "cuda")):
        raise ValueError(f"precision must be 'auto', 'fp32' or 'bf16x3' outside the CUDA kernels, got {precision!r}")
    if (noise is not None) != (divergence == "hutchinson"):
        raise ValueError(
            f"noise must be {'a probe of shape ' + str(tuple(x.shape)) if noise is None else 'None'} with "
            f"divergence={divergence!r}"
        )
    if noise is not None and (noise.shape != x.shape or noise.dtype != x.dtype or noise.device != x.device):
        raise ValueError(
            f"noise must have shape {tuple(x.shape)} on {x.device} and dtype {x.dtype} as x, got "
            f"{tuple(noise.shape)} on {noise.device}, {noise.dtype}"
        )


def _context_message(field: MLPField, x: Tensor, context: Tensor | None) -> str:
    wanted = (x.shape[0], field.context_dim)
    expected = f"have shape {wanted} to match velocity.context_dim" if field.context_dim else "be None"
    return f"context must {expected}, got {None if context is None else tuple(context.shape)}"


_warned: set[str] = set()


def _warn_fallback(reason: str) -> None:
    if reason not in _warned and not torch.compiler.is_compiling():
        _warned.add(reason)
        warnings.warn(f"using the PyTorch reference: {reason}", FallbackWarning, stacklevel=4)
