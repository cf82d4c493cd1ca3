"""The kernels of `jkoflow.ops.native_rows` as torch custom operators: single evaluations and adaptive steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jkoflow.ops import native_rows
from jkoflow.ops.derivatives import Tensors, field_of_network
from jkoflow.ops.library import (
    ARGUMENTS,
    GRADIENTS,
    LIBRARY,
    SLOTS,
    any_needs_gradient,
    decode,
    encode,
    network_of,
    pack,
    places_of,
    recording,
    register_autograd,
    share_out,
    slots_of,
    unpack,
)
from jkoflow.ops.native import Settings, dense_like
from jkoflow.ops.native_rows import Trajectory
from jkoflow.ops.reference import mlp_rhs
from jkoflow.velocity import MLPField


def evaluate_mlp(
    field: MLPField, x: Tensor, times: Tensor | None, context: Tensor | None, noise: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Runs the fused kernel; returns velocity (B, d) and divergence (B,) at x (B, d) and times (B,)."""
    arguments = x, times, context, *slots_of(field), noise, encode(settings)
    if torch.compiler.is_compiling() or recording():
        velocity, divergence = torch.ops.jkoflow.evaluate.default(*arguments)
    else:  # see operators.integrate_mlp
        with torch._C._AutoDispatchBelowAutograd():
            velocity, divergence = torch.ops.jkoflow.evaluate.default(*arguments)
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
    arguments = *tensors, noise, encode(settings), output_times, any_needs_gradient(tensors)
    found = Trajectory(*torch.ops.jkoflow.integrate_adaptive.default(*arguments))
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
    x, times, context, slots = torch.ops.jkoflow.evaluate_backward.default(*saved, ctx.settings, *bars, any(wanted[3:]))
    x_grad, *rest = share_out((wanted[0], *wanted[2:]), (x, context, slots), places_of(saved[3 : 3 + SLOTS]))
    return x_grad, times if wanted[1] else None, *rest, None, None


def _evaluation_backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 4 + SLOTS
    ctx.set_materialize_grads(False)
    ctx.settings = inputs[settings]
    ctx.save_for_backward(*inputs[:settings], *inputs[settings + 1 : -1])


def _evaluation_second_gradients(ctx: Any, *grads_bar: Tensor | None) -> Any:
    """Differentiates the gradients of an evaluation, by the reference."""
    saved, count = ctx.saved_tensors, 3 + SLOTS
    settings, noise, bars = decode(ctx.settings), saved[count], saved[count + 1 :]
    names = ["x", "times", "context", *(f"slot {i}" for i in range(SLOTS))]
    own: Tensors = {name: tensor for name, tensor in zip(names, saved[:count], strict=True) if tensor is not None}
    outputs: Tensors = {
        name: bar for name, bar in zip(("velocity", "divergence"), bars, strict=True) if bar is not None
    }
    slots = saved[3:count]
    x_bar, times_bar, context_bar, slots_bar = grads_bar
    wanted = {"x": x_bar, "times": times_bar, "context": context_bar}
    for i, place in enumerate(places_of(slots)):
        wanted[f"slot {i}"] = None if place is None or slots_bar is None else slots_bar.as_strided(*place)
    cotangents: Tensors = {name: bar for name, bar in wanted.items() if bar is not None and name in own}

    def gradients(tensors: Tensors) -> Tensors:
        def results(inputs: Tensors) -> tuple[Tensor, ...]:
            context = inputs.get("context")
            field = field_of_network(inputs["x"], context, network_of(inputs), settings)
            rhs = mlp_rhs(field, context, settings.divergence, noise)
            found = rhs(inputs["x"], inputs.get("times", 0.0))
            return tuple(value for value, bar in zip(found, bars, strict=True) if bar is not None)

        inputs = {name: tensor for name, tensor in tensors.items() if name not in outputs}
        pulled = torch.func.vjp(results, inputs)[1](tuple(tensors[name] for name in outputs))[0]
        return {name: pulled[name] for name in cotangents}

    found = torch.func.vjp(gradients, own | outputs)[1](cotangents)[0]
    first = (found.get(name) for name in names)
    return *first, None, None, found.get("velocity"), found.get("divergence"), None


register_autograd("evaluate", _evaluation_context, _evaluation_gradients)
register_autograd("evaluate_backward", _evaluation_backward_context, _evaluation_second_gradients)


# ---- Adaptive steps


LIBRARY.define(
    f"integrate_adaptive(Tensor x, {ARGUMENTS}, Tensor output_times, bool record) -> (Tensor x_end, Tensor logdet, "
    f"Tensor x_outputs, Tensor logdet_outputs, Tensor evaluations, Tensor last_step, Tensor records)"
)


@torch.library.impl(LIBRARY, "integrate_adaptive", "CPU")
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
    if torch.is_grad_enabled():  # create_graph=True
        raise RuntimeError(
            "adaptive steps cannot be differentiated twice by the kernels; pass jkoflow.integrate backend='reference'"
        )
    wanted = ctx.needs_input_grad[: 2 + SLOTS]
    *request, output_times, last_step, records = ctx.saved_tensors
    gradients = torch.ops.jkoflow.integrate_adaptive_backward.default(
        *request, ctx.settings, output_times, last_step, records, *bars[:4], any(wanted[2:])
    )
    return *share_out(wanted, gradients, places_of(request[2 : 2 + SLOTS])), None, None, None, None


register_autograd("integrate_adaptive", _adaptive_context, _adaptive_gradients)
