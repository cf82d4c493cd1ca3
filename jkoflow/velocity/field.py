"""The weights of a velocity that is an MLP, as the integration kernels read them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from jkoflow.activation import Activation


class MLPField(NamedTuple):
    """The weights of v(x, t) = MLP([x, t, context]) + A x as plain tensors.

    Layer 1 reads the columns x, then t (if ``time``), then context.
    """

    dim: int
    context_dim: int
    time: bool
    activation: Activation
    weights: tuple[Tensor, ...]  # [(H1, dim + time + context_dim), (H2, H1), ..., (dim, HL)]
    biases: tuple[Tensor, ...]  # [(H1,), ..., (dim,)]
    linear: Tensor | None  # (dim, dim) or None

    def double(self) -> MLPField:
        """Returns the field with its tensors in float64, through which gradients flow back to those of this one."""
        weights, biases = (tuple(tensor.double() for tensor in tensors) for tensors in (self.weights, self.biases))
        linear = None if self.linear is None else self.linear.double()
        return self._replace(weights=weights, biases=biases, linear=linear)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Returns the widths of the hidden layers."""
        return tuple(w.shape[0] for w in self.weights[:-1])
