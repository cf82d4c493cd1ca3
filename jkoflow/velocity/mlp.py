"""The velocity field that flows have by default: an MLP of position, time and context."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from jkoflow.activation import Activation, parse_activation
from jkoflow.velocity.altered import altered, altered_linear, altered_velocity
from jkoflow.velocity.arguments import check_inputs, check_sizes
from jkoflow.velocity.base import Velocity
from jkoflow.velocity.field import MLPField
from jkoflow.velocity.linear import read_activation, read_affine, read_matrix


class _Built(NamedTuple):
    """The columns of layer 1 with which a velocity was built and which its layers must match."""

    dim: int
    time: bool
    context_dim: int


class MLPVelocity(Velocity):
    r"""The velocity :math:`v(x, t) = \mathrm{MLP}([x, t, c]) + A x` of a neural ODE.

    Arguments:
        dim: Number d of features of x.
        hidden: Widths of the hidden layers, at least one.
        activation: ``"tanh"``, ``"softplus"``, ``"softplus(BETA)"``, ``"silu"``, ``"elu"``, ``"selu"``, ``"gelu"`` (all
            run in the fused kernels) or ``"sin"`` (reference only). See `jkoflow.activation.parse_activation` for
            what is refused.
        time: Whether layer 1 reads t.
        context_dim: Number c of conditioning variables, which the divergence does not differentiate.
        linear: Whether to add the linear term :math:`A x`, starting at :math:`A = 0`.

    Raises:
        ValueError: If a size is not positive, or the activation is unknown or piecewise linear.

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
        check_sizes(dim, hidden, context_dim)
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
        self._built = _Built(dim, time, context_dim)

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
        check_inputs(self.dim, self.context_dim, x, context)
        h = self._columns(x, t, context)
        for layer in self.layers[:-1]:
            h = self.activation.value(layer(h))
        v = self.layers[-1](h)
        return v if self.linear is None else v + self.linear(x)

    def _columns(self, x: Tensor, t: float | Tensor, context: Tensor | None) -> Tensor:
        """Returns what layer 1 reads: x, t if it does, context."""
        columns = [x]
        if self.time:
            columns.append(torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(x.shape[:-1]).unsqueeze(-1))
        if context is not None:
            columns.append(context.expand(*x.shape[:-1], self.context_dim))
        return torch.cat(columns, dim=-1)

    _DEFINED: ClassVar[Callable[..., Tensor]] = forward
    """The forward as the class defines it, whose parameters `field` returns; a class may be patched later."""

    def unfused(self) -> str | None:
        """Says why only `forward` can evaluate the velocity; None if its parameters say all.

        Reasons are a `forward` of a subclass, an instance or a layer, a hook, global ones included, or a weight that is
        computed by other means than `torch.nn.utils.parametrize`.
        """
        if reason := altered_velocity(self, type(self)._DEFINED):
            return reason
        layers = self._modules.get("layers")
        if type(layers) is not nn.ModuleList:
            return "velocity.layers is no ModuleList"
        if reason := altered(layers):
            return f"velocity.layers {reason}"
        for name, layer in layers._modules.items():
            if isinstance(layer, nn.Linear) and (reason := altered_linear(layer)):
                return f"velocity.layers[{name}] {reason}"
        linear = self._modules.get("linear")
        if linear is None and self.__dict__.get("linear") is not None:
            return "velocity.linear is no module"
        if isinstance(linear, nn.Linear) and (reason := altered_linear(linear)):
            return f"velocity.linear {reason}"
        return None

    def field(self) -> MLPField | None:
        """Returns the plain parameters for the kernels; None if `unfused` has a reason.

        Raises:
            ValueError: If ``dim``, ``time`` or ``context_dim`` is no longer what the velocity was built with, the
                activation is none, or a layer has been replaced by something that is not linear.
        """
        if self.unfused() is not None:
            return None
        built = self.__dict__.get("_built")
        if built is None:
            raise ValueError("velocity must be built by MLPVelocity.__init__; call super().__init__(...) in a subclass")
        dim, time, context_dim = built
        if not (self.dim is dim and self.time is time and self.context_dim is context_dim):
            self._refuse_changes()
        activation = read_activation(self.activation)
        weights, biases = [], []
        for name, layer in self._modules["layers"]._modules.items():  # type: ignore[union-attr]
            weight, bias = read_affine(layer, f"velocity.layers[{name}]")
            weights.append(weight)
            biases.append(bias)
        if len(weights) < 2:
            raise ValueError(f"velocity.layers must hold 2 layers or more, got {len(weights)}; build a new MLPVelocity")
        return MLPField(dim, context_dim, time, activation, tuple(weights), tuple(biases), self._linear_term())

    def _linear_term(self) -> Tensor | None:
        linear = self._modules.get("linear")
        if linear is None:
            return None
        return read_matrix(linear, "velocity.linear", why_no_bias="the last layer has a bias already")

    def _refuse_changes(self) -> None:
        for name, built in self._built._asdict().items():
            value = getattr(self, name)
            if type(value) is not type(built) or value != built:
                raise ValueError(
                    f"velocity.{name} must stay what the velocity was built with, {built}, got {value!r}; build a new "
                    "MLPVelocity to change it"
                )

    def describe(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as JSON values."""
        return {
            "dim": self.dim,
            "hidden": self._widths(),
            "activation": str(self.activation),
            "time": self.time,
            "context_dim": self.context_dim,
            "linear": self.linear is not None,
        }

    def _widths(self) -> list[int]:
        """Returns the widths of the hidden layers as they are, in case somebody has replaced them."""
        *hidden, _ = self.layers
        known = all(isinstance(layer, nn.Linear) for layer in hidden)
        return [int(layer.out_features) for layer in hidden] if known else list(self.hidden)  # type: ignore[arg-type]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes what was pickled, in version 0.1, too, which did not note what a velocity was built with."""
        super().__setstate__(state)
        if "_built" not in self.__dict__:
            self._built = _Built(self.dim, self.time, self.context_dim)

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiplies the last layer and the linear term by a factor."""
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
        """Returns the arguments of the constructor for ``repr``."""
        return (
            f"dim={self.dim}, hidden={self.hidden}, activation={str(self.activation)!r}, time={self.time}, "
            f"context_dim={self.context_dim}, linear={self.linear is not None}"
        )
