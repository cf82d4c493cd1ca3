"""The choice between the compiled kernels and the PyTorch reference, for one request."""

from __future__ import annotations

import torch

from jkoflow.callers import warn_caller
from jkoflow.ops import native
from jkoflow.ops.checks import Request, check_request
from jkoflow.ops.extension import UnsupportedError
from jkoflow.ops.modulation import word_of
from jkoflow.velocity import MLPField, Velocity


class FallbackWarning(UserWarning):
    """Warns that ``backend="auto"`` uses the PyTorch reference because no fused kernel covers the request."""


def field_of(velocity: object) -> tuple[MLPField | None, str]:
    """Returns the weights of a velocity for the kernels, or None, and the reason if there are none."""
    if isinstance(velocity, MLPField):
        return velocity, ""
    if not isinstance(velocity, Velocity):
        return None, "the kernels integrate an MLPVelocity; another velocity is differentiated by autograd"
    field = velocity.field()
    return field, "" if field is not None else velocity.unfused() or ""


def with_field_at(request: Request, velocity: object) -> Request:
    """Returns a request with the weights at any time of a velocity that has them but no field.

    Raises:
        ValueError: If the weights at t0 do not fit each other or the request.
    """
    field = velocity.field_at(request.t0) if request.field is None and isinstance(velocity, Velocity) else None
    if field is None:
        return request
    check_request(request._replace(field=field))
    return request._replace(field_at=velocity.field_at)  # type: ignore[union-attr]


def settings_of(request: Request, field: MLPField) -> native.Settings:
    """Returns the settings of a request that are not tensors."""
    interval = float(request.t0), float(request.t1)
    kind = request.divergence, field.time or field.modulation is not None, field.activation.text
    how = request.grid, request.method, request.precision
    return native.Settings(*kind, *interval, *how, word_of(field))


def use_kernel(request: Request) -> bool:
    """Tells whether a compiled kernel runs the request, with a warning if none can and none was asked for by name.

    Raises:
        UnsupportedError: If the backend or precision asked for by name cannot run it.
    """
    backend, precision = request.backend, request.precision
    if backend == "reference":
        return False
    field = request.unfused if request.field is None else request.field
    if request.field_at is not None:
        field = request.field_at(request.t0)  # one for each stage
    reason = native.unsupported(field, request.x, request.divergence, request.noise, backend, precision)
    if reason is not None and precision == "bf16x3":
        raise UnsupportedError("precision 'bf16x3' cannot be had", reason)
    if reason is not None and backend != "auto":
        raise UnsupportedError(f"backend {backend!r} cannot run this", reason)
    if reason is not None:
        warn_fallback(reason)
    return reason is None


_warned: set[str] = set()


def warn_fallback(reason: str, instead: str = "the PyTorch reference") -> None:
    """Warns, once for every reason, that something else computes in place of the kernels."""
    text = f"using {instead}: {reason}"
    if text not in _warned and not torch.compiler.is_compiling():
        _warned.add(text)
        warn_caller(text, FallbackWarning)
