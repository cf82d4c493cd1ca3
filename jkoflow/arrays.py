"""Numbers out of what Python callers hold: arrays, lists, Series and data frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.errors import UserError
from jkoflow.frames import as_pandas, is_pandas


class InputError(UserError, ValueError):
    """Raised if rows or conditions cannot be taken as numbers, or do not fit a flow; the message tells the fix."""


def as_numbers(data: Any, name: str) -> NDArray[Any]:
    """Returns numbers as an array of floats or integers of the same shape.

    Arguments:
        data: Real numbers or truth values: an array, a tensor, nested lists, or a Series or data frame. Masked and
            missing entries (None, NA) become NaN.
        name: Name of the data in errors.

    Returns:
        The array, of a numpy dtype of kind f, of at least float32, i or u; true and false are 1.0 and 0.0.

    Raises:
        InputError: If an entry is no real number, or rows differ in length.
    """
    data = as_pandas(data)
    if is_pandas(data):
        return _frame_numbers(data, name) if hasattr(data, "columns") else column_numbers(data, name)
    data = stacked(data)
    return tensor_numbers(data, name) if isinstance(data, Tensor) else array_numbers(data, name)


def stacked(data: Any) -> Any:
    """Returns a list of tensors, or of masked arrays, of one shape as one, and everything else as it is."""
    if not isinstance(data, list | tuple) or not data:
        return data
    if all(isinstance(row, Tensor) for row in data):
        return torch.stack([*data])
    if any(isinstance(row, np.ma.MaskedArray) for row in data) and len({np.shape(row) for row in data}) == 1:
        return np.ma.stack(data)
    return data


def tensor_numbers(tensor: Tensor, name: str) -> NDArray[Any]:
    """Returns a tensor, on whatever device, as `as_numbers` does."""
    if tensor.is_complex():
        raise InputError(f"{name} must be real numbers, got {tensor.dtype}; pass real and imaginary parts as columns")
    tensor = tensor.detach().cpu().to_dense()
    if tensor.dtype == torch.bool or (tensor.is_floating_point() and tensor.element_size() < 4):
        tensor = tensor.float()
    return tensor.numpy()


def array_numbers(data: Any, name: str) -> NDArray[Any]:
    """Returns an array or nested lists as `as_numbers` does."""
    try:
        array = data if isinstance(data, np.ma.MaskedArray) else np.asarray(data)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; tensors in lists with gradients
        raise InputError(f"{name} must be an array of real numbers, one row per sample: {error}") from error
    if array.dtype.kind == "O":
        array = _object_numbers(array, name)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must be real numbers, got {array.dtype}; encode it as numbers, or leave it out")
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        return np.ma.filled(array.astype(np.float64), np.nan)
    unusual = array.dtype.kind == "b" or (array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8))
    return np.asarray(array, np.float64 if unusual else array.dtype.newbyteorder("="))


def column_numbers(column: Any, name: str) -> NDArray[Any]:
    """Returns a Series of pandas as `as_numbers` does, with shape (N,)."""
    kind = column.dtype.kind
    if kind in "iu" and not column.hasnans:
        return column.to_numpy(dtype=np.dtype(f"{kind}8"))
    if kind in "fiub":
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    if kind == "O":
        return array_numbers(column.to_numpy(dtype=object, na_value=None), name)
    raise InputError(f"{name} must be real numbers, got {column.dtype}; encode it as numbers, or leave it out")


def _frame_numbers(frame: Any, name: str) -> NDArray[Any]:
    columns = [
        column_numbers(frame.iloc[:, position], f"column {str(label)!r} of {name}")
        for position, label in enumerate(frame.columns)
    ]
    return np.stack(columns, 1) if columns else np.empty((len(frame), 0))


def _object_numbers(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Returns an array of Python's numbers as float64; text is no number even if it reads as one."""
    text = next((entry for entry in array.flat if isinstance(entry, str | bytes)), None)
    if text is not None:
        raise InputError(f"{name} must be real numbers, got {str(text)[:40]!r}; encode it as numbers, or leave it out")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be real numbers: {error}; encode it as numbers, or leave it out") from error
