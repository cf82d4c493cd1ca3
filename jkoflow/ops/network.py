"""The tensors of a velocity network as the kernels take them, and what they must be so that no kernel leaves them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Network(NamedTuple):
    """The tensors of an `MLPField`, or gradients of them."""

    weights: list[Tensor]
    biases: list[Tensor]
    linear: Tensor | None

    @property
    def slots(self) -> list[Tensor]:
        """Weight and bias of each layer in turn, then the linear term, if any."""
        layers = [tensor for layer in zip(self.weights, self.biases, strict=True) for tensor in layer]
        return layers if self.linear is None else [*layers, self.linear]

    def new_gradient(self) -> Tensor:
        """Returns uninitialised gradients of the slots one after the other in one tensor: allocated, scaled at once."""
        return self.weights[0].new_empty((sum(slot.numel() for slot in self.slots),))


def check_tensor(tensor: object, name: str, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuses what is not a dense tensor of a shape, with the dtype and on the device of another.

    Raises:
        ValueError: If it is anything else; the message names what it must be and what it is.
    """
    if not (
        isinstance(tensor, Tensor)
        and tensor.dtype == like.dtype
        and tensor.device == like.device
        and tensor.layout is torch.strided
        and tensor.shape == shape
    ):
        expected = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(_message(tensor, name, f"({expected})", like))


def check_network(
    weights: list[Tensor] | tuple[Tensor, ...],
    biases: list[Tensor] | tuple[Tensor, ...],
    linear: Tensor | None,
    columns: int,
    x: Tensor,
) -> None:
    """Refuses layers that do not chain from the columns of layer 1 to the columns of x, (B, d), or are not like x.

    Raises:
        ValueError: If a tensor does not fit; the message names the layer, what it must be and what it is.
    """
    dim = x.shape[1]
    if len(weights) < 2 or len(weights) != len(biases):
        raise ValueError(
            f"velocity.layers must hold 2 or more layers, each with weight and bias, got {len(weights)} weights and "
            f"{len(biases)} biases; build a new MLPVelocity"
        )
    last = len(weights) - 1
    for index in range(len(weights)):
        weight, bias = weights[index], biases[index]
        rows = dim
        if index < last:
            rows = weight.shape[0] if isinstance(weight, Tensor) and weight.dim() == 2 else 0
            if rows == 0:
                raise ValueError(_message(weight, f"velocity.layers[{index}].weight", f"(1 or more, {columns})", x))
        check_tensor(weight, f"velocity.layers[{index}].weight", (rows, columns), x)
        check_tensor(bias, f"velocity.layers[{index}].bias", (rows,), x)
        columns = rows
    if linear is not None:
        check_tensor(linear, "velocity.linear.weight", (dim, dim), x)


def _message(tensor: object, name: str, shape: str, like: Tensor) -> str:
    fix = "build a new MLPVelocity of the sizes that you want" if name.startswith("velocity.") else ""
    if not isinstance(tensor, Tensor):
        found = "None" if tensor is None else f"a {type(tensor).__name__}"
    else:
        layout = "" if tensor.layout is torch.strided else f"{tensor.layout}, "
        found = f"shape {tuple(tensor.shape)}, {layout}{tensor.dtype} on {tensor.device}"
        if tensor.dtype != like.dtype or tensor.device != like.device:
            fix = "convert it with .to(...)"
    expected = f"a dense tensor of shape {shape}, {like.dtype} on {like.device}, to fit x"
    return f"{name} must be {expected}, got {found}" + (f"; {fix}" if fix else "")
