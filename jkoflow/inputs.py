"""Checks of the rows of data, noise and context that a flow is given, before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor


def check_points(x: Tensor, dim: int, name: str, validate: bool) -> None:
    """Refuses points that a flow cannot carry.

    Arguments:
        x: The points, which must have shape (B, d).
        dim: Number d of features.
        name: Name of the points in errors.
        validate: Whether to look for NaN and inf, too, which waits for the device.

    Raises:
        ValueError: If the shape does not match, or a value is not finite (row and column are named).
    """
    if x.dim() != 2 or x.shape[1] != dim:
        raise ValueError(f"{name} must have shape (B, {dim}) to match flow.dim, got {tuple(x.shape)}")
    if validate:
        _check_finite(x, name)


def check_context(context: Tensor | None, rows: int, context_dim: int, validate: bool) -> None:
    """Refuses conditioning variables that do not match the points.

    Arguments:
        context: The conditioning variables, which must have shape (rows, c); None for an unconditional flow.
        rows: Number of points.
        context_dim: Number c of conditioning variables; 0 for an unconditional flow.
        validate: Whether to look for NaN and inf, too, see `check_points`.

    Raises:
        ValueError: If context is missing or superfluous, its shape does not match or a value is not finite.
    """
    wanted = (rows, context_dim)
    if context is None:
        if context_dim:
            raise ValueError(f"context must have shape {wanted} for this conditional flow, got None")
        return
    if not context_dim:
        raise ValueError(f"context must be None for a flow without conditioning variables, got {tuple(context.shape)}")
    if context.shape != wanted:
        raise ValueError(f"context must have shape {wanted} to match x and the flow, got {tuple(context.shape)}")
    if validate:
        _check_finite(context, "context")


def _check_finite(x: Tensor, name: str) -> None:
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"{name} must be finite, got {x[row, column].item()} in row {row}, column {column} "
            f"({int((~finite).sum())} such values); drop or impute these rows"
        )
