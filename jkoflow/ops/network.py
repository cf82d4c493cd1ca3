"""The tensors of a velocity network as the kernels take them, and the checks that keep kernels within their memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.velocity import GATES, MLPField, Modulation


class Network(NamedTuple):
    """The tensors of an `MLPField`, or their gradients."""

    weights: list[Tensor]
    biases: list[Tensor]
    linear: Tensor | None
    modulation: Tensor | None = None  # all its numbers, see `jkoflow.ops.modulation`

    @property
    def slots(self) -> list[Tensor]:
        """Returns weight and bias of each layer in turn, then the linear term and the modulation, if any."""
        layers = [tensor for layer in zip(self.weights, self.biases, strict=True) for tensor in layer]
        return [*layers, *(tensor for tensor in (self.linear, self.modulation) if tensor is not None)]

    def new_gradient(self) -> Tensor:
        """Returns one uninitialised tensor for the gradients of all slots: one allocation, one scaling."""
        return self.weights[0].new_empty((sum(slot.numel() for slot in self.slots),))


def check_field(field: MLPField, x: Tensor) -> None:
    """Refuses layers whose shapes do not chain from layer 1 to the columns of x (B, d), or unlike x in dtype or device.

    Raises:
        ValueError: If a tensor does not fit; the message names the layer, what was expected and what was found.
    """
    weights, biases, linear = field.weights, field.biases, field.linear
    columns = field.inputs
    dim, dtype, device, dense, last = x.shape[1], x.dtype, x.device, torch.strided, len(weights) - 1
    for index, weight in enumerate(weights):
        bias, shape = biases[index], weight.shape
        rows = dim if index == last else (shape[0] if len(shape) == 2 else 0)
        # all at once, since it takes place in every call; the messages are made where there is something to refuse
        if not (
            shape == (rows, columns)
            and rows > 0
            and bias.shape == (rows,)
            and weight.dtype is bias.dtype is dtype
            and weight.device == bias.device == device
            and weight.layout is bias.layout is dense
        ):
            where = f"velocity.layers[{index}]"
            if rows == 0:
                raise ValueError(_message(weight, f"{where}.weight", f"(1 or more, {columns})", x))
            if not _fits(weight, (rows, columns), x):
                raise ValueError(_message(weight, f"{where}.weight", f"({rows}, {columns})", x))
            raise ValueError(_message(bias, f"{where}.bias", f"({rows},)", x))
        columns = rows
    if linear is not None and not _fits(linear, (dim, dim), x):
        raise ValueError(_message(linear, "velocity.linear.weight", f"({dim}, {dim})", x))
    if field.residual:
        _check_residual(weights)
    if field.modulation is not None:
        _check_modulation(field, field.modulation, x)


def _check_residual(weights: tuple[Tensor, ...]) -> None:
    for index, weight in enumerate(weights[1:-1], start=1):
        if weight.shape[0] != weight.shape[1]:
            raise ValueError(
                f"velocity.layers[{index}].weight must be square, since the layer is added to what it reads, got shape "
                f"{tuple(weight.shape)}; give all hidden layers one width"
            )


def _check_modulation(field: MLPField, modulation: Modulation, x: Tensor) -> None:
    if modulation.gate not in GATES:
        raise ValueError(f"the gate of a modulation must be one of {', '.join(GATES)}, got {modulation.gate!r}")
    if not len(modulation.gates) == len(modulation.shifts) == len(field.weights):
        raise ValueError(
            f"a modulation must have a gate and a shift, or None, for each of the {len(field.weights)} layers, got "
            f"{len(modulation.gates)} and {len(modulation.shifts)}"
        )
    frequencies = modulation.frequencies
    if frequencies is not None and not (frequencies.dim() == 1 and _fits(frequencies, tuple(frequencies.shape), x)):
        raise ValueError(_message(frequencies, "velocity.frequencies", "(F,)", x))
    columns = modulation.columns(field.context_dim)
    if columns == 0:
        raise ValueError("a modulation must read t, an embedding of t or context, got none of them")
    for index, (bias, gate, shift) in enumerate(zip(field.biases, modulation.gates, modulation.shifts, strict=True)):
        rows = bias.shape[0]
        if gate is not None and not _fits(gate[0], (rows, columns), x):
            raise ValueError(_message(gate[0], f"velocity.gates[{index}].weight", f"({rows}, {columns})", x))
        if gate is not None and not _fits(gate[1], (rows,), x):
            raise ValueError(_message(gate[1], f"velocity.gates[{index}].bias", f"({rows},)", x))
        if shift is not None and not _fits(shift, (rows, columns), x):
            raise ValueError(_message(shift, f"velocity.shifts[{index}].weight", f"({rows}, {columns})", x))


def _fits(tensor: Tensor, shape: tuple[int, ...], x: Tensor) -> bool:
    dense = tensor.layout is torch.strided
    return dense and tensor.shape == shape and tensor.dtype == x.dtype and tensor.device == x.device


def _message(tensor: Tensor, name: str, shape: str, x: Tensor) -> str:
    alike = tensor.dtype == x.dtype and tensor.device == x.device
    fix = "build a new MLPVelocity of the sizes that you want" if alike else "convert it with .to(...)"
    layout = "" if tensor.layout is torch.strided else f"{tensor.layout}, "
    return (
        f"{name} must be a dense tensor of shape {shape}, {x.dtype} on {x.device}, to fit x, got shape "
        f"{tuple(tensor.shape)}, {layout}{tensor.dtype} on {tensor.device}; {fix}"
    )
