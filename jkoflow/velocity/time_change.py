"""A change of time in the weights of a velocity, by which times become tensors that gradients flow to."""

from __future__ import annotations

import torch
from torch import Tensor

from jkoflow.velocity.field import MLPField, Modulation


def change_time(field: MLPField, shift: Tensor, factor: Tensor) -> MLPField:
    r"""Returns the weights of the velocity of :math:`x(a + r \tau)` as a function of :math:`\tau`.

    .. math:: \tilde v(x, \tau) = r\, v(x, a + r \tau)

    It is a velocity of the same kind: what layers read of time is shifted and scaled, and the last layer and the linear
    term are scaled. Gradients flow to a and r, and those of its integral are exact, since nothing is approximated.

    Arguments:
        field: The weights of v.
        shift: The time a at which :math:`\tau` is 0, a tensor without axes.
        factor: The time r that passes in a unit of :math:`\tau`, a tensor without axes.
    """
    like = field.weights[0]
    shift, factor = shift.to(like), factor.to(like)
    weights, biases, modulation = list(field.weights), list(field.biases), field.modulation
    if field.time:
        before, column, after = weights[0].tensor_split((field.dim, field.dim + 1), dim=1)
        weights[0] = torch.cat([before, column * factor, after], dim=1)
        biases[0] = biases[0] + column.squeeze(1) * shift
    if modulation is not None:
        modulation, constants = _change_modulation(modulation, shift, factor)
        biases = [bias if more is None else bias + more for bias, more in zip(biases, constants, strict=True)]
    weights[-1], biases[-1] = weights[-1] * factor, biases[-1] * factor
    if modulation is not None and (last := modulation.shifts[-1]) is not None:
        modulation = modulation._replace(shifts=(*modulation.shifts[:-1], last * factor))
    linear = None if field.linear is None else field.linear * factor
    return field._replace(weights=tuple(weights), biases=tuple(biases), linear=linear, modulation=modulation)


def _change_modulation(modulation: Modulation, shift: Tensor, factor: Tensor) -> tuple[Modulation, list[Tensor | None]]:
    """Returns the modulation at changed times, and what comes to the bias of every layer.

    A shift behind a gate has no bias of its own: its constant is the coefficient of the cosine of a frequency of 0.
    """
    pairs = zip(modulation.gates, modulation.shifts, strict=True)
    constant_column = modulation.time and any(gate is not None and moves is not None for gate, moves in pairs)
    frequencies = modulation.frequencies
    scaled = [] if frequencies is None else [frequencies * factor]
    scaled += [factor.new_zeros(1)] if constant_column else []

    def changed(matrix: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the matrix of u at changed times, and what its column of t amounts to at time 0."""
        time, count = int(modulation.time), 0 if frequencies is None else frequencies.shape[0]
        column, cosine, sine, context = matrix.tensor_split((time, time + count, time + 2 * count), dim=1)
        constant = column.squeeze(1) * shift if time else None
        if frequencies is not None:
            turn_cosine, turn_sine = torch.cos(frequencies * shift), torch.sin(frequencies * shift)
            cosine, sine = cosine * turn_cosine + sine * turn_sine, sine * turn_cosine - cosine * turn_sine
        if constant_column:
            zero = torch.zeros_like(column)
            cosine, sine = torch.cat([cosine, zero], dim=1), torch.cat([sine, zero], dim=1)
        return torch.cat([column * factor, cosine, sine, context], dim=1), constant

    gates: list[tuple[Tensor, Tensor] | None] = []
    shifts: list[Tensor | None] = []
    constants: list[Tensor | None] = []
    for gate, moves in zip(modulation.gates, modulation.shifts, strict=True):
        if gate is not None:
            matrix, constant = changed(gate[0])
            gate = matrix, gate[1] if constant is None else gate[1] + constant
        to_bias = None
        if moves is not None:
            moves, to_bias = changed(moves)
            if gate is not None and to_bias is not None:
                place = int(modulation.time) + (0 if frequencies is None else frequencies.shape[0])
                before, _, after = moves.tensor_split((place, place + 1), dim=1)
                moves, to_bias = torch.cat([before, to_bias.unsqueeze(1), after], dim=1), None
        gates.append(gate)
        shifts.append(moves)
        constants.append(to_bias)
    embedding = torch.cat(scaled) if scaled else None
    return modulation._replace(frequencies=embedding, gates=tuple(gates), shifts=tuple(shifts)), constants
