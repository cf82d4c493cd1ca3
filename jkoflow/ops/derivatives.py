"""The operators in operations of PyTorch, from which comes what kernels do not compute: derivatives of any order.

Each function takes the arguments of the operator of its name, see `jkoflow.ops.operators`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jkoflow.ops.field_of_network import field_of_network
from jkoflow.ops.grid import Fixed
from jkoflow.ops.library import SLOTS, unpack
from jkoflow.ops.native import equal_steps
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
