"""Velocities whose whole matrices depend on time: hypernetworks and blended layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jkoflow.activation import Activation, parse_activation
from jkoflow.velocity.altered import altered_velocity
from jkoflow.velocity.arguments import check_inputs, check_sizes
from jkoflow.velocity.base import Velocity
from jkoflow.velocity.field import MLPField
from jkoflow.velocity.linear import read_activation

HYPERS = ("layers", "blend", "gated")
"""The ways in which `HyperMLP` makes matrices of t."""


class _Blend(nn.Module):
    """Blends the parameters of a layer between those at t = 0 and those at t = 1."""

    def __init__(self, start: nn.Linear, end: nn.Linear) -> None:
        super().__init__()
        pairs = (torch.cat([layer.weight.detach().flatten(), layer.bias.detach()]) for layer in (start, end))
        self.start, self.end = (nn.Parameter(pair) for pair in pairs)

    def forward(self, t: Tensor) -> Tensor:
        """Returns the parameters (*, N) at times t (*, 1)."""
        return self.start + t * (self.end - self.start)


class HyperMLP(Velocity):
    r"""An MLP of position and context all of whose weights are functions of time.

    .. math:: h_l = \sigma(W_l(t) h_{l-1} + b_l(t)), \quad v = W(t) h_L + b(t), \quad h_0 = [x, c]

    - ``"layers"``: a network of t for each layer, with tanh units, gives its weights and biases (FFJORD's hyper layer).
    - ``"blend"``: :math:`W(t) = (1 - t) W^0 + t W^1`, biases likewise (FFJORD's blend layer).
    - ``"gated"``: one network of t for all of one hidden layer, as in torchdiffeq's example of a continuous flow; with
      m units, :math:`v = \tfrac{1}{m} (U(t) \circ \mathrm{sigmoid}(G(t)))^T \sigma(W(t) [x, c] + b(t))`.

    Arguments:
        dim: Number d of features of x.
        hidden: Widths of the hidden layers, at least one; one only with ``"gated"``.
        activation: Any that `jkoflow.MLPVelocity` takes.
        hyper: How weights are made of t: ``"layers"``, ``"blend"`` or ``"gated"``.
        hyper_hidden: Widths of the hidden layers of the networks of t, which ``"blend"`` has none of.
        context_dim: Number c of conditioning variables, which the divergence does not differentiate.

    Raises:
        ValueError: If a size is not positive, the activation is unknown or not smooth, or ``hyper`` is unknown.

    References:
        | HyperNetworks (Ha et al., 2016)
        | https://arxiv.org/abs/1609.09106
        | FFJORD: Free-form continuous dynamics for scalable reversible generative models (Grathwohl et al., 2018)
        | https://arxiv.org/abs/1810.01367
        | torchdiffeq, examples/cnf.py
        | https://github.com/rtqichen/torchdiffeq

    Example:
        >>> velocity = HyperMLP(2, hidden=(64,), hyper="gated", hyper_hidden=(32, 32))
        >>> velocity(torch.zeros(5, 2), t=0.5).shape
        torch.Size([5, 2])
        >>> velocity.field_at(0.5).weights[0].shape
        torch.Size([64, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64,),
        activation: str | Activation = "tanh",
        hyper: str = "layers",
        hyper_hidden: Sequence[int] = (8,),
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(dim, hidden, context_dim)
        if hyper not in HYPERS:
            raise ValueError(f"hyper must be one of {', '.join(HYPERS)}, got {hyper!r}")
        if hyper == "gated" and len(hidden) != 1:
            raise ValueError(f"hidden must list one width with hyper='gated', got {tuple(hidden)}")
        if len(hyper_hidden) and min(hyper_hidden) < 1:
            raise ValueError(f"hyper_hidden must list positive widths, got {tuple(hyper_hidden)}")
        self.dim = dim
        self.hidden = tuple(hidden)
        self.activation = parse_activation(activation)
        self.context_dim = context_dim
        self._hyper, self._hyper_hidden = hyper, tuple(hyper_hidden)
        shapes = [(o, i) for i, o in itertools.pairwise((dim + context_dim, *self.hidden, dim))]
        if hyper == "gated":
            units = self.hidden[0]
            self.hypers = nn.ModuleList([_network(self._hyper_hidden, units * (2 * dim + dim + context_dim + 1))])
        elif hyper == "blend":
            self.hypers = nn.ModuleList(_Blend(nn.Linear(i, o), nn.Linear(i, o)) for o, i in shapes)
        else:
            self.hypers = nn.ModuleList(_network(self._hyper_hidden, o * i + o) for o, i in shapes)

    def forward(self, x: Tensor, t: float | Tensor = 0.0, context: Tensor | None = None) -> Tensor:
        """Evaluates the velocity (*, d) at positions x (*, d), times t that broadcast to (*) and context (*, c).

        Raises:
            ValueError: If a shape does not match, or context is missing or superfluous.
        """
        check_inputs(self.dim, self.context_dim, x, context)
        h = x if context is None else torch.cat([x, context.expand(*x.shape[:-1], self.context_dim)], dim=-1)
        weights, biases = self._parameters_at(torch.as_tensor(t, dtype=x.dtype, device=x.device))
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            h = self.activation.value(_affine(weight, h) + bias)
        return _affine(weights[-1], h) + biases[-1]

    _DEFINED: ClassVar[Callable[..., Tensor]] = forward
    """The forward as the class defines it, whose parameters `field_at` returns; a class may be patched later."""

    def unfused(self) -> str | None:
        """Says why there is no one field: its weights are functions of time, or something has been changed."""
        reason = altered_velocity(self, type(self)._DEFINED)
        return reason or f"the weights of {type(self).__name__} depend on t, so that every stage has its own"

    def field_at(self, t: float | Tensor) -> MLPField | None:
        """Returns the weights at one time, a number or a tensor of one number; None if only `forward` knows them.

        Raises:
            ValueError: If the activation is none.
        """
        return self._fields_at(t, ())

    def fields_at(self, times: Tensor) -> MLPField | None:
        """Returns the weights at times (N,) with a leading axis of N, made in one call; None as `field_at`.

        Raises:
            ValueError: If the activation is none.
        """
        if type(self).field_at is not HyperMLP.field_at:
            return super().fields_at(times)  # what a subclass has made of them
        return self._fields_at(times, (-1,))

    def _fields_at(self, t: float | Tensor, shape: tuple[int, ...]) -> MLPField | None:
        """Returns the weights at times of a shape."""
        if altered_velocity(self, type(self)._DEFINED) is not None:
            return None
        like = next(self.parameters())
        weights, biases = self._parameters_at(torch.as_tensor(t, dtype=like.dtype, device=like.device).reshape(shape))
        activation = read_activation(self.activation)
        return MLPField(self.dim, self.context_dim, False, activation, tuple(weights), tuple(biases), None)

    def _parameters_at(self, t: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Returns weights (*, H, H before) and biases (*, H) of all layers at times t (*)."""
        t = t.unsqueeze(-1)
        if self._hyper == "gated":
            units, inputs = self.hidden[0], self.dim + self.context_dim
            sizes = (units * inputs, units * self.dim, units * self.dim, units)
            first, last, gate, bias = self.hypers[0](t).split(sizes, dim=-1)
            first = first.unflatten(-1, (units, inputs))
            last = (last * torch.sigmoid(gate) / units).unflatten(-1, (units, self.dim)).transpose(-1, -2)
            return [first, last], [bias, t.new_zeros((*t.shape[:-1], self.dim))]
        weights, biases = [], []
        for hyper, (inputs, outputs) in zip(
            self.hypers, itertools.pairwise((self.dim + self.context_dim, *self.hidden, self.dim)), strict=True
        ):
            weight, bias = hyper(t).split((inputs * outputs, outputs), dim=-1)
            weights.append(weight.unflatten(-1, (outputs, inputs)))
            biases.append(bias)
        return weights, biases

    def describe(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as JSON values."""
        return {
            "kind": "hyper",
            "dim": self.dim,
            "hidden": list(self.hidden),
            "activation": str(self.activation),
            "hyper": self._hyper,
            "hyper_hidden": list(self._hyper_hidden),
            "context_dim": self.context_dim,
        }

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiplies what makes the last layer's weights, or the factor beside their gates, by a factor."""
        last = self.hypers[-1]
        if self._hyper == "blend":
            for parameter in last.parameters():
                parameter.mul_(factor)
            return
        units, inputs = self.hidden[0], self.dim + self.context_dim
        rows = slice(units * inputs, units * (inputs + self.dim)) if self._hyper == "gated" else slice(None)
        for parameter in last[-1].parameters():  # type: ignore[index]
            parameter[rows].mul_(factor)

    def work(self) -> float:
        """Returns about how many floating-point operations v and its exact divergence take at one point."""
        widths = (self.dim + self.context_dim, *self.hidden, self.dim)
        weights = sum((i + 1) * o for i, o in itertools.pairwise(widths))
        first, *others = self.hidden
        divergence = 0 if not others else first * others[0] if len(others) == 1 else weights * self.dim
        # the networks of t are evaluated once for all points
        return 2.0 * (weights + divergence + 10 * sum(self.hidden))

    def extra_repr(self) -> str:
        """Returns the arguments of the constructor for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.describe().items() if name != "kind")


def _network(hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Returns a network from one number, with tanh units, to some outputs."""
    modules: list[nn.Module] = []
    for i, o in itertools.pairwise((1, *hidden)):
        modules += nn.Linear(i, o), nn.Tanh()
    return nn.Sequential(*modules, nn.Linear((1, *hidden)[-1], outputs))


def _affine(weight: Tensor, h: Tensor) -> Tensor:
    """Returns W h with one matrix for all rows, or one for each."""
    return h @ weight.t() if weight.dim() == 2 else (weight @ h.unsqueeze(-1)).squeeze(-1)
