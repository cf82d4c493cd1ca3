"""The weights of a velocity that is an MLP, as the integration kernels read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.activation import Activation

GATES: dict[str, Callable[[Tensor], Tensor]] = {"affine": lambda a: 1 + a, "sigmoid": torch.sigmoid}
"""The gates by name: what makes the scale of a layer out of its affine map of time and context."""


class Modulation(NamedTuple):
    r"""Scale and shift of every layer's affine map, which depend on the time and the context of each row.

    Layer l computes :math:`z_l = g_l \circ (W_l h_{l-1} + b_l) + s_l`, where
    :math:`g_l = \mathrm{gate}(G_l u + g^0_l)` and :math:`s_l = S_l u`. The columns of u are t (if ``time``), then
    :math:`\cos(\omega_k t)` and :math:`\sin(\omega_k t)` of all frequencies, then context. The last layer, whose output
    is the velocity, counts.
    """

    gate: str
    """Name of the gate, one of `GATES`."""
    time: bool
    """Whether t itself is a column of u."""
    frequencies: Tensor | None
    """Frequencies of the embedding of time, with shape (F,); None without one."""
    gates: tuple[tuple[Tensor, Tensor] | None, ...]
    """G (H, U) and g0 (H,) of every layer; None where the scale is 1."""
    shifts: tuple[Tensor | None, ...]
    """S (H, U) of every layer; None where the shift is 0."""

    def columns(self, context_dim: int) -> int:
        """Returns the number U of columns of u."""
        return int(self.time) + (0 if self.frequencies is None else 2 * self.frequencies.numel()) + context_dim

    def double(self) -> Modulation:
        """Returns the modulation with its tensors in float64, through which gradients flow back."""
        frequencies = None if self.frequencies is None else self.frequencies.double()
        gates = tuple(None if gate is None else (gate[0].double(), gate[1].double()) for gate in self.gates)
        shifts = tuple(None if shift is None else shift.double() for shift in self.shifts)
        return self._replace(frequencies=frequencies, gates=gates, shifts=shifts)

    def inputs(self, t: float | Tensor, context: Tensor | None, like: Tensor) -> Tensor:
        """Returns u (*, U), or (U,) for a number t without context.

        Arguments:
            t: Time, a number or a tensor that broadcasts to (*).
            context: Conditioning variables, with shape (*, c).
            like: Tensor whose dtype and device u has.
        """
        t = torch.as_tensor(t, dtype=like.dtype, device=like.device).unsqueeze(-1)
        columns = [t] if self.time else []
        if self.frequencies is not None:
            phase = t * self.frequencies
            columns += [torch.cos(phase), torch.sin(phase)]
        if context is not None:
            shape = torch.broadcast_shapes(t.shape[:-1], context.shape[:-1])
            columns = [column.expand(*shape, column.shape[-1]) for column in (*columns, context)]
        return torch.cat(columns, dim=-1)

    def at(self, u: Tensor, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """Returns scale and shift of a layer, (*, H) each, None for 1 and 0, from the columns u (*, U)."""
        gate, shift = self.gates[layer], self.shifts[layer]
        scale = None if gate is None else GATES[self.gate](u @ gate[0].t() + gate[1])
        return scale, None if shift is None else u @ shift.t()


class MLPField(NamedTuple):
    """The weights of v(x, t) = MLP([x, t, context]) + A x as plain tensors.

    Layer 1 reads the columns x, then t (if ``time``), then context; with a modulation it reads x alone.
    """

    dim: int
    context_dim: int
    time: bool
    activation: Activation
    weights: tuple[Tensor, ...]  # [(H1, dim + time + context_dim), (H2, H1), ..., (dim, HL)]
    biases: tuple[Tensor, ...]  # [(H1,), ..., (dim,)]
    linear: Tensor | None  # (dim, dim) or None
    modulation: Modulation | None = None
    residual: bool = False  # whether hidden layers from the second on add their activation to what they read

    def double(self) -> MLPField:
        """Returns the field with its tensors in float64, through which gradients flow back to those of this one."""
        weights, biases = (tuple(tensor.double() for tensor in tensors) for tensors in (self.weights, self.biases))
        linear = None if self.linear is None else self.linear.double()
        modulation = None if self.modulation is None else self.modulation.double()
        return self._replace(weights=weights, biases=biases, linear=linear, modulation=modulation)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Returns the widths of the hidden layers."""
        return tuple(w.shape[-2] for w in self.weights[:-1])

    @property
    def inputs(self) -> int:
        """Returns the number of columns that layer 1 reads."""
        return self.dim if self.modulation is not None else self.dim + int(self.time) + self.context_dim

    @property
    def gated_output(self) -> bool:
        """Tells whether the last layer has a gate, so that the divergence has no closed form."""
        return self.modulation is not None and self.modulation.gates[-1] is not None


def stacked(fields: Sequence[MLPField]) -> MLPField:
    """Returns fields of the same sizes as one, whose weights, biases and linear terms have a leading axis.

    Raises:
        ValueError: If there are none, or they have a modulation.
    """
    if not fields or any(field.modulation is not None for field in fields):
        raise ValueError(f"fields must be one or more without a modulation, got {len(fields)}")
    weights = tuple(map(torch.stack, zip(*(field.weights for field in fields), strict=True)))
    biases = tuple(map(torch.stack, zip(*(field.biases for field in fields), strict=True)))
    linear = [field.linear for field in fields if field.linear is not None]
    return fields[0]._replace(weights=weights, biases=biases, linear=torch.stack(linear) if linear else None)
