"""The rows of data, noise and context that a flow is given: brought into one form and checked before any computation.

Rows of the flow's dtype in a tensor of shape (B, d) pass through as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from jkoflow.arrays import InputError, as_numbers, stacked
from jkoflow.frames import as_pandas, is_frame

T = TypeVar("T")

Rows = Tensor | ArrayLike
"""Rows of numbers: a tensor, or an array, list, Series or data frame of any library, which is copied into a tensor."""


def in_order(rows: T, names: tuple[str, ...] | None, name: str) -> T:
    """Returns the columns of a data frame, or the entries of one row of it, in a flow's order, found by name.

    Other rows, and a frame without names, are returned as they are. A Series is one row if its labels are the columns'
    names, and else a column.

    Raises:
        InputError: If the frame lacks one of the columns.
    """
    if names is None or not is_frame(rows):
        return rows
    frame: Any = as_pandas(rows)
    is_row = not hasattr(frame, "columns")
    labels = frame.index if is_row else frame.columns
    if is_row and not is_row_of(frame, names):
        return frame
    have = labels_of(frame)
    if not set(names) <= set(have):
        if all(isinstance(label, int) for label in labels):
            return frame
        missing = ", ".join(wanted for wanted in names if wanted not in have)
        raise InputError(f"{name} lacks the column {missing} that the flow was trained on; it has {', '.join(have)}")
    places = [have.index(wanted) for wanted in names]
    return frame.iloc[places] if is_row else frame.iloc[:, places]


def labels_of(frame: Any) -> list[str]:
    """Returns the names of a data frame's columns, or of a Series' entries, as text."""
    return [str(label) for label in getattr(frame, "columns", frame.index)]


def is_row_of(series: Any, names: Sequence[str]) -> bool:
    """Tells whether a Series of pandas is one row of a data frame with some of the names, and not a column."""
    return series.index.dtype.kind not in "iufM" and not set(names).isdisjoint(map(str, series.index))


def take_points(x: Rows, dim: int, name: str, like: Tensor, validate: bool) -> tuple[Tensor, torch.Size]:
    """Returns points in the form that a flow can carry, and the shape of their results.

    Arguments:
        x: The points, with shape (..., d), such as (B, d), or (d,) for a single one; with one column (N,) are N points.
        dim: Number d of features.
        name: Name of the points in errors.
        like: A tensor with the flow's dtype, and its device for what is not a tensor yet.
        validate: Whether to look for NaN and inf, too, which waits for the device.

    Returns:
        The points, with shape (B, d), and the axes (...), of which B is the product. Gradients flow through.

    Raises:
        InputError: If the shape does not match, or a value is no number or not finite (row and column are named).
    """
    rows = x if _is_plain(x, like) else _to_tensor(x, name, like)
    if dim == 1 and rows.dim() < 2:
        rows = rows.unsqueeze(-1)
    if rows.dim() < 1 or rows.shape[-1] != dim:
        raise InputError(f"{name} must have shape (B, {dim}) to match flow.dim, got {tuple(rows.shape)}")
    if validate:
        _check_finite(rows, x, name)
    leading = rows.shape[:-1]
    return (rows if rows.dim() == 2 else rows.reshape(-1, dim)), leading


def take_context(
    context: Rows | None, leading: torch.Size, context_dim: int, like: Tensor, validate: bool
) -> Tensor | None:
    """Returns conditioning variables in the form that a flow can read.

    Arguments:
        context: The conditioning variables, with shape (..., c), or (...) if c is 1; one condition, (c,) or
            a data frame of one row, is that of all points; None for an unconditional flow.
        leading: The axes (...) of the points, see `take_points`.
        context_dim: Number c of conditioning variables; 0 for an unconditional flow.
        like: As for `take_points`.
        validate: Whether to look for NaN and inf, too, see `take_points`.

    Returns:
        One row for each point, with shape (B, c), or None.

    Raises:
        InputError: If context is missing or superfluous, its shape does not match or a value is no number or not
            finite.
    """
    if context is None:
        if context_dim:
            raise InputError(f"context must have shape {(*leading, context_dim)} for this conditional flow, got None")
        return None
    rows = context if _is_plain(context, like) else _to_tensor(context, "context", like)
    if not context_dim:
        raise InputError(f"context must be None for a flow without conditioning variables, got {tuple(rows.shape)}")
    if is_frame(context) and rows.shape == (1, context_dim):
        rows = rows[0]
    if rows.dim() != 2 or len(leading) != 1 or rows.shape[0] != leading[0] or rows.shape[1] != context_dim:
        rows = _spread(rows, leading, context_dim)
    if validate:
        _check_finite(rows, context, "context")
    return rows


def take_conditions(context: Rows | None, context_dim: int, like: Tensor, validate: bool) -> Tensor | None:
    """Returns conditioning variables that come without points, in axes of their own.

    Arguments:
        context: The conditioning variables, with shape (..., c); if c is 1, (...) without a last axis of 1 will do;
            None for an unconditional flow.
        context_dim: Number c of conditioning variables; 0 for an unconditional flow.
        like: As for `take_points`.
        validate: Whether to look for NaN and inf, too, see `take_points`.

    Returns:
        The conditions, with shape (..., c), or None.

    Raises:
        InputError: As `take_context` does.
    """
    if context is None or not context_dim:
        return take_context(context, torch.Size(), context_dim, like, validate)
    rows = context if _is_plain(context, like) else _to_tensor(context, "context", like)
    if context_dim == 1 and rows.shape[-1:] != (1,):
        rows = rows.unsqueeze(-1)
    if rows.shape[-1:] != (context_dim,):
        raise InputError(f"context must have shape (..., {context_dim}) to match the flow, got {tuple(rows.shape)}")
    if validate:
        _check_finite(rows, context, "context")
    return rows


def shaped(rows: Tensor, leading: torch.Size) -> Tensor:
    """Returns results (B,) or (B, d) under the axes of the points that they belong to, (...) or (..., d)."""
    return rows if len(leading) == 1 else rows.reshape(leading + rows.shape[1:])


def _is_plain(data: Any, like: Tensor) -> TypeGuard[Tensor]:
    """Tells whether data are a tensor already that a flow reads as it is."""
    return isinstance(data, Tensor) and data.dtype == like.dtype and data.layout is torch.strided


def _to_tensor(data: Any, name: str, like: Tensor) -> Tensor:
    data = stacked(data)
    if not isinstance(data, Tensor):
        return torch.tensor(np.asarray(as_numbers(data, name), order="C")).to(like)  # which has no negative strides
    if data.is_complex():
        raise InputError(f"{name} must be real numbers, got {data.dtype}; pass real and imaginary parts as columns")
    return data.to_dense().to(like.dtype)


def _spread(rows: Tensor, leading: torch.Size, context_dim: int) -> Tensor:
    """Returns one row (B, c) of context for each point, from one for all of them, or in the shape of the points."""
    wanted, given = torch.Size((*leading, context_dim)), rows.shape
    if context_dim == 1 and (given == leading or not given):
        rows = rows.unsqueeze(-1)
    if rows.shape not in (wanted, wanted[-1:]):
        raise InputError(f"context must have shape {tuple(wanted)} to match x and the flow, got {tuple(given)}")
    return rows.expand(wanted).reshape(-1, context_dim)


def _check_finite(rows: Tensor, given: Any, name: str) -> None:
    finite = torch.isfinite(rows)
    if torch.compiler.is_compiling():  # a program without branches: it stops at this assertion
        torch.ops.aten._assert_async.msg(finite.all(), f"{name} must be finite; drop or impute rows with NaN or inf")
        return
    if is_functorch_wrapped_tensor(finite):  # by torch.func.vmap: all rows at once, by no number
        if not bool(_unwrapped(finite).all()):
            raise InputError(f"{name} must be finite, got NaN or inf; drop or impute these rows")
        return
    if bool(finite.all()):
        return
    place = (~finite).nonzero()[0].tolist()
    value, row, column = rows[tuple(place)].item(), place[:-1], place[-1]
    where = f"row {row[0] if len(row) == 1 else tuple(row)}, column {column}" if row else f"column {column}"
    count = f"{int((~finite).sum())} such values"
    if np.isfinite(as_numbers(given, name)).all():
        raise InputError(
            f"{name} must be finite in the flow's {rows.dtype}, got values beyond it in {where} ({count}); rescale the "
            "column, or use flow.double()"
        )
    raise InputError(f"{name} must be finite, got {value} in {where} ({count}); drop or impute these rows")


def _unwrapped(tensor: Tensor) -> Tensor:
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor
