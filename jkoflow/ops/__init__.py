"""The one door to the integrators: checks the arguments and picks the backend."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from jkoflow.former_names import accepts_former_names
from jkoflow.ops import operators, reference, stage_operators
from jkoflow.ops.backend import field_of, settings_of, stages_settings, use_kernel, with_field_at
from jkoflow.ops.checks import Backend, Divergence, Precision, Request, check_request
from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.extension import KernelError, UnsupportedError
from jkoflow.ops.failure import IntegrationError
from jkoflow.ops.fallback import FallbackWarning
from jkoflow.ops.grid import Adaptive, Fixed, Grid, as_grid
from jkoflow.ops.integrated import Integrated
from jkoflow.ops.interval import Time, as_times, interval_between
from jkoflow.ops.objective import JKOTerms, jko_terms
from jkoflow.ops.rows import integrate_rows, right_hand_side, velocity_and_divergence
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.ops.transforms import active
from jkoflow.velocity import MLPField

__all__ = [
    "Adaptive",
    "FallbackWarning",
    "Fixed",
    "Grid",
    "Integrated",
    "IntegrationError",
    "JKOTerms",
    "KernelError",
    "UnsupportedError",
    "integrate",
    "jko_loss",
    "jko_terms",
    "velocity_and_divergence",
]


def integrate(
    velocity: Callable[..., Tensor] | MLPField,
    x: Tensor,
    *,
    context: Tensor | None = None,
    t0: Time = 0.0,
    t1: Time = 1.0,
    num_steps: int | Grid | None = None,
    method: str = "rk4",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
    times: Tensor | Sequence[Time] | None = None,
    divergence: Divergence = "exact",
    noise: Tensor | None = None,
    backend: Backend = "auto",
    precision: Precision = "auto",
    keep_path: bool = True,
) -> Integrated:
    r"""Integrates dx/dt = v(x, t) and the divergence of v with a Runge-Kutta method, in equal or adaptive steps.

    .. math:: x(t_1) = x(t_0) + \int_{t_0}^{t_1} v(x, t)\, dt, \qquad
              \mathrm{logdet} = \int_{t_0}^{t_1} \mathrm{tr}\, \partial_x v(x, t)\, dt

    Gradients of x, logdet and path with respect to the input, the context and the parameters are the exact
    derivatives of the discrete map; those of adaptive steps are of the accepted steps held fixed.

    With adaptive steps every row has its own: neither its result nor its number of evaluations depends on the other
    rows. A step is accepted if the root mean square of its error, over the columns of x and logdet and relative to
    ``atol + rtol * max(abs(y))``, is at most 1. A tolerance is that of a step, and says little about the error at t1.
    Where the weights are functions of t (`jkoflow.velocity.HyperMLP`), all rows take the same steps, by the error over
    the batch, and the weights are made in one call for each step and one for the gradient.

    Arguments:
        velocity: An `MLPVelocity`, `ConcatSquashMLP`, `FourierTimeMLP` or `ResidualMLP` (fused kernels on the CPU, of
            the first one on GPUs, too); a `HyperMLP` (fused step by step on the CPU, evaluation by evaluation on GPUs);
            the weights of a network of your own (`jkoflow.velocity.MLPField`), through which gradients flow to it; or
            any callable ``velocity(x, t, context)`` that maps (B, d) to (B, d) row by row (PyTorch reference).
        x: Positions at t0, float32 or float64, with shape (B, d) and any strides; B may be 0.
        context: Conditioning variables, with shape (B, c).
        t0: Start time, a number or a floating-point tensor of one. Gradients flow to it if it requires them;
            otherwise it is read as a number, for which a tensor on a GPU is waited for.
        t1: End time, likewise; ``t1 < t0`` integrates backwards.
        num_steps: Number of equal Runge-Kutta steps, or a grid (`jkoflow.ops.Fixed`). None means adaptive steps where
            the method has an error estimate, else 3. With ``times`` it is the number between any two of them, and None
            means 1.
        method: ``"euler"``, ``"midpoint"``, ``"heun"``, ``"rk4"`` (the 3/8 rule, as in torchdiffeq) or
            ``"rk4_classic"``; with an error estimate ``"dopri5"``, ``"tsit5"`` (order 5) or ``"bosh3"`` (order 3).
        rtol: Relative tolerance of an adaptive step.
        atol: Absolute tolerance of an adaptive step, positive.
        max_steps: Largest number of adaptive steps of a row, rejected ones included.
        times: Two or more increasing or decreasing times, in place of t0 and t1, at which ``path`` and ``logdet_path``
            are wanted. Adaptive steps do not stop at them: values within a step come from the method's interpolant.
            With equal steps they may be a tensor that requires a gradient.
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
            AMX it is refused. Products for the gradients of the weights stay in float32. ``"float64"`` takes x and the
            weights of an `MLPVelocity` to float64 first, and returns float64; gradients come back in their own types.
            There are float64 kernels for the CPU only.
        keep_path: Whether to return x at every step.

    Returns:
        x at t1 (B, d), logdet (B,), path, the number of evaluations and logdet_path.

    Raises:
        ValueError: If an argument has the wrong shape, dtype or value.
        RuntimeError: If the backend asked for by name cannot run the request.
        jkoflow.ops.IntegrationError: If adaptive steps do not carry a row to t1; it says which row, where and why.

    References:
        | FFJORD: Free-form continuous dynamics for scalable reversible generative models (Grathwohl et al., 2018)
        | https://arxiv.org/abs/1810.01367
        | A family of embedded Runge-Kutta formulae (Dormand and Prince, 1980)
        | https://doi.org/10.1016/0771-050X(80)90013-3

    Example:
        >>> velocity = jkoflow.MLPVelocity(2)
        >>> z, logdet, path = jkoflow.integrate(velocity, torch.randn(5, 2))
        >>> path.shape
        torch.Size([4, 5, 2])
        >>> result = jkoflow.integrate(velocity, torch.randn(5, 2), method="dopri5", times=[1.0, 0.5, 0.0])
        >>> result.path.shape, result.logdet_path.shape
        (torch.Size([3, 5, 2]), torch.Size([3, 5]))
    """
    grid = _grid(num_steps, method, rtol, atol, max_steps, 3 if times is None else 1)
    wanted = None
    if times is not None:
        if (t0, t1) != (0.0, 1.0):
            raise ValueError(f"times stand in place of t0 and t1, which must be left out, got {t0!r} and {t1!r}")
        wanted = as_times(times, isinstance(grid, Adaptive))
        t0, t1 = wanted[0], wanted[-1]
    interval = interval_between(t0, t1)
    ends = interval.start, interval.end
    request = Request(*field_of(velocity), x, context, noise, *ends, grid, method, divergence, backend, precision)
    check_request(request)
    request = with_field_at(request, velocity).in_precision()
    kernel = use_kernel(request)
    if wanted is not None and not isinstance(grid, Adaptive):
        return _integrate_between(velocity, request, kernel, wanted)
    request, velocity = interval.change(request, velocity)
    if isinstance(grid, Adaptive):
        return integrate_rows(velocity, request, kernel, wanted)
    return _integrate(velocity, request, kernel, keep_path)


@accepts_former_names
def jko_loss(
    velocity: Callable[..., Tensor],
    x: Tensor,
    jko_step: float,
    *,
    context: Tensor | None = None,
    t0: Time = 0.0,
    t1: Time = 1.0,
    num_steps: int | Grid | None = None,
    method: str = "rk4",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
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
        t0: Start time, a number or a tensor, see `integrate`.
        t1: End time, likewise.
        num_steps: Number of equal Runge-Kutta steps, or a grid, see `integrate`.
        method: Runge-Kutta method.
        rtol: Relative tolerance of an adaptive step.
        atol: Absolute tolerance of an adaptive step.
        max_steps: Largest number of adaptive steps of a row.
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
    grid = _grid(num_steps, method, rtol, atol, max_steps, 3)
    interval = interval_between(t0, t1)
    ends = interval.start, interval.end
    request = Request(*field_of(velocity), x, context, noise, *ends, grid, method, divergence, backend, precision)
    check_request(request)
    if divergence == "none":
        raise ValueError("divergence must be exact or hutchinson: the objective contains it, got 'none'")
    if x.shape[0] == 0:
        raise ValueError(f"x must have at least one row for a mean over the batch, got {tuple(x.shape)}")
    if not jko_step > 0:
        raise ValueError(f"jko_step must be positive (inf for a free block), got {jko_step}")
    request, velocity = interval.change(with_field_at(request, velocity).in_precision(), velocity)
    kernel, field, x, context = use_kernel(request), request.field, request.x, request.context
    if isinstance(grid, Adaptive):
        end, logdet, *_ = integrate_rows(velocity, request, kernel, None)
        return jko_terms(x, end, logdet, jko_step)
    if kernel and field is not None and not active() and operators.needs_gradient(field, x, context):
        return operators.jko_loss_mlp(field, x, context, request.noise, settings_of(request, field), jko_step)
    end, logdet, *_ = _integrate(velocity, request, kernel, keep_path=False)
    return jko_terms(x, end, logdet, jko_step)


def _grid(
    num_steps: int | Grid | None, method: str, rtol: float, atol: float, max_steps: int, default: int
) -> Grid | Adaptive:
    """Returns equal steps if their number is given or the method has no error estimate, else adaptive ones."""
    if num_steps is None and isinstance(method, str) and method in EMBEDDED:
        return Adaptive(rtol, atol, max_steps).checked()
    return as_grid(default if num_steps is None else num_steps)


def _integrate_between(
    velocity: Callable[..., Tensor] | MLPField, request: Request, kernel: bool, times: list[Time]
) -> Integrated:
    """Integrates with equal steps from each of the times to the next."""
    x, logdet, evaluations = request.x, request.x.new_zeros(len(request.x)), 0
    path, logdet_path = [x], [logdet]
    for start, end in itertools.pairwise(times):
        interval = interval_between(start, end)
        part, changed = interval.change(request._replace(x=x, t0=interval.start, t1=interval.end), velocity)
        part = _integrate(changed, part, kernel, keep_path=False)
        x, logdet, evaluations = part.x, logdet + part.logdet, evaluations + int(part.evaluations)
        path.append(x)
        logdet_path.append(logdet)
    return Integrated(x, logdet, torch.stack(path), evaluations, torch.stack(logdet_path))


def _integrate(
    velocity: Callable[..., Tensor] | MLPField, request: Request, kernel: bool, keep_path: bool
) -> Integrated:
    field, x, context, noise = request.field, request.x, request.context, request.noise
    grid = as_grid(request.grid)  # type: ignore[arg-type]
    if kernel and field is not None:
        result = operators.integrate_mlp(field, x, context, noise, settings_of(request, field), keep_path)
    elif kernel and request.fields_at is not None:
        settings = stages_settings(request)
        result = stage_operators.integrate_stages(request.fields_at, x, context, noise, settings, keep_path)
    else:
        rhs = right_hand_side(velocity, request, kernel)
        tableau = TABLEAUX[request.method]
        result = reference.integrate_steps(rhs, x, request.t0, request.t1, grid, tableau)
    end, logdet, path = result
    evaluations = grid.num_steps * TABLEAUX[request.method].stages
    return Integrated(end, logdet, path if keep_path else None, evaluations)
