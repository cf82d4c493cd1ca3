"""The weights of a velocity from the tensors of a network, as the reference reads them."""

from __future__ import annotations

from torch import Tensor

from jkoflow.activation import parse_activation
from jkoflow.ops.modulation import unpacked
from jkoflow.ops.native import Settings
from jkoflow.ops.network import Network
from jkoflow.velocity import MLPField


def field_of_network(x: Tensor, context: Tensor | None, network: Network, settings: Settings) -> MLPField:
    """Returns the field whose tensors a network has, for x (B, d) and context (B, c)."""
    activation, columns = parse_activation(settings.activation), 0 if context is None else context.shape[1]
    weights, biases = tuple(network.weights), tuple(network.biases)
    rows = [bias.shape[0] for bias in biases]
    modulation, residual = unpacked(settings.layers, network.modulation, rows, columns)
    time = settings.time and modulation is None
    return MLPField(x.shape[1], columns, time, activation, weights, biases, network.linear, modulation, residual)
