"""The times of an integration, which may be tensors that gradients flow to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from jkoflow.ops.checks import Request
from jkoflow.velocity import MLPField
from jkoflow.velocity.time_change import change_time

Time = float | Tensor
"""A time: a number, or a tensor of one number."""


Velocity = Callable[..., Tensor] | MLPField
"""What an integration takes for a velocity."""


class Interval(NamedTuple):
    r"""The interval of an integration in a time :math:`\tau` whose ends are numbers.

    The time of the velocity is :math:`t = a + r \tau`. Both are None where t is :math:`\tau`; otherwise gradients
    flow to t0 and t1 through them, and where t0 and t1 can be read, a is 0 and r is 1, so that numbers and steps are
    those of an integration between numbers.
    """

    start: float
    end: float
    shift: Tensor | None = None
    factor: Tensor | None = None

    def change(self, request: Request, velocity: Velocity) -> tuple[Request, Velocity]:
        r"""Returns the request and the velocity in the time :math:`\tau`."""
        shift, factor = self.shift, self.factor
        if shift is None or factor is None:
            return request, velocity
        if request.field is not None:
            return request._replace(field=change_time(request.field, shift, factor)), velocity
        if (field_at := request.field_at) is not None:

            def changed_field_at(time: Time) -> MLPField:
                return _scale(field_at(shift + factor * time), factor)

            fields_at = request.fields_at

            def changed_fields_at(times: Tensor) -> MLPField:
                assert fields_at is not None
                return _scale(fields_at(shift + factor * times), factor)

            return request._replace(
                field_at=changed_field_at,
                fields_at=None if fields_at is None else changed_fields_at,
                field_at_start=changed_field_at(request.t0),
            ), velocity

        assert not isinstance(velocity, MLPField)  # which is the field of its request

        def changed(x: Tensor, time: Time, context: Tensor | None) -> Tensor:
            a, r = shift.to(x), factor.to(x)
            return r * velocity(x, a + r * time, context)

        return request, changed


def _scale(field: MLPField, factor: Tensor) -> MLPField:
    """Returns weights at one time with the velocity multiplied by a factor."""
    factor = factor.to(field.weights[0])
    return change_time(field, torch.zeros_like(factor), factor)


def interval_between(t0: Any, t1: Any) -> Interval:
    """Returns the interval from t0 to t1, each a number or a tensor of one number.

    A tensor without a gradient is read as a number, which waits for its device.

    Raises:
        ValueError: If a tensor does not hold one number of a floating-point type.
    """
    t0, t1 = _as_time(t0, "t0"), _as_time(t1, "t1")
    tensors = [time for time in (t0, t1) if isinstance(time, Tensor)]
    if not tensors or not all(isinstance(time, (int, float, Tensor)) for time in (t0, t1)):
        return Interval(t0, t1)  # numbers, or what the check of the request refuses
    start, end = (torch.as_tensor(time, dtype=torch.float64, device=tensors[0].device) for time in (t0, t1))
    if _is_readable(start) and _is_readable(end):
        first, last = float(start.detach()), float(end.detach())
        if first != last:  # of a single moment no part can be taken
            factor = (end - start) / (last - first)
            return Interval(first, last, start - factor * first, factor)
    return Interval(0.0, 1.0, start, end - start)


def as_times(times: Tensor | Sequence[Time], adaptive: bool) -> list[Time]:
    """Returns times as numbers, but those with a gradient as tensors without axes.

    Raises:
        ValueError: If there are fewer than two, they do not increase or decrease strictly, or a gradient is wanted
            where steps are adaptive, which do not stop at the times.
    """
    try:
        given = list(times) if not isinstance(times, Tensor) or times.dim() == 1 else []
        found = [_as_time(time, "each of the times") for time in given]
        numbers = [float(time.detach() if isinstance(time, Tensor) else time) for time in found if _is_number(time)]
    except (TypeError, ValueError):
        found = numbers = []
    steps = [end - start for start, end in itertools.pairwise(numbers)]
    if len(found) < 2 or not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
        raise ValueError(f"times must be two or more increasing or decreasing numbers, got {times!r}")
    if adaptive and any(isinstance(time, Tensor) for time in found):
        raise ValueError(
            "times must be constants with adaptive steps, but they require a gradient; pass times.detach(), or "
            "num_steps for equal steps, or integrate from each time to the next with t0 and t1"
        )
    return found


def _is_number(time: Time) -> bool:
    return not isinstance(time, Tensor) or _is_readable(time)


def _as_time(time: Any, name: str) -> Any:
    """Returns a tensor with a gradient without axes, a constant one as a number, and everything else as it is."""
    if not isinstance(time, Tensor):
        return time
    if time.numel() != 1 or not time.is_floating_point():
        raise ValueError(
            f"{name} must be a number or a floating-point tensor of one number, got shape {tuple(time.shape)}, "
            f"{time.dtype}; several times are passed as times=..."
        )
    time = time.reshape(())
    return time if _is_variable(time) else float(time.detach())


def _is_variable(time: Tensor) -> bool:
    """Tells whether a time must stay a tensor: because of its gradient, or because it cannot be read."""
    if torch.compiler.is_compiling() or not _is_readable(time):
        return True
    if time.requires_grad and torch.is_grad_enabled():
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(time).tangent is not None


def _is_readable(time: Tensor) -> bool:
    """Tells whether a tensor is one number now: not while a program is traced, nor one for each sample of a vmap."""
    if torch.compiler.is_compiling() or time.is_meta:
        return False
    while is_functorch_wrapped_tensor(time):
        if is_batchedtensor(time):
            return False
        time = get_unwrapped(time)
    return True
