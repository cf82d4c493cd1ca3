"""The kernels of `jkoflow.ops.native_stages` as torch custom operators: every stage has a network of its own.

Equal steps are taken by an operator. Adaptive ones have been taken before (`jkoflow.ops.common_steps`), since networks
have to be made for each of them; their results become functions of x, context and networks here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jkoflow.ops import derivatives, native_stages
from jkoflow.ops.library import (
    ARGUMENTS,
    GRADIENTS,
    LIBRARY,
    SLOTS,
    Gradients,
    any_needs_gradient,
    call,
    decode,
    encode,
    pack,
    places_of,
    register_autograd,
    share_out,
    slots_of,
    unpack,
)
from jkoflow.ops.native import Settings, dense_like, equal_steps
from jkoflow.ops.transforms import differentiated_again
from jkoflow.velocity import MLPField

Results = tuple[Tensor, Tensor, Tensor, Tensor]
"""x at t1 (B, d), logdet (B,), and both at the output times, (T, B, d) and (T, B)."""


def integrate_stages(
    fields_at: Callable[[Tensor], MLPField],
    x: Tensor,
    context: Tensor | None,
    noise: Tensor | None,
    settings: Settings,
    keep_path: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Takes equal steps; returns x at t1, logdet, and the path, which is empty unless ``keep_path``."""
    steps = native_stages.equal_steps_of(settings)
    times = native_stages.stage_times(settings, steps, native_stages.stages_of(settings))
    tensors = x, context, *slots_of(fields_at(torch.tensor(times, dtype=x.dtype)))
    keep_path = keep_path or any_needs_gradient(tensors)
    x_end, logdet, path = call("integrate_stages", *tensors, noise, encode(settings), keep_path)
    return x_end, logdet.detach() if settings.divergence == "none" else logdet, path


def differentiable(
    field: MLPField,
    x: Tensor,
    context: Tensor | None,
    noise: Tensor | None,
    settings: Settings,
    steps: Tensor,
    output_times: Tensor,
    path: Tensor,
    results: Results,
) -> Results:
    """Returns the results of steps that have been taken as functions of x, the context and the stages' networks.

    Arguments:
        field: Networks of the stages of all steps, `native_stages.counted_stages` for each.
        x: Positions at the start, with shape (B, d).
        context: Conditioning variables, with shape (B, c).
        noise: The probe of ``"hutchinson"``.
        settings: Settings of the integration.
        steps: Time and length of each step, float64 on the CPU with shape (S, 2).
        output_times: Times of outputs, float64 on the CPU with shape (T,).
        path: x at the start of each step, with shape (S, B, d).
        results: The results.
    """
    arguments = x, context, *slots_of(field), noise, encode(settings), steps, output_times, path, *results
    end, logdet, x_outputs, logdet_outputs = call("recorded_stages", *arguments)
    if settings.divergence == "none":
        logdet, logdet_outputs = logdet.detach(), logdet_outputs.detach()
    return end, logdet, x_outputs, logdet_outputs


# ---- Equal steps


LIBRARY.define(f"integrate_stages(Tensor x, {ARGUMENTS}, bool keep_path) -> (Tensor x_end, Tensor logdet, Tensor path)")


@torch.library.impl(LIBRARY, "integrate_stages", "CPU")
def _integrate_kernel(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, context, networks, noise, settings, (keep_path,) = unpack(arguments)
    return native_stages.forward(x, context, networks, noise, settings, keep_path)


@torch.library.register_fake("jkoflow::integrate_stages", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, _, _, _, settings, (keep_path,) = unpack(arguments)
    steps = equal_steps(settings.grid) + 1 if keep_path else 0
    return dense_like(x), x.new_empty((x.shape[0],)), x.new_empty((steps, *x.shape))


def _integrate_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 3 + SLOTS  # behind x, context, the slots and noise
    ctx.set_materialize_grads(False)
    ctx.settings = inputs[settings]
    ctx.save_for_backward(*inputs[:settings], output[2])


def _integrate_gradients(ctx: Any, *bars: Tensor | None) -> tuple[Any, ...]:
    *request, path = ctx.saved_tensors
    steps = torch.tensor(native_stages.equal_steps_of(decode(ctx.settings)), dtype=torch.float64)
    given = steps, steps.new_empty(0), path[:-1], *bars, None, None
    return *_gradients(ctx, request, given), None, None, None


# ---- Steps that have been taken


LIBRARY.define(
    f"recorded_stages(Tensor x, {ARGUMENTS}, Tensor steps, Tensor output_times, Tensor path, Tensor x_end, "
    f"Tensor logdet, Tensor x_outputs, Tensor logdet_outputs) -> (Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.impl(LIBRARY, "recorded_stages", "CPU")
def _recorded_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(result.clone(memory_format=torch.contiguous_format) for result in arguments[-4:])


@torch.library.register_fake("jkoflow::recorded_stages", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(dense_like(result) for result in arguments[-4:])


def _recorded_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 3 + SLOTS
    ctx.set_materialize_grads(False)
    ctx.settings = inputs[settings]
    ctx.save_for_backward(*inputs[:settings], *inputs[settings + 1 : settings + 4])


def _recorded_gradients(ctx: Any, x_end: Tensor | None, logdet: Tensor | None, *outputs: Tensor | None) -> Any:
    *request, steps, output_times, path = ctx.saved_tensors
    given = steps, output_times, path, x_end, logdet, None, *outputs
    return *_gradients(ctx, request, given), *(None,) * 9


# ---- The gradients of both


LIBRARY.define(
    f"stages_backward(Tensor x, {ARGUMENTS}, Tensor steps, Tensor output_times, Tensor path, Tensor? x_end_bar, "
    f"Tensor? logdet_bar, Tensor? path_bar, Tensor? x_outputs_bar, Tensor? logdet_outputs_bar, "
    f"bool parameters_wanted) -> ({GRADIENTS})"
)


def _gradients(ctx: Any, request: list[Any], given: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    wanted = ctx.needs_input_grad[: 2 + SLOTS]
    gradients = call("stages_backward", *request, ctx.settings, *given, any(wanted[2:]))
    return share_out(wanted, gradients, places_of(request[2 : 2 + SLOTS]))


@torch.library.impl(LIBRARY, "stages_backward", "CPU")
def _backward_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    x, context, networks, noise, settings, (steps, output_times, path, *bars, wanted) = unpack(arguments)
    request = x, context, networks, noise, settings, steps, output_times, path
    return pack(x, *native_stages.backward((bars[0], bars[1], bars[2], bars[3], bars[4]), *request, wanted))


@torch.library.register_fake("jkoflow::stages_backward", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    x, context, networks, *_, (*_, wanted) = unpack(arguments)
    context_grad = None if context is None else dense_like(context)
    return pack(x, dense_like(x), context_grad, networks.new_gradient() if wanted else None)


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 3 + SLOTS
    ctx.set_materialize_grads(False)
    ctx.settings, ctx.wanted = inputs[settings], inputs[-1]
    ctx.save_for_backward(*inputs[:settings], *inputs[settings + 1 : -1])


def _second_gradients(ctx: Any, *bars: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiates the gradients, by the reference that takes the same steps."""
    saved, settings = ctx.saved_tensors, 3 + SLOTS
    arguments = *saved[:settings], ctx.settings, *saved[settings:], ctx.wanted
    return differentiated_again(derivatives.stages_backward, arguments, ctx.needs_input_grad, bars)


register_autograd("integrate_stages", Gradients(_integrate_context, _integrate_gradients))
register_autograd("recorded_stages", Gradients(_recorded_context, _recorded_gradients))
register_autograd("stages_backward", Gradients(_backward_context, _second_gradients))
