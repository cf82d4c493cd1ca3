"""Derivatives of the kernels' gradients, which the PyTorch reference computes: kernels differentiate once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jkoflow.activation import parse_activation
from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.grid import Adaptive, Fixed
from jkoflow.ops.modulation import unpacked
from jkoflow.ops.native import Settings, equal_steps
from jkoflow.ops.native_stages import counted_stages, output_shares, outputs_within
from jkoflow.ops.network import Network
from jkoflow.ops.reference import integrate_steps, mlp_rhs
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.velocity import MLPField

Tensors = dict[str, Tensor]
"""Tensors by name: x, context, and the slots of the network by number. Those that do not exist are left out."""


def network_gradients(
    tensors: Tensors,
    bars: Sequence[Tensor | None],
    network_of: Callable[[Tensors], Network],
    noise: Tensor | None,
    settings: Settings,
) -> Tensors:
    """Returns the gradients of tensors, as the kernels compute them, in operations of PyTorch.

    Arguments:
        tensors: The tensors to differentiate with respect to.
        bars: Gradients of x at t1 (B, d), logdet (B,) and path (num_steps + 1, B, d), None for zero.
        network_of: Function that returns the network of the slots among the tensors.
        noise: The probe of ``"hutchinson"``.
        settings: Settings of the integration.

    Returns:
        Gradients under the names of the tensors. They are differentiable, any number of times.
    """

    def results(given: Tensors) -> tuple[Tensor, ...]:
        found = _integrate(given["x"], given.get("context"), network_of(given), noise, settings)
        return tuple(result for result, bar in zip(found, bars, strict=True) if bar is not None)

    gradients_of = torch.func.vjp(results, tensors)[1]
    return gradients_of(tuple(bar for bar in bars if bar is not None))[0]


def field_of_network(x: Tensor, context: Tensor | None, network: Network, settings: Settings) -> MLPField:
    """Returns the field whose tensors a network has, for x (B, d) and context (B, c)."""
    activation, columns = parse_activation(settings.activation), 0 if context is None else context.shape[1]
    weights, biases = tuple(network.weights), tuple(network.biases)
    rows = [bias.shape[0] for bias in biases]
    modulation, residual = unpacked(settings.layers, network.modulation, rows, columns)
    time = settings.time and modulation is None
    return MLPField(x.shape[1], columns, time, activation, weights, biases, network.linear, modulation, residual)


def _integrate(
    x: Tensor, context: Tensor | None, network: Network, noise: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    rhs = mlp_rhs(field_of_network(x, context, network, settings), context, settings.divergence, noise)
    return integrate_steps(
        rhs, x, settings.t0, settings.t1, Fixed(equal_steps(settings.grid)), TABLEAUX[settings.method]
    )


def stage_results(
    x: Tensor,
    context: Tensor | None,
    networks: Network,
    noise: Tensor | None,
    settings: Settings,
    steps: Tensor,
    output_times: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Takes given steps, every stage with a network of its own, in operations of PyTorch.

    The arguments are those of `jkoflow.ops.native_stages.backward`.

    Returns:
        x at t1 (B, d), logdet (B,), the path (S + 1, B, d), and x and logdet at the output times.
    """
    taken: list[tuple[float, float]] = steps.tolist()
    times = output_times.tolist()
    method = (EMBEDDED if isinstance(settings.grid, Adaptive) else TABLEAUX)[settings.method]
    stages, within = counted_stages(settings, len(times)), outputs_within(taken, times)
    start, logdet, path = x, x.new_zeros(len(x)), [x]
    x_outputs, logdet_outputs = [], []

    def total(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
        terms = (weight * slope for weight, slope in zip(weights, slopes, strict=False) if weight != 0.0)
        return sum(terms, torch.zeros_like(slopes[0]))

    for step, (t, dt) in enumerate(taken):
        velocities: list[Tensor] = []
        divergences: list[Tensor] = []
        for stage in range(stages):
            at = step * stages + stage
            own = Network([w[at] for w in networks.weights], [b[at] for b in networks.biases], None)
            field = field_of_network(x, context, own, settings)
            weights = [dt * weight for weight in method.a[stage]]
            moved = start + total(weights, velocities) if stage else start
            velocity, divergence = mlp_rhs(field, context, settings.divergence, noise)(moved, 0.0)
            velocities.append(velocity)
            divergences.append(divergence)
        for time in times[within[step]]:
            shares = output_shares(settings, t, dt, time)
            x_outputs.append(start + total(shares, velocities))
            logdet_outputs.append(logdet + total(shares, divergences))
        weights = [dt * weight for weight in method.b]
        start, logdet = start + total(weights, velocities), logdet + total(weights, divergences)
        path.append(start)
    outputs = (
        torch.stack(x_outputs) if x_outputs else x.new_empty((0, *x.shape)),
        torch.stack(logdet_outputs) if logdet_outputs else x.new_empty((0, len(x))),
    )
    return start, logdet, torch.stack(path), *outputs
