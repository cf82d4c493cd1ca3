"""Reads the parts of a velocity for the kernels, and refuses what they are not made for."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from jkoflow.activation import Activation


def read_affine(layer: nn.Module | None, where: str) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of a linear layer.

    Raises:
        ValueError: If the layer is not linear or has no bias; the message names it as ``where`` says.
    """
    weight = read_matrix(layer, where)
    bias = _read(layer, "bias")
    if not isinstance(bias, Tensor):
        raise ValueError(_no_tensor(where, layer, "bias", bias))
    return weight, bias


def read_matrix(layer: nn.Module | None, where: str, why_no_bias: str | None = None) -> Tensor:
    """Returns the weight of a linear layer.

    Arguments:
        layer: The layer.
        where: Name of the layer in errors.
        why_no_bias: Reason for which it must have no bias; None if it may.

    Raises:
        ValueError: If the layer is not linear, or has a bias that it must not have.
    """
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"{where} must be a torch.nn.Linear, got a {type(layer).__name__}; a network of another kind needs a "
            "forward of its own, in a subclass of MLPVelocity"
        )
    weight = _read(layer, "weight")
    if not isinstance(weight, Tensor):
        raise ValueError(_no_tensor(where, layer, "weight", weight))
    if why_no_bias is not None and _read(layer, "bias") is not None:
        raise ValueError(f"{where} must have no bias, but has one; {why_no_bias}")
    return weight


def read_activation(activation: object) -> Activation:
    """Returns what must be an activation.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(activation, Activation):
        raise ValueError(
            f"velocity.activation must be an Activation, got {activation!r}; read it with "
            "jkoflow.activation.parse_activation"
        )
    return activation


def _read(layer: Any, name: str) -> Any:
    """Returns a layer's weight or bias, computed once if it is parametrized; None if there is none."""
    parameters = layer._parameters
    return parameters[name] if name in parameters else getattr(layer, name, None)


def _no_tensor(where: str, layer: Any, name: str, value: object) -> str:
    shape = f"({layer.out_features}, {layer.in_features})" if name == "weight" else f"({layer.out_features},)"
    found = "None" if value is None else f"a {type(value).__name__}"
    return f"{where}.{name} must be a tensor of shape {shape}, got {found}; build the layer as torch.nn.Linear does"
