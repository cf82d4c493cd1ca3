"""The readable PyTorch twin of the kernels: their oracle in float64, and the fallback on any device and dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.ops.grid import Grid
from jkoflow.ops.tableau import Tableau
from jkoflow.velocity import MLPField

RightHandSide = Callable[[Tensor, "float | Tensor"], tuple[Tensor, Tensor]]
"""Function that maps x (B, d) and t, a number or (B,), to the velocity (B, d) and its divergence (B,)."""


def integrate_steps(
    rhs: RightHandSide, x: Tensor, t0: float, t1: float, grid: Grid, tableau: Tableau
) -> tuple[Tensor, Tensor, Tensor]:
    """Integrates dx/dt and the divergence with one explicit Runge-Kutta method.

    The increments of x and logdet are added with compensation (Kahan, "Further remarks on reducing truncation errors",
    1965), so that rounding does not grow with the number of steps.

    Returns:
        x at t1 (B, d), logdet (B,) and the path of x at every step (num_steps + 1, B, d).
    """
    num_steps = grid.num_steps
    dt = (t1 - t0) / num_steps
    state = beginning(x)
    path = [x]
    for step in range(num_steps):
        t = t0 + step * dt
        state = one_step(rhs, state, [t + c * dt for c in tableau.c], dt, tableau)
        path.append(state.x)
    return state.x, state.logdet, torch.stack(path)


class State(NamedTuple):
    """Where an integration stands, with what rounding has cut off its sums."""

    x: Tensor
    """Positions, with shape (B, d)."""
    logdet: Tensor
    """Integral of the divergence, with shape (B,)."""
    x_rest: Tensor
    logdet_rest: Tensor


def beginning(x: Tensor) -> State:
    """Returns the state of an integration that begins at x (B, d)."""
    logdet = x.new_zeros(x.shape[0])
    return State(x, logdet, torch.zeros_like(x), torch.zeros_like(logdet))


def one_step(rhs: RightHandSide, state: State, times: Sequence[float | Tensor], dt: float, tableau: Tableau) -> State:
    """Takes one step of length dt, whose stages are at the given times.

    What stages and path see of a position is x alone, as in the kernels, whose adjoint starts from the path.
    """
    slopes: list[Tensor] = []
    divergences: list[Tensor] = []
    for row, t in zip(tableau.a, times, strict=True):
        velocity, divergence = rhs(state.x + _weighted_sum(dt, row, slopes) if any(row) else state.x, t)
        slopes.append(velocity)
        divergences.append(divergence)
    x, x_rest = _compensated_sum(state.x, state.x_rest, _weighted_sum(dt, tableau.b, slopes))
    logdet, rest = _compensated_sum(state.logdet, state.logdet_rest, _weighted_sum(dt, tableau.b, divergences))
    return State(x, logdet, x_rest, rest)


def _weighted_sum(dt: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Returns dt times the sum of slopes, of which at least one has a weight other than zero."""
    terms = [(dt * weight) * slope for weight, slope in zip(weights, slopes, strict=True) if weight != 0.0]
    return sum(terms[1:], terms[0])


def _compensated_sum(total: Tensor, rest: Tensor, increment: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sum of all three and what its rounding cuts off, which is a constant to autograd."""
    increment = increment + rest
    new = total + increment
    return new, increment.detach() - (new.detach() - total.detach())


def trace_matrix(weights: Sequence[Tensor], dim: int) -> Tensor:
    r"""Computes the trace matrix of the closed-form divergence (with one hidden layer a vector), once per integration.

    With one hidden layer :math:`c_a = \sum_i W^1_{ai} W^2_{ia}`, so that div = c . s_1, shape (H1,);
    with two :math:`M = W^2 \circ (W^1_x W^3)^T`, so that div = s_2^T M s_1, shape (H2, H1).
    """
    first_x = weights[0][:, :dim]
    if len(weights) == 2:
        return (first_x * weights[1].T).sum(1)
    return weights[1] * (first_x @ weights[2]).T


def closed_form(field: MLPField) -> bool:
    """Tells whether the exact divergence has a closed form: one or two hidden layers, without a gate at the output."""
    return len(field.weights) <= 3 and not field.gated_output


def mlp_rhs(field: MLPField, context: Tensor | None, divergence: str, noise: Tensor | None) -> RightHandSide:
    """Returns the velocity of an MLP with its divergence: closed form, tangents, Hutchinson or none."""
    sigma, weights, biases, modulation = field.activation, field.weights, field.biases, field.modulation
    # Tensors of their own: a loop that PyTorch exports takes no two views of one tensor.
    first_x, residual = weights[0][:, : field.dim].clone(), field.residual
    first_t = weights[0][:, field.dim].clone() if field.time else None
    offset = biases[0]
    if context is not None and modulation is None:
        offset = context @ weights[0][:, field.dim + int(field.time) :].T + biases[0]
    traced = trace_matrix(weights, field.dim) if divergence == "exact" and closed_form(field) else None
    beside = trace_matrix((weights[0], weights[-1]), field.dim) if traced is not None and residual else None
    trace = torch.trace(field.linear) if field.linear is not None else 0.0

    def rhs(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        u = None if modulation is None else modulation.inputs(t, context, x)

        def modulated(z: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
            """Returns scaled and shifted pre-activations, and the scale."""
            if modulation is None or u is None:
                return z, None
            scale, shift = modulation.at(u, layer)
            z = z if scale is None else scale * z
            return (z if shift is None else z + shift), scale

        z = x @ first_x.t() + offset
        if first_t is not None:
            z = z + (t.unsqueeze(-1) if isinstance(t, Tensor) else t) * first_t
        slopes = []
        h = x
        for layer in range(len(weights) - 1):
            if layer > 0:
                z = h @ weights[layer].t() + biases[layer]
            z, scale = modulated(z, layer)
            value = sigma.value(z)
            h = h + value if residual and layer > 0 else value
            slope = sigma.slope(z)
            slopes.append(slope if scale is None else slope * scale)
        velocity, output_scale = modulated(h @ weights[-1].t() + biases[-1], len(weights) - 1)
        if field.linear is not None:
            velocity = velocity + x @ field.linear.t()
        if divergence == "none":
            return velocity, x.new_zeros(x.shape[0])
        if traced is not None:
            if len(slopes) == 1:
                return velocity, slopes[0] @ traced + trace
            straight = trace if beside is None else slopes[0] @ beside + trace
            return velocity, ((slopes[0] @ traced.t()) * slopes[1]).sum(1) + straight
        # Tangents: columns of each layer's Jacobian, (directions, B, H); all d of them, or the one along the noise.
        tangents = slopes[0] * (first_x.t().unsqueeze(1) if noise is None else (noise @ first_x.t()).unsqueeze(0))
        for weight, slope in zip(weights[1:-1], slopes[1:], strict=True):
            carried = slope * (tangents @ weight.t())
            tangents = tangents + carried if residual else carried
        if noise is None:
            if output_scale is None:
                return velocity, torch.einsum("kbh,kh->b", tangents, weights[-1]) + trace
            ends = torch.einsum("kbh,kh->bk", tangents, weights[-1])
            return velocity, (output_scale * ends).sum(1) + trace
        jacobian_noise = tangents[0] @ weights[-1].t()
        if output_scale is not None:
            jacobian_noise = output_scale * jacobian_noise
        if field.linear is not None:
            jacobian_noise = jacobian_noise + noise @ field.linear.t()
        return velocity, (noise * jacobian_noise).sum(1)

    return rhs


def field_rhs(
    field_at: Callable[[float | Tensor], MLPField], context: Tensor | None, divergence: str, noise: Tensor | None
) -> RightHandSide:
    """Returns an MLP whose weights depend on t, which is one number for all rows, with its divergence."""

    def rhs(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        return mlp_rhs(field_at(float(t)), context, divergence, noise)(x, t)

    return rhs


def autograd_rhs(
    velocity: Callable[..., Tensor], context: Tensor | None, divergence: str, noise: Tensor | None
) -> RightHandSide:
    """Returns any differentiable velocity(x, t, context) with its divergence by autograd: d products, or one."""

    def rhs(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        if divergence == "none":
            return _checked(velocity(x, t, context), x), x.new_zeros(x.shape[0])
        keep_graph = torch.is_grad_enabled()
        # Inference mode records no graph at all: the divergence would come out as zero.
        with torch.inference_mode(False), torch.enable_grad():
            x = _recordable(x)
            x = x if x.requires_grad else x.detach().requires_grad_()
            v = _checked(velocity(x, t, None if context is None else _recordable(context)), x)
            if not v.requires_grad:
                raise ValueError(
                    "velocity must be differentiable in x for its divergence, but its output has no autograd graph "
                    "(is it computed under torch.no_grad, or constant?); return v + 0 * x for a constant velocity, or "
                    'pass divergence="none"'
                )
            directions = torch.eye(x.shape[1], dtype=x.dtype, device=x.device) if noise is None else noise.unsqueeze(0)
            total = x.new_zeros(x.shape[0])
            for direction in directions:
                (row,) = torch.autograd.grad(
                    v, x, direction.expand_as(v), create_graph=keep_graph, retain_graph=True, materialize_grads=True
                )
                total = total + (row * direction).sum(1)
        return (v, total) if keep_graph else (v.detach(), total.detach())

    return rhs


def _checked(v: Tensor, x: Tensor) -> Tensor:
    if v.shape != x.shape:  # would broadcast silently
        raise ValueError(f"velocity must return the shape of x, {tuple(x.shape)}, got {tuple(v.shape)}")
    return v


def _recordable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
