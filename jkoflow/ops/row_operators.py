"""The kernels of `jkoflow.ops.native_rows` as torch custom operators: single evaluations and adaptive steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jkoflow.ops import derivatives, native_rows
from jkoflow.ops.library import (
    ARGUMENTS,
    GRADIENTS,
    LIBRARY,
    SLOTS,
    Gradients,
    any_needs_gradient,
    call,
    encode,
    pack,
    places_of,
    register_autograd,
    share_out,
    slots_of,
    unpack,
)
from jkoflow.ops.native import Settings, dense_like
from jkoflow.ops.native_rows import Trajectory
from jkoflow.ops.transforms import RowAxes, active, differentiated_again
from jkoflow.velocity import MLPField


def evaluate_mlp(
    field: MLPField, x: Tensor, times: Tensor | None, context: Tensor | None, noise: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Runs the fused kernel; returns velocity (B, d) and divergence (B,) at x (B, d) and times (B,)."""
    velocity, divergence = call("evaluate", x, times, context, *slots_of(field), noise, encode(settings))
    return velocity, divergence.detach() if settings.divergence == "none" else divergence


def integrate_adaptively(
    field: MLPField,
    x: Tensor,
    context: Tensor | None,
    noise: Tensor | None,
    settings: Settings,
    output_times: Tensor,
) -> Trajectory:
    """Runs the fused kernel with adaptive steps, which are recorded if a gradient is wanted."""
    tensors = (x, context, *slots_of(field))
    record = active() or any_needs_gradient(tensors)
    found = Trajectory(*call("integrate_adaptive", *tensors, noise, encode(settings), output_times, record))
    if settings.divergence == "none":
        return found._replace(logdet=found.logdet.detach(), logdet_outputs=found.logdet_outputs.detach())
    return found


# ---- Single evaluations


def _unpack_evaluation(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns x, times, context, network, noise, settings and the arguments after them."""
    x, times, *rest = arguments
    x, context, network, noise, settings, others = unpack((x, *rest))
    return x, times, context, network, noise, settings, others


LIBRARY.define(f"evaluate(Tensor x, Tensor? times, {ARGUMENTS}) -> (Tensor velocity, Tensor divergence)")


@torch.library.impl(LIBRARY, "evaluate", "CPU")
@torch.library.impl(LIBRARY, "evaluate", "CUDA")
def _evaluate_kernel(*arguments: Any) -> tuple[Tensor, Tensor]:
    *request, _ = _unpack_evaluation(arguments)
    return native_rows.evaluate(*request)


@torch.library.register_fake("jkoflow::evaluate", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    x = arguments[0]
    return dense_like(x), x.new_empty((x.shape[0],))


LIBRARY.define(
    f"evaluate_backward(Tensor x, Tensor? times, {ARGUMENTS}, Tensor? velocity_bar, Tensor? divergence_bar, "
    f"bool parameters_wanted) -> (Tensor x_grad, Tensor times_grad, Tensor context_grad, Tensor slots_grad)"
)


@torch.library.impl(LIBRARY, "evaluate_backward", "CPU")
@torch.library.impl(LIBRARY, "evaluate_backward", "CUDA")
def _evaluate_backward_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    x, times, context, network, noise, settings, (*bars, wanted) = _unpack_evaluation(arguments)
    request = x, times, context, network, noise, settings
    return pack(x, *native_rows.evaluate_backward((bars[0], bars[1]), *request, wanted))


@torch.library.register_fake("jkoflow::evaluate_backward", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    x, times, context, network, _, _, (*_, wanted) = _unpack_evaluation(arguments)
    grads = (None if tensor is None else dense_like(tensor) for tensor in (times, context))
    return pack(x, dense_like(x), *grads, network.new_gradient() if wanted else None)


def _evaluation_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 4 + SLOTS  # behind x, times, context, the slots and noise
    ctx.set_materialize_grads(False)
    ctx.settings = inputs[settings]
    ctx.save_for_backward(*inputs[:settings])


def _evaluation_gradients(ctx: Any, *bars: Tensor | None) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[: 3 + SLOTS]
    saved = ctx.saved_tensors
    x, times, context, slots = call("evaluate_backward", *saved, ctx.settings, *bars, any(wanted[3:]))
    x_grad, *rest = share_out((wanted[0], *wanted[2:]), (x, context, slots), places_of(saved[3 : 3 + SLOTS]))
    return x_grad, times if wanted[1] else None, *rest, None, None


def _evaluation_backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 4 + SLOTS
    ctx.set_materialize_grads(False)
    ctx.settings, ctx.wanted = inputs[settings], inputs[-1]
    ctx.save_for_backward(*inputs[:settings], *inputs[settings + 1 : -1])


def _evaluation_second_gradients(ctx: Any, *bars: Tensor | None) -> tuple[Tensor | None, ...]:
    saved, settings = ctx.saved_tensors, 4 + SLOTS
    arguments = *saved[:settings], ctx.settings, *saved[settings:], ctx.wanted
    return differentiated_again(derivatives.evaluate_backward, arguments, ctx.needs_input_grad, bars)


_ROWS = {0: 0, 1: 0, 2: 0, 3 + SLOTS: 0}  # x, times, context and noise
_BAR = 5 + SLOTS  # the first argument behind the settings
register_autograd(
    "evaluate",
    Gradients(_evaluation_context, _evaluation_gradients, derivatives.evaluate, RowAxes(_ROWS, ((0, 2), (0, 1)))),
)
register_autograd(
    "evaluate_backward",
    Gradients(
        _evaluation_backward_context,
        _evaluation_second_gradients,
        derivatives.evaluate_backward,
        RowAxes(
            _ROWS | {_BAR: 0, _BAR + 1: 0},
            ((0, 2), (0, 1), (0, 2), None),
            lambda arguments: arguments[-1],
        ),
    ),
)


# ---- Adaptive steps


LIBRARY.define(
    f"integrate_adaptive(Tensor x, {ARGUMENTS}, Tensor output_times, bool record) -> (Tensor x_end, Tensor logdet, "
    f"Tensor x_outputs, Tensor logdet_outputs, Tensor evaluations, Tensor last_step, Tensor records)"
)


@torch.library.impl(LIBRARY, "integrate_adaptive", "CPU")
@torch.library.impl(LIBRARY, "integrate_adaptive", "CUDA")
def _adaptive_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    x, context, network, noise, settings, (output_times, record) = unpack(arguments)
    return tuple(native_rows.adaptive(x, context, network, noise, settings, output_times, record))


@torch.library.register_fake("jkoflow::integrate_adaptive", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    x, *_, (output_times, record) = unpack(arguments)
    steps = torch.library.get_ctx().new_dynamic_size() if record else 0
    return tuple(native_rows.new_trajectory(x, output_times.shape[0], record, steps))


LIBRARY.define(
    f"integrate_adaptive_backward(Tensor x, {ARGUMENTS}, Tensor output_times, Tensor last_step, Tensor records, "
    f"Tensor? x_end_bar, Tensor? logdet_bar, Tensor? x_outputs_bar, Tensor? logdet_outputs_bar, "
    f"bool parameters_wanted) -> ({GRADIENTS})"
)


@torch.library.impl(LIBRARY, "integrate_adaptive_backward", "CPU")
@torch.library.impl(LIBRARY, "integrate_adaptive_backward", "CUDA")
def _adaptive_backward_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    x, context, network, noise, settings, (output_times, last_step, records, *bars, wanted) = unpack(arguments)
    request = x, context, network, noise, settings
    found = native_rows.adaptive_backward(
        (bars[0], bars[1], bars[2], bars[3]), last_step, records, *request, output_times, wanted
    )
    return pack(x, *found)


@torch.library.register_fake("jkoflow::integrate_adaptive_backward", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    x, context, network, *_, (*_, wanted) = unpack(arguments)
    context_grad = None if context is None else dense_like(context)
    return pack(x, dense_like(x), context_grad, network.new_gradient() if wanted else None)


def _adaptive_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 3 + SLOTS  # behind x, context, the slots and noise
    ctx.set_materialize_grads(False)
    ctx.settings = inputs[settings]
    ctx.mark_non_differentiable(*output[4:])
    ctx.save_for_backward(*inputs[:settings], inputs[settings + 1], *output[5:])


def _adaptive_gradients(ctx: Any, *bars: Tensor | None) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[: 2 + SLOTS]
    *request, output_times, last_step, records = ctx.saved_tensors
    gradients = call(
        "integrate_adaptive_backward",
        *request,
        ctx.settings,
        output_times,
        last_step,
        records,
        *bars[:4],
        any(wanted[2:]),
    )
    return *share_out(wanted, gradients, places_of(request[2 : 2 + SLOTS])), None, None, None, None


def _adaptive_backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 3 + SLOTS
    ctx.set_materialize_grads(False)
    ctx.settings, ctx.wanted = inputs[settings], inputs[-1]
    ctx.save_for_backward(*inputs[:settings], *inputs[settings + 1 : -1])


def _adaptive_second_gradients(ctx: Any, *bars: Tensor | None) -> tuple[Tensor | None, ...]:
    saved, settings = ctx.saved_tensors, 3 + SLOTS
    arguments = *saved[:settings], ctx.settings, *saved[settings:], ctx.wanted
    return differentiated_again(derivatives.integrate_adaptive_backward, arguments, ctx.needs_input_grad, bars)


_ROWS = {0: 0, 1: 0, 2 + SLOTS: 0}  # x, context and noise
_LAST = 5 + SLOTS  # last_step, behind the settings and the output times; then the records and four bars
register_autograd(
    "integrate_adaptive",
    Gradients(
        _adaptive_context,
        _adaptive_gradients,
        None,
        RowAxes(_ROWS, ((0, 2), (0, 1), (1, 3), (1, 2), (0, 1), (0, 1), None)),
    ),
)
register_autograd(
    "integrate_adaptive_backward",
    Gradients(
        _adaptive_backward_context,
        _adaptive_second_gradients,
        derivatives.integrate_adaptive_backward,
        RowAxes(
            _ROWS | {_LAST: 0, _LAST + 2: 0, _LAST + 3: 0, _LAST + 4: 1, _LAST + 5: 1},
            ((0, 2), (0, 2), None),
            lambda arguments: arguments[-1],
        ),
    ),
)
