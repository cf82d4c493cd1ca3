"""The operators in operations of PyTorch, from which comes what kernels do not compute: derivatives of any order.

Each function takes the arguments of the operator of its name, see `jkoflow.ops.operators`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.field_of_network import field_of_network
from jkoflow.ops.grid import Adaptive, Fixed
from jkoflow.ops.library import SLOTS, unpack
from jkoflow.ops.native import equal_steps
from jkoflow.ops.native_stages import counted_stages, output_shares, outputs_within
from jkoflow.ops.network import Network
from jkoflow.ops.objective import jko_terms
from jkoflow.ops.reference import integrate_steps, mlp_rhs
from jkoflow.ops.replay import integrate_adaptive as replayed
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.ops.transforms import pulled_back


def integrate(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x at t1, logdet, and path, which is empty unless it is kept."""
    x, context, network, noise, settings, (keep_path,) = unpack(arguments)
    rhs = mlp_rhs(field_of_network(x, context, network, settings), context, settings.divergence, noise)
    grid = Fixed(equal_steps(settings.grid))
    end, logdet, path = integrate_steps(rhs, x, settings.t0, settings.t1, grid, TABLEAUX[settings.method])
    return end, logdet, path if keep_path else path[:0]


def integrate_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Returns the gradients of `integrate` by those of its results."""
    path, *rest = arguments
    request, bars, wanted = rest[: 3 + SLOTS], rest[3 + SLOTS : -1], arguments[-1]
    return _gradients(integrate, (path[0], *request, True), 1, bars, wanted)


def evaluate(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Returns velocity and divergence."""
    x, times, *rest = arguments
    x, context, network, noise, settings, _ = unpack((x, *rest))
    rhs = mlp_rhs(field_of_network(x, context, network, settings), context, settings.divergence, noise)
    return rhs(x, 0.0 if times is None else times)


def evaluate_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Returns the gradients of `evaluate` by those of its results."""
    request, bars, wanted = arguments[: 5 + SLOTS], arguments[5 + SLOTS : -1], arguments[-1]
    return _gradients(evaluate, request, 2, bars, wanted)


def integrate_adaptive_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Returns the gradients of the recorded steps, held fixed, by those of the results."""
    request, bars, wanted = arguments[: 7 + SLOTS], arguments[7 + SLOTS : -1], arguments[-1]
    return _gradients(replayed, request, 1, bars, wanted)


def stages(*arguments: Any) -> tuple[Tensor, ...]:
    """Takes given steps, every stage with a network of its own.

    The arguments are those of `stages_backward` up to the output times.

    Returns:
        x at t1 (B, d), logdet (B,), the path (S + 1, B, d), and x and logdet at the output times.
    """
    x, context, networks, noise, settings, (steps, output_times) = unpack(arguments)
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


def stages_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Returns the gradients of `stages` by those of its results."""
    request, bars, wanted = arguments[: 6 + SLOTS], arguments[7 + SLOTS : -1], arguments[-1]
    return _gradients(stages, request, 1, bars, wanted)


def jko_loss(*arguments: Any) -> tuple[Tensor]:
    """Returns the total of the objective."""
    *request, jko_step, _, _ = arguments
    end, logdet, _ = integrate(*request, False)
    return (jko_terms(arguments[0], end, logdet, jko_step).total,)


def _gradients(
    function: Callable[..., tuple[Tensor, ...]],
    arguments: Sequence[Any],
    others: int,
    bars: Sequence[Tensor | None],
    wanted: bool,
) -> tuple[Tensor, ...]:
    """Returns gradients as the operators do: of x, of the arguments between it and the slots, of all slots in one."""
    x, slots = arguments[0], 1 + others
    places = [*(True,) * slots, *(wanted,) * SLOTS, *(False,) * (len(arguments) - slots - SLOTS)]
    found = list(pulled_back(function, arguments, places, bars))
    for i, argument in enumerate(arguments):
        if places[i] and isinstance(argument, Tensor) and found[i] is None:
            found[i] = torch.zeros_like(argument)
    rows = (x.new_empty((0,)) if gradient is None else gradient for gradient in found[:slots])
    of_slots = [gradient.reshape(-1) for gradient in found[slots : slots + SLOTS] if gradient is not None]
    return *rows, torch.cat(of_slots) if of_slots else x.new_empty((0,))
