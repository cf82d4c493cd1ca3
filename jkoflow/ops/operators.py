"""The kernels as torch custom operators: opaque to torch.compile, differentiable, the second time by PyTorch.

Their arguments are few and flat, because autograd's machinery around Python operators takes longer than a small kernel
does: layers arrive in a fixed number of optional slots rather than in lists, all settings in one string.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from jkoflow.ops import native
from jkoflow.ops.derivatives import Tensors, network_gradients
from jkoflow.ops.grid import Fixed
from jkoflow.ops.modulation import packed
from jkoflow.ops.native import Settings
from jkoflow.ops.network import Network
from jkoflow.ops.objective import JKOTerms
from jkoflow.velocity import MLPField

_LIBRARY = torch.library.Library("jkoflow", "DEF")
_SLOTS = 2 * (native.MAX_HIDDEN_LAYERS + 1) + 2  # weights and biases of the layers, the linear term, the modulation
_UNUSED = (None,) * (_SLOTS - 2)
_NETWORK = "Tensor? context, Tensor w1, Tensor b1, Tensor w2, Tensor b2, " + "".join(
    f"Tensor? w{i}, Tensor? b{i}, " for i in range(3, native.MAX_HIDDEN_LAYERS + 2)
)
_ARGUMENTS = f"{_NETWORK}Tensor? linear, Tensor? modulation, Tensor? noise, str settings"
_GRADIENTS = "Tensor x_grad, Tensor context_grad, Tensor slots_grad"  # as of native.backward; empty for None


def integrate_mlp(
    field: MLPField, x: Tensor, context: Tensor | None, noise: Tensor | None, settings: Settings, keep_path: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the fused kernel; returns x at t1, logdet, and the path, which is empty unless ``keep_path``."""
    tensors = (x, context, *_slots_of(field))
    arguments = *tensors, noise, _encode(settings), keep_path or _any_needs_gradient(tensors)
    if torch.compiler.is_compiling() or _recording():
        x_end, logdet, path = torch.ops.jkoflow.integrate.default(*arguments)
    else:  # straight to the kernel: the way through Python's side of autograd takes longer than all checks together
        with torch._C._AutoDispatchBelowAutograd():
            x_end, logdet, path = torch.ops.jkoflow.integrate.default(*arguments)
    if settings.divergence == "none":
        logdet = logdet.detach()  # zero: no gradient flows through it
    return x_end, logdet, path


def jko_loss_mlp(
    field: MLPField, x: Tensor, context: Tensor | None, noise: Tensor | None, settings: Settings, jko_step: float
) -> JKOTerms:
    """Returns the terms of the fused loss, which computes the gradient at once and is for calls that need one."""
    slots = _slots_of(field)
    total, terms, *_ = torch.ops.jkoflow.jko_loss.default(
        x, context, *slots, noise, _encode(settings), float(jko_step), x.requires_grad, _any_needs_gradient(slots)
    )
    return JKOTerms(total, *terms.unbind())


def needs_gradient(field: MLPField, x: Tensor, context: Tensor | None) -> bool:
    """Tells whether autograd will want the gradient of x, the context or a parameter."""
    return _any_needs_gradient((x, context, *_slots_of(field)))


def _recording() -> bool:
    """Tells whether autograd records in either mode; without gradients it has nothing to do."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def _any_needs_gradient(tensors: Iterable[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _encode(settings: Settings) -> str:
    # Not a method, and word by word: torch.compile of the oldest torch that we support traces this.
    divergence, time, activation, t0, t1, grid, method, precision, layers = settings
    kind = f"{divergence} {'time' if time else 'steady'} {activation}"
    return f"{kind} {t0!r} {t1!r} {grid.num_steps} {method} {precision} {layers}"


@functools.lru_cache(maxsize=256)  # bounded: intervals may differ from call to call
def _decode(text: str) -> Settings:
    divergence, time, activation, t0, t1, num_steps, method, precision, layers = text.split()
    interval, grid = (float(t0), float(t1)), Fixed(int(num_steps))
    return Settings(divergence, time == "time", activation, *interval, grid, method, precision, layers)


def _slots_of(field: MLPField) -> list[Tensor | None]:
    layers: list[Tensor | None] = []
    for weight, bias in zip(field.weights, field.biases, strict=True):
        layers += weight, bias
    return [*layers, *_UNUSED[len(layers) :], field.linear, packed(field)]


def _unpack(arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor | None, Network, Tensor | None, Settings, list[Any]]:
    """Returns x, context, network, noise and settings from an operator's arguments, and the arguments after them."""
    x, context, *rest = arguments
    slots, (noise, settings, *scalars) = rest[:_SLOTS], rest[_SLOTS:]
    layers = [slot for slot in slots[:-2] if slot is not None]
    return x, context, Network(layers[0::2], layers[1::2], *slots[-2:]), noise, _decode(settings), scalars


def _pack(like: Tensor, *gradients: Tensor | None) -> tuple[Tensor, ...]:
    """Returns gradients as the operators return them: an empty tensor stands for None."""
    return tuple(like.new_empty((0,)) if gradient is None else gradient for gradient in gradients)


_Place = tuple[torch.Size, tuple[int, ...], int]  # shape, strides and start of one gradient in the slots' tensor


def _places(slots: Iterable[Tensor | None]) -> list[_Place | None]:
    """Returns the place of every slot's gradient in the one tensor of gradients."""
    places: list[_Place | None] = []
    start = 0
    for slot in slots:
        if slot is None:
            places.append(None)
            continue
        shape = slot.shape
        places.append((shape, (1,) if len(shape) == 1 else (shape[1], 1), start))
        start += slot.numel()
    return places


def _share_out(
    wanted: tuple[bool, ...], gradients: Iterable[Tensor], places: list[_Place | None]
) -> list[Tensor | None]:
    """Returns the wanted gradients of x, context and the slots from an operator's results, None for the others."""
    x, context, slots = gradients
    return [
        x if wanted[0] else None,
        context if wanted[1] else None,
        *(
            slots.as_strided(*place) if want and place is not None else None
            for want, place in zip(wanted[2:], places, strict=True)
        ),
    ]


def _register_autograd(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Registers gradients as torch.library.register_autograd does, but without a search for defaults, which we lack."""
    operator = getattr(torch.ops.jkoflow, name).default

    def compute(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = compute(*arguments)
        setup_context(ctx, arguments, output)
        return output

    function = type(
        name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    )

    @torch.library.impl(_LIBRARY, name, "Autograd")
    def _(*arguments: Any) -> Any:
        return function.apply(*arguments) if _recording() else compute(*arguments)  # apply() takes a while


# ---- Integration


_LIBRARY.define(f"integrate(Tensor x, {_ARGUMENTS}, bool keep_path) -> (Tensor x_end, Tensor logdet, Tensor path)")


@torch.library.impl(_LIBRARY, "integrate", "CPU")
@torch.library.impl(_LIBRARY, "integrate", "CUDA")
def _integrate_kernel(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, context, network, noise, settings, (keep_path,) = _unpack(arguments)
    return native.forward(x, context, network, noise, settings, keep_path)


@torch.library.register_fake("jkoflow::integrate", lib=_LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, _, _, _, settings, (keep_path,) = _unpack(arguments)
    return native.new_outputs(x, settings.grid, keep_path)


_LIBRARY.define(
    f"integrate_backward(Tensor path, {_ARGUMENTS}, Tensor? x_end_bar, Tensor? logdet_bar, Tensor? path_bar, "
    f"bool parameters_wanted) -> ({_GRADIENTS})"
)


@torch.library.impl(_LIBRARY, "integrate_backward", "CPU")
@torch.library.impl(_LIBRARY, "integrate_backward", "CUDA")
def _integrate_backward_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    path, context, network, noise, settings, (*bars, wanted) = _unpack(arguments)
    return _pack(path, *native.backward(tuple(bars), path, context, network, noise, settings, wanted))


@torch.library.register_fake("jkoflow::integrate_backward", lib=_LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    path, context, network, _, _, (*_, parameters_wanted) = _unpack(arguments)
    return _pack(path, *_fake_gradients(path.select(0, 0), context, network, True, parameters_wanted))


def _fake_gradients(
    x: Tensor, context: Tensor | None, network: Network, x_wanted: bool, parameters_wanted: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (
        native.dense_like(x) if x_wanted else None,
        None if context is None else native.dense_like(context),
        network.new_gradient() if parameters_wanted else None,
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 3 + _SLOTS  # behind x, context, the slots and noise
    ctx.set_materialize_grads(False)
    ctx.settings = inputs[settings]
    ctx.save_for_backward(output[2], *inputs[1:settings])


def _backward(ctx: Any, *bars: Tensor | None) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[: 2 + _SLOTS]
    saved = ctx.saved_tensors  # path, context, the slots and noise
    gradients = torch.ops.jkoflow.integrate_backward.default(*saved, ctx.settings, *bars, any(wanted[2:]))
    return *_share_out(wanted, gradients, _places(saved[2 : 2 + _SLOTS])), None, None, None


def _setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    settings = 3 + _SLOTS  # behind path, context, the slots and noise
    ctx.set_materialize_grads(False)
    ctx.settings = inputs[settings]
    ctx.save_for_backward(*inputs[:settings], *inputs[settings + 1 : -1])


def _double_backward(ctx: Any, x_bar: Tensor | None, context_bar: Tensor | None, slots_bar: Tensor | None) -> Any:
    """Differentiates the gradients, which are functions of the start of the path, the network and their own bars."""
    path, context, *rest = ctx.saved_tensors
    slots, noise, bars = rest[:_SLOTS], rest[_SLOTS], rest[_SLOTS + 1 :]
    names = ("end", "logdet", "path")
    inputs = {"x": path[0], "context": context, **{f"slot {i}": slot for i, slot in enumerate(slots)}}
    inputs |= dict(zip(names, bars, strict=True))
    given: Tensors = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    wanted: dict[str, Tensor | None] = {"x": x_bar, "context": None if context is None else context_bar}
    if slots_bar is not None:
        for i, place in enumerate(_places(slots)):
            wanted[f"slot {i}"] = None if place is None else slots_bar.as_strided(*place)
    cotangents: Tensors = {name: bar for name, bar in wanted.items() if bar is not None}

    def network_of(tensors: Tensors) -> Network:
        layers = [tensors[f"slot {i}"] for i in range(_SLOTS - 2) if f"slot {i}" in tensors]
        return Network(layers[0::2], layers[1::2], *(tensors.get(f"slot {i}") for i in range(_SLOTS - 2, _SLOTS)))

    def gradients(tensors: Tensors) -> Tensors:
        own = {name: tensor for name, tensor in tensors.items() if name not in names}
        found = network_gradients(own, [tensors.get(name) for name in names], network_of, noise, _decode(ctx.settings))
        return {name: found[name] for name in cotangents}

    pull_back = torch.func.vjp(gradients, given)[1]
    found = pull_back(cotangents)[0]
    start = torch.cat([found["x"].unsqueeze(0), torch.zeros_like(path[1:])])
    slot_gradients = (found.get(f"slot {i}") for i in range(_SLOTS))
    return start, found.get("context"), *slot_gradients, None, None, *(found.get(name) for name in names), None


_register_autograd("integrate", _setup_context, _backward)
_register_autograd("integrate_backward", _setup_backward_context, _double_backward)


# ---- The loss


_LIBRARY.define(
    f"jko_loss(Tensor x, {_ARGUMENTS}, float jko_step, bool x_wanted, bool parameters_wanted) "
    f"-> (Tensor total, Tensor terms, {_GRADIENTS})"
)


@torch.library.impl(_LIBRARY, "jko_loss", "CPU")
@torch.library.impl(_LIBRARY, "jko_loss", "CUDA")
def _jko_loss_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    x, context, network, noise, settings, (jko_step, x_wanted, parameters_wanted) = _unpack(arguments)
    terms, x_grad, context_grad, gradient = native.jko_loss(
        x, context, network, noise, settings, jko_step, x_wanted, parameters_wanted
    )
    return terms.sum(dtype=x.dtype), terms.to(x.dtype, copy=True), *_pack(x, x_grad, context_grad, gradient)


@torch.library.register_fake("jkoflow::jko_loss", lib=_LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    x, context, network, _, _, (_, *wanted) = _unpack(arguments)
    return x.new_empty(()), x.new_empty((3,)), *_pack(x, *_fake_gradients(x, context, network, *wanted))


def _loss_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.others = len(inputs) - 2 - _SLOTS
    ctx.places = _places(inputs[2 : 2 + _SLOTS])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:])


def _loss_backward(ctx: Any, total_bar: Tensor | None, *bars: Tensor | None) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # create_graph=True
        raise RuntimeError(
            "the fused loss cannot be differentiated twice; for second derivatives pass jkoflow.jko_loss "
            "backend='reference', or take jkoflow.ops.jko_terms of jkoflow.integrate"
        )
    if total_bar is None:
        return (None,) * (2 + _SLOTS + ctx.others)
    wanted = ctx.needs_input_grad[: 2 + _SLOTS]
    scaled = tuple(gradient * total_bar if gradient.numel() else gradient for gradient in ctx.saved_tensors)
    return *_share_out(wanted, scaled, ctx.places), *(None,) * ctx.others


_register_autograd("jko_loss", _loss_setup_context, _loss_backward)
