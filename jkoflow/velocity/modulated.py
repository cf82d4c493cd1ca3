"""Velocities whose layers are scaled and shifted by time and context: concat-squash, gates, embeddings of time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jkoflow.activation import Activation, parse_activation
from jkoflow.velocity.altered import altered_layers, altered_velocity
from jkoflow.velocity.arguments import check_inputs, check_sizes
from jkoflow.velocity.base import Velocity
from jkoflow.velocity.field import GATES, MLPField, Modulation
from jkoflow.velocity.linear import read_activation, read_affine, read_matrix

LAYER_KINDS = {
    "concat": (None, True),
    "squash": ("sigmoid", False),
    "concatsquash": ("sigmoid", True),
    "film": ("affine", True),
}
"""The kinds of layer of `ConcatSquashMLP`: the gate of the scale, if any, and whether there is a shift."""

EMBEDDINGS = ("fourier", "sinusoidal", "random")
"""The frequencies that `FourierTimeMLP` begins with."""


class ModulatedMLP(Velocity):
    r"""An MLP whose layers are scaled and shifted by affine maps of time and context, row by row.

    .. math:: z_l = g_l \circ (W_l h_{l-1} + b_l) + S_l u, \quad g_l = \mathrm{gate}(G_l u + g^0_l), \quad
              h_l = \sigma(z_l), \quad h_0 = x

    The output layer is :math:`z` itself, without :math:`\sigma`; to it comes the linear term :math:`A x`, if any. See
    `jkoflow.velocity.Modulation` for the columns of u. `ConcatSquashMLP` and `FourierTimeMLP` are the two kinds.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int],
        activation: str | Activation,
        context_dim: int,
        linear: bool,
        *,
        gate: str | None,
        gated: Sequence[int],
        shifted: Sequence[int],
        time: bool,
        frequencies: Tensor | None,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(dim, hidden, context_dim)
        self.dim = dim
        self.hidden = tuple(hidden)
        self.activation = parse_activation(activation)
        self.context_dim = context_dim
        self._gate, self._time = gate or "affine", time
        if learnable and frequencies is not None:
            self.frequencies = nn.Parameter(frequencies)
        else:
            self.register_buffer("frequencies", frequencies)
        count = 0 if frequencies is None else 2 * frequencies.numel()
        columns = int(time) + count + context_dim
        widths = (dim, *self.hidden, dim)
        outputs = widths[1:]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        self.gates = nn.ModuleDict({str(layer): nn.Linear(columns, outputs[layer]) for layer in gated})
        self.shifts = nn.ModuleDict({str(layer): nn.Linear(columns, outputs[layer], bias=False) for layer in shifted})
        self.linear = nn.Linear(dim, dim, bias=False) if linear else None
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor, t: float | Tensor = 0.0, context: Tensor | None = None) -> Tensor:
        """Evaluates the velocity (*, d) at positions x (*, d), times t that broadcast to (*) and context (*, c).

        Raises:
            ValueError: If a shape does not match, or context is missing or superfluous.
        """
        check_inputs(self.dim, self.context_dim, x, context)
        u = self._modulation(None).inputs(t, context, x)
        h = x
        for index, layer in enumerate(self.layers):
            h = layer(h)
            if str(index) in self.gates:
                h = GATES[self._gate](self.gates[str(index)](u)) * h
            if str(index) in self.shifts:
                h = h + self.shifts[str(index)](u)
            if index < len(self.layers) - 1:
                h = self.activation.value(h)
        return h if self.linear is None else h + self.linear(x)

    _DEFINED: ClassVar[Callable[..., Tensor]] = forward
    """The forward as the class defines it, whose parameters `field` returns; a class may be patched later."""

    def unfused(self) -> str | None:
        """Says why only `forward` can evaluate the velocity; None if its parameters say all."""
        return altered_velocity(self, type(self)._DEFINED) or altered_layers(self)

    def field(self) -> MLPField | None:
        """Returns the plain parameters; None if `unfused` has a reason.

        Raises:
            ValueError: If a layer has been replaced by something that is not linear, or the activation is none.
        """
        if self.unfused() is not None:
            return None
        activation = read_activation(self.activation)
        layers = [read_affine(layer, f"velocity.layers[{name}]") for name, layer in self.layers.named_children()]
        weights, biases = zip(*layers, strict=True)
        linear = None
        if self.linear is not None:
            linear = read_matrix(self.linear, "velocity.linear", why_no_bias="the last layer has a bias already")
        modulation = self._modulation(len(layers))
        return MLPField(self.dim, self.context_dim, False, activation, weights, biases, linear, modulation)

    def _modulation(self, layers: int | None) -> Modulation:
        """Returns the tensors of the modulation of some number of layers; None for what makes u alone."""
        gates, shifts = [], []
        for name in map(str, range(layers or 0)):
            gate, shift = self.gates._modules.get(name), self.shifts._modules.get(name)
            gates.append(None if gate is None else read_affine(gate, f"velocity.gates[{name}]"))
            shifts.append(None if shift is None else _read_shift(shift, f"velocity.shifts[{name}]"))
        return Modulation(self._gate, self._time, self.frequencies, tuple(gates), tuple(shifts))

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiplies the last layer, its shift and the linear term by a factor; the gates keep their parameters."""
        last = str(len(self.layers) - 1)
        parts = [self.layers[-1], self.linear, self.shifts._modules.get(last)]
        for parameter in itertools.chain.from_iterable(part.parameters() for part in parts if part is not None):
            parameter.mul_(factor)

    def work(self) -> float:
        """Returns about how many floating-point operations v and its exact divergence take at one point."""
        weights = sum(parameter.numel() for parameter in self.parameters())
        first, *others = self.hidden
        last = str(len(self.layers) - 1)
        closed = len(others) <= 1 and last not in self.gates
        matrices = sum(layer.weight.numel() for layer in self.layers)  # type: ignore[union-attr, operator]
        divergence = (first * others[0] if others else first) if closed else matrices * self.dim
        # a multiply-add each, and about 20 operations for every activation, gate and their derivatives
        values = sum(self.hidden) + sum(gate.out_features for gate in self.gates.values())  # type: ignore[misc]
        return 2.0 * (weights + divergence + 10 * values)

    def extra_repr(self) -> str:
        """Returns the arguments of the constructor for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.describe().items() if name != "kind")


class ConcatSquashMLP(ModulatedMLP):
    r"""The velocity of FFJORD and its kin: time and context scale and shift every layer, the output layer included.

    .. math:: \mathrm{concat:}\ z = W h + b + S u \qquad
              \mathrm{squash:}\ z = \mathrm{sigmoid}(G u + g) \circ (W h + b)

    .. math:: \mathrm{concatsquash:}\ z = \mathrm{sigmoid}(G u + g) \circ (W h + b) + S u \qquad
              \mathrm{film:}\ z = (1 + G u + g) \circ (W h + b) + S u

    with :math:`u = [t, c]`. ``"film"``, the scale and shift of adaptive layer norms without the norm, begins with
    :math:`G = g = S = 0`.

    Arguments:
        dim: Number d of features of x.
        hidden: Widths of the hidden layers, at least one.
        activation: Any that `jkoflow.MLPVelocity` takes.
        layer: Kind of every layer, ``"concat"``, ``"squash"``, ``"concatsquash"`` or ``"film"``.
        context_dim: Number c of conditioning variables, which scale and shift row by row and are not differentiated.
        linear: Whether to add the linear term :math:`A x`, starting at :math:`A = 0`.

    Raises:
        ValueError: If a size is not positive, the activation is unknown or not smooth, or the kind of layer is unknown.

    References:
        | FFJORD: Free-form continuous dynamics for scalable reversible generative models (Grathwohl et al., 2018)
        | https://arxiv.org/abs/1810.01367
        | PointFlow: 3D point cloud generation with continuous normalizing flows (Yang et al., 2019)
        | https://arxiv.org/abs/1906.12320
        | FiLM: Visual reasoning with a general conditioning layer (Perez et al., 2017)
        | https://arxiv.org/abs/1709.07871

    Example:
        >>> velocity = ConcatSquashMLP(2, hidden=(64, 64, 64), context_dim=3)
        >>> velocity(torch.zeros(5, 2), t=0.5, context=torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64, 64),
        activation: str | Activation = "tanh",
        layer: str = "concatsquash",
        context_dim: int = 0,
        linear: bool = False,
    ) -> None:
        if layer not in LAYER_KINDS:
            raise ValueError(f"layer must be one of {', '.join(LAYER_KINDS)}, got {layer!r}")
        gate, shifted = LAYER_KINDS[layer]
        every = range(len(hidden) + 1)
        super().__init__(
            dim,
            hidden,
            activation,
            context_dim,
            linear,
            gate=gate,
            gated=every if gate is not None else (),
            shifted=every if shifted else (),
            time=True,
            frequencies=None,
        )
        self._layer = layer
        if layer == "film":
            for parameter in itertools.chain(self.gates.parameters(), self.shifts.parameters()):
                nn.init.zeros_(parameter)

    def describe(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as JSON values."""
        return {
            "kind": "concat-squash",
            "dim": self.dim,
            "hidden": list(self.hidden),
            "activation": str(self.activation),
            "layer": self._layer,
            "context_dim": self.context_dim,
            "linear": self.linear is not None,
        }


class FourierTimeMLP(ModulatedMLP):
    r"""An MLP of position, context and an embedding of time: :math:`\cos(\omega_k t)` and :math:`\sin(\omega_k t)`.

    .. math:: v(x, t) = \mathrm{MLP}([x, \cos(\omega t), \sin(\omega t), c]) + A x

    Layer 1 is kept as the matrix of x, with its bias, and that of the other columns, which shifts it. The frequencies
    are those of zuko's flows, :math:`\omega_k = k \pi` with k from 1 to F (``"fourier"``); of transformers,
    :math:`\omega_k = \mathrm{base}^{k / F}` with k from 0 to F - 1 (``"sinusoidal"``); or random Fourier features,
    :math:`\omega_k = 2 \pi\, \mathrm{base}\, \epsilon_k` with normal :math:`\epsilon` (``"random"``).

    Arguments:
        dim: Number d of features of x.
        hidden: Widths of the hidden layers, at least one.
        activation: Any that `jkoflow.MLPVelocity` takes.
        frequencies: Number F of frequencies, at least 1; the embedding has 2 F columns.
        embedding: Where they come from, ``"fourier"``, ``"sinusoidal"`` or ``"random"``.
        base: Base of the sinusoidal frequencies (1e-4 in transformers), or scale of the random ones; None means 1e-4
            and 1.
        learnable: Whether the frequencies are parameters; None means that the random ones are.
        context_dim: Number c of conditioning variables, which the divergence does not differentiate.
        linear: Whether to add the linear term :math:`A x`, starting at :math:`A = 0`.

    Raises:
        ValueError: If a size or the base is not positive, the activation is unknown or not smooth, or the embedding is
            unknown.

    References:
        | Attention is all you need (Vaswani et al., 2017), section 3.5
        | https://arxiv.org/abs/1706.03762
        | Fourier features let networks learn high frequency functions in low dimensional domains (Tancik et al., 2020)
        | https://arxiv.org/abs/2006.10739

    Example:
        >>> velocity = FourierTimeMLP(2, hidden=(64, 64), activation="silu", frequencies=3)
        >>> velocity(torch.zeros(5, 2), t=torch.linspace(0, 1, 5)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        activation: str | Activation = "tanh",
        frequencies: int = 3,
        embedding: str = "fourier",
        base: float | None = None,
        learnable: bool | None = None,
        context_dim: int = 0,
        linear: bool = False,
    ) -> None:
        if embedding not in EMBEDDINGS:
            raise ValueError(f"embedding must be one of {', '.join(EMBEDDINGS)}, got {embedding!r}")
        if frequencies < 1:
            raise ValueError(f"frequencies must be at least 1, got {frequencies}; MLPVelocity reads t as it is")
        self_base = (1.0 if embedding == "random" else 1e-4) if base is None else float(base)
        if not (math.isfinite(self_base) and self_base > 0):
            raise ValueError(f"base must be positive and finite, got {base}")
        learns = embedding == "random" if learnable is None else learnable
        super().__init__(
            dim,
            hidden,
            activation,
            context_dim,
            linear,
            gate=None,
            gated=(),
            shifted=(0,),
            time=False,
            frequencies=_frequencies(embedding, frequencies, self_base),
            learnable=learns,
        )
        self._embedding, self._base, self._learnable = embedding, self_base, learns

    def describe(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as JSON values."""
        return {
            "kind": "fourier-time",
            "dim": self.dim,
            "hidden": list(self.hidden),
            "activation": str(self.activation),
            "frequencies": int(self.frequencies.numel()),
            "embedding": self._embedding,
            "base": self._base,
            "learnable": self._learnable,
            "context_dim": self.context_dim,
            "linear": self.linear is not None,
        }


def _frequencies(embedding: str, count: int, base: float) -> Tensor:
    if embedding == "fourier":
        return math.pi * torch.arange(1, count + 1).to(torch.get_default_dtype())
    if embedding == "sinusoidal":
        return base ** (torch.arange(count) / count)
    return 2 * math.pi * base * torch.randn(count)


def _read_shift(layer: nn.Module, where: str) -> Tensor:
    return read_matrix(layer, where, why_no_bias="the bias of the layer that it shifts is enough")
