"""Activations of the velocity network and the derivatives that an exact divergence needs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Activation:
    r"""An activation :math:`\sigma` with its slope :math:`\sigma'`.

    Arguments:
        name: One of ``"tanh"``, ``"softplus"``, ``"silu"``, ``"elu"`` (with :math:`\alpha = 1`), ``"selu"``, ``"gelu"``
            (the exact one, with the error function), ``"sin"``. The slope of ``"selu"`` jumps at 0, from 1.758 to
            1.051: there the divergence jumps, too, which no gradient sees.
        beta: Sharpness of ``softplus``, :math:`\log(1 + e^{\beta z}) / \beta`; 1 for the others.
    """

    name: str
    beta: float = 1.0
    text: str = field(init=False, repr=False, compare=False)
    """Text that `parse_activation` reads; stored, so that torch.compile sees a constant and not a formatted float."""

    def __post_init__(self) -> None:
        # repr, so that a saved flow gets the very same beta back
        text = f"softplus({self.beta!r})".replace(".0)", ")") if self.name == "softplus" else self.name
        object.__setattr__(self, "text", text)

    def value(self, z: Tensor) -> Tensor:
        r"""Returns :math:`\sigma(z)`, with the shape of ``z``."""
        return _TABLE[self.name][0](z, self.beta)

    def slope(self, z: Tensor) -> Tensor:
        r"""Returns :math:`\sigma'(z)`, with the shape of ``z``; autograd gives :math:`\sigma''`."""
        return _TABLE[self.name][1](z, self.beta)

    def __str__(self) -> str:
        return self.text


def parse_activation(text: str | Activation) -> Activation:
    """Reads ``"tanh"``, ``"silu"``, ``"softplus"``, ``"softplus(5)"``, ``"elu"``, ``"selu"``, ``"gelu"`` or ``"sin"``.

    Raises:
        ValueError: For an unknown name, a piecewise linear activation such as relu, or a beta that is not positive.
    """
    if isinstance(text, Activation):
        return text
    if text in ("relu", "leaky_relu", "hardtanh"):
        raise ValueError(
            f"activation must bend, got {text!r}: it is linear in pieces, so its second derivative is zero wherever "
            f"there is one, and the divergence would not train; use one of {', '.join(_TABLE)}"
        )
    match = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", text)
    if match is None or match[1] not in _TABLE or (match[2] is not None and match[1] != "softplus"):
        raise ValueError(f"activation must be one of {', '.join(_TABLE)} or 'softplus(BETA)', got {text!r}")
    try:
        beta = float(match[2]) if match[2] is not None else 1.0
    except ValueError:
        beta = math.nan
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"softplus needs a positive finite beta, got {text!r}")
    return Activation(match[1], beta)


def activation_of(module: nn.Module) -> Activation | None:
    """Returns the activation that a module of torch.nn computes; None if it is none of those that a velocity can have.

    Example:
        >>> activation_of(torch.nn.Softplus(beta=5)), activation_of(torch.nn.ReLU())
        (Activation(name='softplus', beta=5.0), None)
    """
    kind = type(module)  # a subclass may compute something else
    if (
        isinstance(module, nn.Softplus) and kind is nn.Softplus and module.threshold >= 20
    ):  # from where on it takes softplus(z) for z, to 2e-9
        return Activation("softplus", float(module.beta))
    if (kind is nn.ELU and module.alpha != 1) or (kind is nn.GELU and module.approximate != "none"):
        return None
    return Activation(kind.__name__.lower()) if kind in (nn.Tanh, nn.SiLU, nn.ELU, nn.SELU, nn.GELU) else None


def _tanh_slope(z: Tensor, beta: float) -> Tensor:
    h = torch.tanh(z)
    return 1 - h * h


def _silu_slope(z: Tensor, beta: float) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _gelu_slope(z: Tensor, beta: float) -> Tensor:
    cdf = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return cdf + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _elu_slope(z: Tensor, beta: float) -> Tensor:
    return torch.exp(z.clamp(max=0))


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717  # as PyTorch has them


def _selu_slope(z: Tensor, beta: float) -> Tensor:
    return torch.where(z > 0, _SELU_SCALE, _SELU_SCALE * _SELU_ALPHA * torch.exp(z.clamp(max=0)))


_TABLE: dict[str, tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor]]] = {
    "tanh": (lambda z, beta: torch.tanh(z), _tanh_slope),
    # past its threshold on beta * z softplus turns linear: at 40 that is exact in float64 and exp is finite in float32
    "softplus": (lambda z, beta: functional.softplus(z, beta, 40.0), lambda z, beta: torch.sigmoid(beta * z)),
    "silu": (lambda z, beta: functional.silu(z), _silu_slope),
    "elu": (lambda z, beta: functional.elu(z), _elu_slope),
    "selu": (lambda z, beta: functional.selu(z), _selu_slope),
    "gelu": (lambda z, beta: functional.gelu(z), _gelu_slope),
    "sin": (lambda z, beta: torch.sin(z), lambda z, beta: torch.cos(z)),
}
