"""Checks of what velocities are built from and called with, whose errors name the argument."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def check_sizes(dim: int, hidden: Sequence[int], context_dim: int) -> None:
    """Refuses sizes of which no network can be built.

    Raises:
        ValueError: If a size is not positive, or there is no hidden layer.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    if context_dim < 0:
        raise ValueError(f"context_dim must not be negative, got {context_dim}")
    if len(hidden) == 0 or min(hidden) < 1:
        raise ValueError(f"hidden must list one or more positive widths, got {tuple(hidden)}")


def check_inputs(dim: int, context_dim: int, x: Tensor, context: Tensor | None) -> None:
    """Refuses positions and context that do not fit a velocity.

    Raises:
        ValueError: If a shape does not match, or context is missing or superfluous.
    """
    if x.shape[-1:] != (dim,):
        raise ValueError(f"x must have shape (*, {dim}) to match velocity.dim, got {tuple(x.shape)}")
    if (context is None) != (context_dim == 0) or (context is not None and context.shape[-1:] != (context_dim,)):
        expected = f"with shape (*, {context_dim})" if context_dim else "None"
        found = "None" if context is None else str(tuple(context.shape))
        raise ValueError(f"context must be {expected} to match velocity.context_dim, got {found}")
