"""The torch library of our operators, and what all of them share: their arguments, gradients and registration.

Arguments are few and flat, because autograd's machinery around Python operators takes longer than a small kernel does:
layers arrive in a fixed number of optional slots rather than in lists, all settings in one string.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from jkoflow.ops import native
from jkoflow.ops.grid import Adaptive, Fixed
from jkoflow.ops.modulation import packed
from jkoflow.ops.native import Settings
from jkoflow.ops.network import Network
from jkoflow.ops.transforms import RowAxes, active, transformable
from jkoflow.velocity import MLPField

LIBRARY = torch.library.Library("jkoflow", "DEF")
SLOTS = 2 * (native.MAX_HIDDEN_LAYERS + 1) + 2  # weights and biases of the layers, the linear term, the modulation
_UNUSED = (None,) * (SLOTS - 2)
_NETWORK = "Tensor? context, Tensor w1, Tensor b1, Tensor w2, Tensor b2, " + "".join(
    f"Tensor? w{i}, Tensor? b{i}, " for i in range(3, native.MAX_HIDDEN_LAYERS + 2)
)
ARGUMENTS = f"{_NETWORK}Tensor? linear, Tensor? modulation, Tensor? noise, str settings"
GRADIENTS = "Tensor x_grad, Tensor context_grad, Tensor slots_grad"  # as of native.backward; empty for None


def recording() -> bool:
    """Tells whether autograd records in either mode; without gradients it has nothing to do."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def any_needs_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Tells whether autograd will want the gradient of a tensor."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def encode(settings: Settings) -> str:
    """Returns settings as the text that operators take."""
    # Not a method, and word by word: torch.compile of the oldest torch that we support traces this.
    divergence, time, activation, t0, t1, grid, method, precision, layers = settings
    kind = f"{divergence} {'time' if time else 'steady'} {activation}"
    if isinstance(grid, Adaptive):
        return f"{kind} {t0!r} {t1!r} {grid.rtol!r}/{grid.atol!r}/{grid.max_steps} {method} {precision} {layers}"
    return f"{kind} {t0!r} {t1!r} {grid.num_steps} {method} {precision} {layers}"


@functools.lru_cache(maxsize=256)  # bounded: intervals may differ from call to call
def decode(text: str) -> Settings:
    """Returns the settings of a text from `encode`."""
    divergence, time, activation, t0, t1, steps, method, precision, layers = text.split()
    interval = float(t0), float(t1)
    if "/" in steps:
        rtol, atol, max_steps = steps.split("/")
        grid = Adaptive(float(rtol), float(atol), int(max_steps))
    else:
        grid = Fixed(int(steps))
    return Settings(divergence, time == "time", activation, *interval, grid, method, precision, layers)


def slots_of(field: MLPField) -> list[Tensor | None]:
    """Returns a field's tensors in the operators' slots: weights and biases of layers, linear term, modulation."""
    layers: list[Tensor | None] = []
    for weight, bias in zip(field.weights, field.biases, strict=True):
        layers += weight, bias
    return [*layers, *_UNUSED[len(layers) :], field.linear, packed(field)]


def unpack(arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor | None, Network, Tensor | None, Settings, list[Any]]:
    """Returns x, context, network, noise and settings from an operator's arguments, and the arguments after them."""
    x, context, *rest = arguments
    slots, (noise, settings, *scalars) = rest[:SLOTS], rest[SLOTS:]
    layers = [slot for slot in slots[:-2] if slot is not None]
    return x, context, Network(layers[0::2], layers[1::2], *slots[-2:]), noise, decode(settings), scalars


def pack(like: Tensor, *gradients: Tensor | None) -> tuple[Tensor, ...]:
    """Returns gradients as the operators return them: an empty tensor stands for None."""
    return tuple(like.new_empty((0,)) if gradient is None else gradient for gradient in gradients)


Place = tuple[torch.Size, tuple[int, ...], int]  # shape, strides and start of one gradient in the slots' tensor


def places_of(slots: Iterable[Tensor | None]) -> list[Place | None]:
    """Returns the place of every slot's gradient in the one tensor of gradients."""
    places: list[Place | None] = []
    start = 0
    for slot in slots:
        if slot is None:
            places.append(None)
            continue
        shape = slot.shape
        rows = (1,) if len(shape) == 1 else (shape[-1], 1)
        places.append((shape, rows if len(shape) < 3 else (shape[1] * shape[2], *rows), start))
        start += slot.numel()
    return places


def part_of(slots: Tensor, place: Place) -> Tensor:
    """Returns one gradient from the slots' tensor."""
    if active():  # where as_strided would have to know how tensors lie
        return slots.narrow(0, place[2], place[0].numel()).view(place[0])
    return slots.as_strided(*place)


def share_out(wanted: tuple[bool, ...], gradients: Iterable[Tensor], places: list[Place | None]) -> list[Tensor | None]:
    """Returns the wanted gradients of x, context and the slots from an operator's results, None for the others."""
    x, context, slots = gradients
    return [
        x if wanted[0] else None,
        context if wanted[1] else None,
        *(
            part_of(slots, place) if want and place is not None else None
            for want, place in zip(wanted[2:], places, strict=True)
        ),
    ]


class Gradients(NamedTuple):
    """How an operator is differentiated."""

    setup_context: Callable[..., None]
    backward: Callable[..., Any]
    reference: Callable[..., tuple[Tensor, ...]] | None = None
    """The operator in operations of PyTorch; None if it cannot be batched."""
    axes: RowAxes | None = None
    """The axes of rows; None if there are no transforms of it."""


_TRANSFORMABLE: dict[str, type[torch.autograd.Function]] = {}


def register_autograd(name: str, gradients: Gradients) -> None:
    """Registers gradients as torch.library.register_autograd does, but without a search for defaults, which we lack."""
    operator, (setup_context, backward, reference, axes) = getattr(torch.ops.jkoflow, name).default, gradients

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
    if axes is not None:
        _TRANSFORMABLE[name] = transformable(name, compute, setup_context, backward, reference, axes)

    @torch.library.impl(LIBRARY, name, "Autograd")
    def _(*arguments: Any) -> Any:
        return function.apply(*arguments) if recording() else compute(*arguments)  # apply() takes a while


def call(name: str, *arguments: Any) -> Any:
    """Calls an operator in whatever way is at work: under a transform, while autograd records, or bare."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.jkoflow, name).default(*arguments)
    if active():
        return _TRANSFORMABLE[name].apply(*arguments)
    if recording():
        return getattr(torch.ops.jkoflow, name).default(*arguments)
    # straight to the kernel: the way through Python's side of autograd takes longer than all checks together
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(torch.ops.jkoflow, name).default(*arguments)
