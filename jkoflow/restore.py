"""Modules out of checkpoints, whose sizes are compared with the file's before anything is allocated for them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from jkoflow.checkpoint import CheckpointError

M = TypeVar("M", bound=nn.Module)

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64)}
"""Types of a model's numbers by name."""


@contextlib.contextmanager
def described(path: str | Path, what: str) -> Iterator[None]:
    """Turns whatever a wrong description makes of itself into an error that names the file.

    Raises:
        CheckpointError: If something within is missing, of another type or out of its range.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())  # what PyTorch says takes several lines
        raise CheckpointError(f"{path} does not describe {what}: {type(error).__name__}: {text[:300]}") from error


def restored(build: Callable[[], M], tensors: Mapping[str, Tensor]) -> M:
    """Builds a module and gives it the tensors of a file, which are not copied.

    The module is built without memory for its tensors, so that a description of a few bytes cannot ask for much more
    than its file has. A class whose numbers have ranges says so by a method ``check_numbers``.

    Arguments:
        build: Function that builds the module. Its tensors are created on PyTorch's default device.
        tensors: Its tensors by name.

    Raises:
        RuntimeError: If the names or shapes are others than the module's.
        ValueError: If a tensor is of another type than the module's, or a number is NaN or out of its range.
    """
    with torch.device("meta"):
        module = build()
    for name, tensor in module.state_dict().items():
        if name in tensors and tensors[name].dtype != tensor.dtype:
            raise ValueError(f"{name} must be {tensor.dtype}, got {tensors[name].dtype}")
    module.load_state_dict(tensors, assign=True)
    check_numbers(module)
    return module


def check_numbers(module: nn.Module) -> None:
    """Refuses NaN and infinite parameters, NaN in buffers, and what ``check_numbers`` of a part of the module refuses.

    Raises:
        ValueError: If there is one; the message names the tensor.
    """
    for name, tensor in module.named_parameters():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or inf")
    for name, tensor in module.named_buffers():
        if bool(tensor.isnan().any()):
            raise ValueError(f"{name} must hold numbers, got NaN")
    for part in module.modules():
        check: Any = getattr(part, "check_numbers", None)
        if check is not None:
            check()
