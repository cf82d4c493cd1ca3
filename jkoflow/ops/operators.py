"""The kernels as torch custom operators: opaque to torch.compile, differentiable, the second time by PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jkoflow.ops import derivatives, native
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
from jkoflow.ops.native import Settings
from jkoflow.ops.network import Network
from jkoflow.ops.objective import JKOTerms
from jkoflow.ops.transforms import RowAxes, active, differentiated_again
from jkoflow.velocity import MLPField


def integrate_mlp(
    field: MLPField, x: Tensor, context: Tensor | None, noise: Tensor | None, settings: Settings, keep_path: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the fused kernel; returns x at t1, logdet, and the path, which is empty unless ``keep_path``."""
    tensors = (x, context, *slots_of(field))
    keep_path = keep_path or active() or any_needs_gradient(tensors)
    x_end, logdet, path = call("integrate", *tensors, noise, encode(settings), keep_path)
    if settings.divergence == "none":
        logdet = logdet.detach()  # zero: no gradient flows through it
    return x_end, logdet, path


def jko_loss_mlp(
    field: MLPField, x: Tensor, context: Tensor | None, noise: Tensor | None, settings: Settings, jko_step: float
) -> JKOTerms:
    """Returns the terms of the fused loss, which computes the gradient at once and is for calls that need one."""
    slots = slots_of(field)
    total, terms, *_ = call(
        "jko_loss",
        x,
        context,
        *slots,
        noise,
        encode(settings),
        float(jko_step),
        x.requires_grad,
        any_needs_gradient(slots),
    )
    return JKOTerms(total, *terms.unbind())


def needs_gradient(field: MLPField, x: Tensor, context: Tensor | None) -> bool:
    """Tells whether autograd will want the gradient of x, the context or a parameter."""
    return any_needs_gradient((x, context, *slots_of(field)))


# ---- Integration


LIBRARY.define(f"integrate(Tensor x, {ARGUMENTS}, bool keep_path) -> (Tensor x_end, Tensor logdet, Tensor path)")


@torch.library.impl(LIBRARY, "integrate", "CPU")
@torch.library.impl(LIBRARY, "integrate", "CUDA")
def _integrate_kernel(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, context, network, noise, settings, (keep_path,) = unpack(arguments)
    return native.forward(x, context, network, noise, settings, keep_path)


@torch.library.register_fake("jkoflow::integrate", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, _, _, _, settings, (keep_path,) = unpack(arguments)
    return native.new_outputs(x, settings.grid, keep_path)


LIBRARY.define(
    f"integrate_backward(Tensor path, {ARGUMENTS}, Tensor? x_end_bar, Tensor? logdet_bar, Tensor? path_bar, "
    f"bool parameters_wanted) -> ({GRADIENTS})"
)


@torch.library.impl(LIBRARY, "integrate_backward", "CPU")
@torch.library.impl(LIBRARY, "integrate_backward", "CUDA")
def _integrate_backward_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    path, context, network, noise, settings, (*bars, wanted) = unpack(arguments)
    return pack(path, *native.backward(tuple(bars), path, context, network, noise, settings, wanted))


@torch.library.register_fake("jkoflow::integrate_backward", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    path, context, network, _, _, (*_, parameters_wanted) = unpack(arguments)
    return pack(path, *_fake_gradients(path.select(0, 0), context, network, True, parameters_wanted))


def _fake_gradients(
    x: Tensor, context: Tensor | None, network: Network, x_wanted: bool, parameters_wanted: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (
        native.dense_like(x) if x_wanted else None,
        None if context is None else native.dense_like(context),
        network.new_gradient() if parameters_wanted else None,
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 3 + SLOTS  # behind x, context, the slots and noise
    ctx.set_materialize_grads(False)
    ctx.settings = inputs[settings]
    ctx.save_for_backward(output[2], *inputs[1:settings])


def _backward(ctx: Any, *bars: Tensor | None) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[: 2 + SLOTS]
    saved = ctx.saved_tensors  # path, context, the slots and noise
    gradients = call("integrate_backward", *saved, ctx.settings, *bars, any(wanted[2:]))
    return *share_out(wanted, gradients, places_of(saved[2 : 2 + SLOTS])), None, None, None


def _setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 3 + SLOTS  # behind path, context, the slots and noise
    ctx.set_materialize_grads(False)
    ctx.settings, ctx.wanted = inputs[settings], inputs[-1]
    ctx.save_for_backward(*inputs[:settings], *inputs[settings + 1 : -1])


def _double_backward(ctx: Any, *bars: Tensor | None) -> tuple[Tensor | None, ...]:
    saved, settings = ctx.saved_tensors, 3 + SLOTS
    arguments = *saved[:settings], ctx.settings, *saved[settings:], ctx.wanted
    return differentiated_again(derivatives.integrate_backward, arguments, ctx.needs_input_grad, bars)


_ROWS = {0: 0, 1: 0, 2 + SLOTS: 0}  # x, context and noise
_BAR = 4 + SLOTS  # the first argument behind the settings
register_autograd(
    "integrate",
    Gradients(_setup_context, _backward, derivatives.integrate, RowAxes(_ROWS, ((0, 2), (0, 1), (1, 3)))),
)
register_autograd(
    "integrate_backward",
    Gradients(
        _setup_backward_context,
        _double_backward,
        derivatives.integrate_backward,
        RowAxes(
            _ROWS | {0: 1, _BAR: 0, _BAR + 1: 0, _BAR + 2: 1},
            ((0, 2), (0, 2), None),
            lambda arguments: arguments[-1],
        ),
    ),
)


# ---- The loss


LIBRARY.define(
    f"jko_loss(Tensor x, {ARGUMENTS}, float jko_step, bool x_wanted, bool parameters_wanted) "
    f"-> (Tensor total, Tensor terms, {GRADIENTS})"
)


@torch.library.impl(LIBRARY, "jko_loss", "CPU")
@torch.library.impl(LIBRARY, "jko_loss", "CUDA")
def _jko_loss_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    x, context, network, noise, settings, (jko_step, x_wanted, parameters_wanted) = unpack(arguments)
    terms, x_grad, context_grad, gradient = native.jko_loss(
        x, context, network, noise, settings, jko_step, x_wanted, parameters_wanted
    )
    return terms.sum(dtype=x.dtype), terms.to(x.dtype, copy=True), *pack(x, x_grad, context_grad, gradient)


@torch.library.register_fake("jkoflow::jko_loss", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    x, context, network, _, _, (_, *wanted) = unpack(arguments)
    return x.new_empty(()), x.new_empty((3,)), *pack(x, *_fake_gradients(x, context, network, *wanted))


def _loss_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 3 + SLOTS  # behind x, context, the slots and noise
    ctx.others = inputs[settings:]
    ctx.places = places_of(inputs[2 : 2 + SLOTS])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:], *inputs[:settings])


def _loss_backward(ctx: Any, total_bar: Tensor | None, *bars: Tensor | None) -> tuple[Any, ...]:
    nothing = (None,) * (1 + len(ctx.others))  # for noise and what follows
    if total_bar is None:
        return (None,) * (2 + SLOTS) + nothing
    gradients, request = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    if torch.is_grad_enabled():  # create_graph=True
        return differentiated_again(derivatives.jko_loss, (*request, *ctx.others), ctx.needs_input_grad, (total_bar,))
    wanted = ctx.needs_input_grad[: 2 + SLOTS]
    scaled = tuple(gradient * total_bar if gradient.numel() else gradient for gradient in gradients)
    return *share_out(wanted, scaled, ctx.places), *nothing


register_autograd("jko_loss", Gradients(_loss_setup_context, _loss_backward))
