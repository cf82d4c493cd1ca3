"""Calls of modules in float64, whatever the type of their parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def call_in_float64(module: nn.Module, *arguments: Any, graph: bool = True) -> Any:
    """Calls a module as if it had been converted to float64; the module itself stays as it is.

    Arguments:
        module: The module; its floating-point parameters and buffers are converted for this call.
        arguments: Arguments of its ``forward``.
        graph: Whether gradients flow back to the parameters.

    Returns:
        What ``forward`` returns.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> call_in_float64(layer, torch.zeros(3, 2, dtype=torch.float64)).dtype, layer.weight.dtype
        (torch.float64, torch.float32)
    """
    with torch.set_grad_enabled(graph and torch.is_grad_enabled()):
        tensors = {
            name: tensor.double() if tensor.is_floating_point() else tensor
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }
    return torch.func.functional_call(module, tensors, arguments)
