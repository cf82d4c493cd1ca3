"""The velocity field that flows have by default: an MLP of position, time and context."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jkoflow.activation import Activation, parse_activation
from jkoflow.velocity.base import Velocity
from jkoflow.velocity.field import MLPField


class MLPVelocity(Velocity):
    r"""The velocity :math:`v(x, t) = \mathrm{MLP}([x, t, c]) + A x` of a neural ODE.

    Arguments:
        dim: Number d of features of x.
        hidden: Widths of the hidden layers, at least one.
        activation: ``"tanh"``, ``"softplus"``, ``"softplus(BETA)"``, ``"silu"`` (all three run in the fused
            kernels), ``"gelu"`` or ``"sin"`` (reference only). It must be smooth: relu is refused.
        time: Whether layer 1 reads t.
        context_dim: Number c of conditioning variables, which the divergence does not differentiate.
        linear: Whether to add the linear term :math:`A x`, starting at :math:`A = 0`.

    Raises:
        ValueError: If a size is not positive or the activation is unknown or not smooth.

    References:
        | Normalizing flow neural networks by JKO scheme (Xu et al., 2022)
        | https://arxiv.org/abs/2212.14424

    Example:
        >>> velocity = MLPVelocity(2, hidden=(64, 64))
        >>> velocity(torch.zeros(5, 2), t=0.5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (128, 128),
        activation: str | Activation = "tanh",
        time: bool = True,
        context_dim: int = 0,
        linear: bool = False,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if context_dim < 0:
            raise ValueError(f"context_dim must not be negative, got {context_dim}")
        if len(hidden) == 0 or min(hidden) < 1:
            raise ValueError(f"hidden must list one or more positive widths, got {tuple(hidden)}")
        self.dim = dim
        self.hidden = tuple(hidden)
        self.activation = parse_activation(activation)
        self.time = time
        self.context_dim = context_dim
        widths = (dim + int(time) + context_dim, *self.hidden, dim)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        self.linear = nn.Linear(dim, dim, bias=False) if linear else None
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor, t: float | Tensor = 0.0, context: Tensor | None = None) -> Tensor:
        """Evaluates the velocity.

        Arguments:
            x: Positions, with shape (*, d).
            t: Time, a number or a tensor that broadcasts to shape (*).
            context: Conditioning variables, with shape (*, c); needed if and only if ``context_dim > 0``.

        Returns:
            The velocity, with shape (*, d).

        Raises:
            ValueError: If a shape does not match or context is missing or superfluous.
        """
        if x.shape[-1:] != (self.dim,):
            raise ValueError(f"x must have shape (*, {self.dim}) to match velocity.dim, got {tuple(x.shape)}")
        if (context is None) != (self.context_dim == 0) or (
            context is not None and context.shape[-1:] != (self.context_dim,)
        ):
            expected = f"with shape (*, {self.context_dim})" if self.context_dim else "None"
            raise ValueError(f"context must be {expected} to match velocity.context_dim, got {_shape(context)}")
        columns = [x]
        if self.time:
            columns.append(torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(x.shape[:-1]).unsqueeze(-1))
        if context is not None:
            columns.append(context.expand(*x.shape[:-1], self.context_dim))
        h = torch.cat(columns, dim=-1)
        for layer in self.layers[:-1]:
            h = self.activation.value(layer(h))
        v = self.layers[-1](h)
        return v if self.linear is None else v + self.linear(x)

    def field(self) -> MLPField | None:
        """The plain parameters for the kernels; None in a subclass that overrides `forward`."""
        if type(self).forward is not MLPVelocity.forward:
            return None
        return MLPField(
            dim=self.dim,
            context_dim=self.context_dim,
            time=self.time,
            activation=self.activation,
            weights=tuple(layer.weight for layer in self.layers),  # type: ignore[misc]
            biases=tuple(layer.bias for layer in self.layers),  # type: ignore[misc]
            linear=None if self.linear is None else self.linear.weight,
        )

    def describe(self) -> dict[str, Any]:
        """Returns the constructor's arguments, as JSON values."""
        return {
            "dim": self.dim,
            "hidden": list(self.hidden),
            "activation": str(self.activation),
            "time": self.time,
            "context_dim": self.context_dim,
            "linear": self.linear is not None,
        }

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiplies the last layer and the linear term by a number."""
        for parameter in self.layers[-1].parameters():
            parameter.mul_(factor)
        if self.linear is not None:
            self.linear.weight.mul_(factor)

    def work(self) -> float:
        """Returns about how many floating-point operations v and its exact divergence take at one point."""
        weights = sum(parameter.numel() for parameter in self.parameters())
        first, *others = self.hidden
        # one hidden layer: a dot product; two: one more product; deeper: d tangents
        divergence = 0 if not others else first * others[0] if len(others) == 1 else weights * self.dim
        # a multiply-add each, and about 20 operations for every activation and its derivative
        return 2.0 * (weights + divergence + 10 * sum(self.hidden))

    def extra_repr(self) -> str:
        """Shows the arguments of the constructor."""
        return (
            f"dim={self.dim}, hidden={self.hidden}, activation={str(self.activation)!r}, time={self.time}, "
            f"context_dim={self.context_dim}, linear={self.linear is not None}"
        )


def _shape(tensor: Tensor | None) -> str:
    return "None" if tensor is None else str(tuple(tensor.shape))
