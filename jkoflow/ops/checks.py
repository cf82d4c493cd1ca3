"""The arguments of `integrate` and `jko_loss` as one request, and their checks, whose errors name the argument."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from jkoflow.ops.grid import Adaptive, Grid
from jkoflow.ops.network import check_field
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.velocity import MLPField

Backend = Literal["auto", "cpu", "cuda", "reference"]
Divergence = Literal["exact", "hutchinson", "none"]
Precision = Literal["auto", "fp32", "bf16x3", "tf32x3", "tf32", "float64"]

_LARGEST = sys.float_info.max  # and not inf: integers may be larger than any float
_METHODS = tuple(TABLEAUX)
_DIVERGENCES = ("exact", "hutchinson", "none")
_BACKENDS = ("auto", "cpu", "cuda", "reference")
_PRECISIONS = ("auto", "fp32", "bf16x3", "tf32x3", "tf32", "float64")


class Request(NamedTuple):
    """The arguments of one integration."""

    field: MLPField | None
    """Weights of the velocity; None if only a call of the velocity gives its values."""
    unfused: str
    """Reason for which there is no field."""
    x: Tensor
    context: Tensor | None
    noise: Tensor | None
    t0: float
    t1: float
    grid: Grid | Adaptive
    method: str
    divergence: str
    backend: str
    precision: str
    field_at: Callable[[float | Tensor], MLPField] | None = None
    """Weights of the velocity at any time, if they depend on it and there is no field."""
    fields_at: Callable[[Tensor], MLPField] | None = None
    """Weights at several times (N,), with a leading axis, if stages with weights of their own can run together."""
    field_at_start: MLPField | None = None
    """Weights at t0, if they depend on time."""

    def in_precision(self) -> Request:
        """Returns the request with its tensors in float64 if that is the precision, otherwise as it is."""
        field, field_at, fields_at, start = self.field, self.field_at, self.fields_at, self.field_at_start
        if self.precision != "float64" or (field is None and field_at is None):
            return self
        context, noise = (None if rows is None else rows.double() for rows in (self.context, self.noise))
        exact = self._replace(x=self.x.double(), context=context, noise=noise, precision="auto")
        return exact._replace(
            field=None if field is None else field.double(),
            field_at=None if field_at is None else lambda t: field_at(t).double(),
            fields_at=None if fields_at is None else lambda times: fields_at(times).double(),
            field_at_start=None if start is None else start.double(),
        )


def check_request(request: Request) -> None:
    """Refuses arguments that do not fit each other, before anything is computed.

    Raises:
        ValueError: If an argument or a layer of the velocity has the wrong shape, dtype, device or value.
    """
    _check_x(request.field, request.x)
    _check_context(request.field, request.x, request.context)
    _check_choices(request)
    _check_noise(request.x, request.noise, request.divergence)
    if request.field is not None:
        check_field(request.field, request.x)


def _check_x(field: MLPField | None, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a tensor of shape (B, d), got {type(x).__name__}; convert it with torch.as_tensor")
    if x.dim() != 2 or x.shape[1] < 1 or (field is not None and x.shape[1] != field.dim):
        expected = f"(B, {field.dim}) to match velocity.dim" if field is not None else "(B, d)"
        raise ValueError(f"x must have shape {expected}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor, got {x.dtype}; convert it with x.float()")
    if x.layout is not torch.strided:
        raise ValueError(f"x must be a dense tensor, got {x.layout}; convert it with x.to_dense()")
    if field is not None and _differs(field.weights[0], x) and _differs(field.weights[-1], x):  # not one odd layer
        first = field.weights[0]
        raise ValueError(
            f"x must match the velocity's dtype and device ({first.dtype}, {first.device}), got "
            f"({x.dtype}, {x.device}); convert one with .to(...)"
        )


def _differs(weight: Tensor, x: Tensor) -> bool:
    return weight.dtype != x.dtype or weight.device != x.device


def _check_context(field: MLPField | None, x: Tensor, context: Tensor | None) -> None:
    if context is not None and not isinstance(context, Tensor):
        raise ValueError(f"context must be a tensor of shape (B, c) or None, got {type(context).__name__}")
    if field is not None:
        # in plain comparisons: torch.compile with dynamic shapes cannot trace the message, nor all that Python can
        c = field.context_dim
        if c == 0:
            if context is not None:
                raise ValueError(_context_message(field, x, context))
        elif context is None or context.dim() != 2 or context.shape[0] != x.shape[0] or context.shape[1] != c:
            raise ValueError(_context_message(field, x, context))
    if context is not None and (context.dtype != x.dtype or context.device != x.device):
        raise ValueError(
            f"context must match x's dtype and device ({x.dtype}, {x.device}), got ({context.dtype}, {context.device})"
        )
    if context is not None and context.layout is not torch.strided:
        raise ValueError(f"context must be a dense tensor, got {context.layout}; convert it with context.to_dense()")


def _context_message(field: MLPField, x: Tensor, context: Tensor | None) -> str:
    wanted = (x.shape[0], field.context_dim)
    expected = f"have shape {wanted} to match velocity.context_dim" if field.context_dim else "be None"
    return f"context must {expected}, got {None if context is None else tuple(context.shape)}"


def _check_choices(request: Request) -> None:
    x, t0, t1, backend, precision = request.x, request.t0, request.t1, request.backend, request.precision
    numbers = isinstance(t0, (int, float)) and isinstance(t1, (int, float))
    if not (numbers and abs(t0) <= _LARGEST and abs(t1) <= _LARGEST):
        raise ValueError(f"t0 and t1 must be finite numbers, got {t0!r} and {t1!r}")
    if request.method not in _METHODS:
        raise ValueError(_choice("method", request.method, _METHODS))
    if request.divergence not in _DIVERGENCES:
        raise ValueError(_choice("divergence", request.divergence, _DIVERGENCES))
    if backend not in _BACKENDS:
        raise ValueError(_choice("backend", backend, _BACKENDS))
    if precision not in _PRECISIONS:
        raise ValueError(_choice("precision", precision, _PRECISIONS))
    if precision == "float64" and request.field is None:
        raise ValueError(
            "precision 'float64' converts the weights of an MLPVelocity, and this velocity can only be called; give a "
            "velocity and x in float64 instead"
        )
    if precision == "bf16x3" and (x.dtype != torch.float32 or x.device.type != "cpu" or backend not in ("auto", "cpu")):
        raise ValueError(
            "precision 'bf16x3' is for float32 tensors in the CPU kernels, got "
            f"{x.dtype} on {x.device} with backend={backend!r}"
        )
    if precision in ("tf32x3", "tf32") and (x.device.type != "cuda" or backend not in ("auto", "cuda")):
        raise ValueError(
            f"precision must be 'auto', 'fp32', 'bf16x3' or 'float64' outside the CUDA kernels, got {precision!r}"
        )


def _choice(name: str, value: str, known: tuple[str, ...]) -> str:
    return f"{name} must be one of {', '.join(known)}, got {value!r}"


def _check_noise(x: Tensor, noise: Tensor | None, divergence: str) -> None:
    if (noise is not None) != (divergence == "hutchinson"):
        raise ValueError(
            f"noise must be {'a probe of shape ' + str(tuple(x.shape)) if noise is None else 'None'} with "
            f"divergence={divergence!r}"
        )
    if noise is None:
        return
    if not isinstance(noise, Tensor):
        raise ValueError(f"noise must be a tensor of shape {tuple(x.shape)}, got {type(noise).__name__}")
    if noise.shape != x.shape or noise.dtype != x.dtype or noise.device != x.device:
        raise ValueError(
            f"noise must have shape {tuple(x.shape)} on {x.device} and dtype {x.dtype} as x, got "
            f"{tuple(noise.shape)} on {noise.device}, {noise.dtype}"
        )
    if noise.layout is not torch.strided:
        raise ValueError(f"noise must be a dense tensor, got {noise.layout}; convert it with noise.to_dense()")
