"""Reads the network of zuko's continuous flow for the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from zuko import flows as zuko_flows
from zuko.nn import MLP, Linear

from jkoflow.activation import activation_of
from jkoflow.velocity import MLPField, Modulation
from jkoflow.velocity.altered import altered, global_hook

_EVALUATE = zuko_flows.FFJTransform.f  # as zuko defines it: a class may be patched later


def read_network(transform: zuko_flows.FFJTransform) -> MLPField | str:
    """Returns the weights of a lazy transformation's velocity, or the reason for which no kernel can take them.

    Layer 1 reads an embedding of time, then x, then context; its columns are taken apart. As in zuko, the weights need
    no gradient outside of training mode.
    """
    ode = transform.ode
    if type(ode) is not MLP:
        return f"the network is a {type(ode).__name__}, not zuko's MLP"
    if reason := _altered(transform, ode):
        return reason
    modules: list[Any] = list(ode)
    layers, activations = modules[::2], [activation_of(module) for module in modules[1::2]]
    for module in modules:
        if reason := altered(module):
            return f"a module of the network {reason}"
    for layer in layers:
        if type(layer) is not Linear or layer.weight.dim() != 2:
            return f"a layer of the network is no plain Linear of zuko: {layer}"
    activation = activations[0] if activations else None
    if activation is None or len(set(activations)) != 1:
        found = ", ".join(dict.fromkeys(map(str, modules[1::2]))) or "no hidden layer"
        return f"the network has {found}, where kernels have one smooth activation"
    taken = (lambda tensor: tensor) if transform.training else Tensor.detach
    weights = [taken(layer.weight) for layer in layers]
    biases = [
        weight.new_zeros(len(weight)) if layer.bias is None else taken(layer.bias)
        for weight, layer in zip(weights, layers, strict=True)
    ]
    freqs: Any = transform.freqs
    dim, columns = len(weights[-1]), 2 * len(freqs)
    context_dim = weights[0].shape[1] - columns - dim
    modulation = None
    if columns:
        time, space, context = weights[0].split((columns, dim, context_dim), dim=1)
        shift = time if context_dim == 0 else torch.cat([time, context], dim=1)
        weights[0] = space
        others = (None,) * (len(layers) - 1)
        modulation = Modulation("affine", False, freqs.detach(), (None, *others), (shift, *others))
    return MLPField(dim, context_dim, False, activation, tuple(weights), tuple(biases), None, modulation)


def _altered(transform: zuko_flows.FFJTransform, ode: nn.Module) -> str | None:
    """Says what a call of the velocity does besides what its parameters say; None if nothing."""
    if type(transform).f is not _EVALUATE or "f" in transform.__dict__:
        return "the transformation evaluates its velocity in its own way"
    if transform.times.requires_grad:  # type: ignore[union-attr]
        return "the times of the transformation require a gradient"
    reason = altered(ode)
    return global_hook() if reason is None else f"the network {reason}"
