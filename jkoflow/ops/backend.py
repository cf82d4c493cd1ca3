"""The choice between the compiled kernels and the PyTorch reference, for one request."""

from __future__ import annotations

from torch.autograd import forward_ad

from jkoflow.ops import native
from jkoflow.ops.checks import Request, check_request
from jkoflow.ops.extension import UnsupportedError
from jkoflow.ops.fallback import warn_fallback
from jkoflow.ops.grid import Adaptive
from jkoflow.ops.modulation import word_of
from jkoflow.ops.transforms import active
from jkoflow.velocity import MLPField, Velocity


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
    plain = field.linear is None and field.modulation is None and not field.time and not request.x.is_cuda
    fields_at = velocity.fields_at if plain else None  # type: ignore[union-attr]
    at = velocity.field_at  # type: ignore[union-attr]
    return request._replace(field_at=at, fields_at=fields_at, field_at_start=field)


def settings_of(request: Request, field: MLPField) -> native.Settings:
    """Returns the settings of a request that are not tensors."""
    interval = float(request.t0), float(request.t1)
    kind = request.divergence, field.time or field.modulation is not None, field.activation.text
    how = request.grid, request.method, request.precision
    return native.Settings(*kind, *interval, *how, word_of(field))


def stages_settings(request: Request) -> native.Settings:
    """Returns the settings of a request each of whose stages has weights of its own."""
    assert request.field_at_start is not None
    return settings_of(request, request.field_at_start)


def use_kernel(request: Request) -> bool:
    """Tells whether a compiled kernel runs the request, with a warning if none can and none was asked for by name.

    Raises:
        UnsupportedError: If the backend or precision asked for by name cannot run it.
    """
    backend, precision = request.backend, request.precision
    if backend == "reference":
        return False
    field = request.field or request.field_at_start or request.unfused
    if isinstance(request.grid, Adaptive) and forward_ad._current_level >= 0:
        field = "the kernels have no forward mode for adaptive steps"
    if request.field_at is not None and active():
        field = "the kernels have no transforms of steps whose stages have weights of their own"
    reason = native.unsupported(field, request.x, request.divergence, request.noise, backend, precision)
    if reason is not None and precision == "bf16x3":
        raise UnsupportedError("precision 'bf16x3' cannot be had", reason)
    if reason is not None and backend != "auto":
        raise UnsupportedError(f"backend {backend!r} cannot run this", reason)
    if reason is not None:
        warn_fallback(reason)
    return reason is None
