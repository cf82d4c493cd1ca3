"""Operators under the transforms of torch.func and in forward mode: rows are folded, the rest is PyTorch's.

What a kernel cannot do is derived from its reference, the same function of the same arguments in operations of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from jkoflow.ops.extension import UnsupportedError
from jkoflow.ops.fallback import warn_fallback

Arguments = tuple[Any, ...]
"""The arguments of an operator, by position."""


class RowAxes(NamedTuple):
    """The axes along which an operator's tensors have rows that do not depend on each other."""

    arguments: dict[int, int]
    """Axis of each argument that has rows, by its position."""
    results: tuple[tuple[int, int] | None, ...]
    """Axis of each result and its number of axes, fewer of which mean that it is absent; None for a sum over rows."""
    sums: Callable[[Arguments], bool] = lambda arguments: False
    """Whether the operator, called with some arguments, returns a sum over rows."""


def batched(tensor: Tensor) -> bool:
    """Tells whether a tensor is one for each sample of a vmap, at any level of transforms."""
    while is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            return True
        tensor = get_unwrapped(tensor)
    return False


def active() -> bool:
    """Tells whether a transform of torch.func or forward mode is at work; torch.compile traces what is below them."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def transformable(
    name: str,
    compute: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    reference: Callable[..., tuple[Tensor, ...]] | None,
    axes: RowAxes,
) -> type[torch.autograd.Function]:
    """Returns an operator as a function that every transform of torch.func can be applied to.

    Arguments:
        name: Name of the operator.
        compute: The operator without autograd.
        setup_context: What it saves for its gradients.
        backward: Its gradients.
        reference: The operator in operations of PyTorch; None if they cannot be batched.
        axes: The axes of rows.
    """

    def setup(ctx: Any, inputs: Arguments, output: Any) -> None:
        setup_context(ctx, inputs, output)
        ctx.arguments = [None if isinstance(argument, Tensor) else argument for argument in inputs]
        ctx.tensors = [i for i, argument in enumerate(inputs) if isinstance(argument, Tensor)]
        ctx.save_for_forward(*(inputs[i] for i in ctx.tensors))

    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        arguments = list(ctx.arguments)
        for i, tensor in zip(ctx.tensors, ctx.saved_tensors, strict=True):
            arguments[i] = tensor
        assert reference is not None
        warn_fallback("the kernels have no forward mode")
        moving = [i for i in ctx.tensors if tangents[i] is not None]
        inner, point = restricted(reference, arguments, moving)
        # by two backward passes, which need no level of forward mode: it has one only
        results, pull_back, *_ = torch.func.vjp(inner, *point)
        push_forward = torch.func.vjp(pull_back, tuple(torch.zeros_like(result) for result in results))[1]
        return push_forward(tuple(tangents[i] for i in moving))[0]

    def vmap(info: Any, in_dims: Arguments, *arguments: Any) -> tuple[Any, Any]:
        several = [i for i, dim in enumerate(in_dims) if dim is not None]
        if set(several) <= axes.arguments.keys() and not axes.sums(arguments):
            return _fold(function, axes, info.batch_size, in_dims, arguments)
        if reference is None:
            raise UnsupportedError(
                f"torch.func.vmap cannot batch {name} over parameters", "pass num_steps for equal steps, or use a loop"
            )
        warn_fallback(
            "the kernels read one set of weights and sum its gradients over the rows, not one for each sample"
        )
        inner, point = restricted(reference, arguments, several)
        found = torch.func.vmap(inner, tuple(in_dims[i] for i in several))(*point)
        return found, (0,) * len(found)

    members = {"forward": compute, "setup_context": setup, "backward": backward, "jvp": jvp, "vmap": vmap}
    function = type(name, (torch.autograd.Function,), {key: staticmethod(value) for key, value in members.items()})
    return function


def restricted(
    function: Callable[..., Any], arguments: Sequence[Any], places: Sequence[int]
) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """Returns a function of some of the arguments alone, by their places, and these arguments."""

    def of_some(*some: Any) -> Any:
        every = list(arguments)
        for place, argument in zip(places, some, strict=True):
            every[place] = argument
        return function(*every)

    return of_some, tuple(arguments[place] for place in places)


def differentiated_again(
    function: Callable[..., tuple[Tensor, ...]],
    arguments: Sequence[Any],
    wanted: Sequence[bool],
    bars: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of a kernel's gradients as `pulled_back` does, and tells so."""
    warn_fallback("the kernels differentiate once; derivatives of their gradients are PyTorch's")
    return pulled_back(function, arguments, wanted, bars)


def pulled_back(
    function: Callable[..., tuple[Tensor, ...]],
    arguments: Sequence[Any],
    wanted: Sequence[bool],
    bars: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Returns the wanted gradients of a function's arguments, differentiable themselves, from those of its results."""
    places = [i for i, argument in enumerate(arguments) if isinstance(argument, Tensor) and wanted[i]]
    given = [i for i, bar in enumerate(bars) if bar is not None]
    gradients: list[Tensor | None] = [None] * len(arguments)
    if not places or not given:
        return tuple(gradients)
    inner, point = restricted(function, arguments, places)

    def results(*some: Any) -> tuple[Tensor, ...]:
        found = inner(*some)
        return tuple(found[i] for i in given)

    found = torch.func.vjp(results, *point)[1](tuple(bars[i] for i in given))
    for place, gradient in zip(places, found, strict=True):
        gradients[place] = gradient
    return tuple(gradients)


def _fold(
    function: type[torch.autograd.Function], axes: RowAxes, size: int, in_dims: Arguments, arguments: Arguments
) -> tuple[Any, Any]:
    """Calls a function with the samples of a vmap as so many more rows."""
    every = list(arguments)
    for place, axis in axes.arguments.items():
        if (tensor := every[place]) is None:
            continue
        dim = in_dims[place]
        spread = tensor.unsqueeze(axis) if dim is None else tensor.movedim(dim, axis)
        shape = list(spread.shape)
        shape[axis] = size
        every[place] = spread.expand(shape).flatten(axis, axis + 1)
    results, dims = [], []
    for place, result in zip(axes.results, function.apply(*every), strict=True):
        if place is None or result.dim() < place[1]:
            results.append(result)
            dims.append(None)
            continue
        axis = place[0]
        results.append(result.unflatten(axis, (size, result.shape[axis] // size)))
        dims.append(axis)
    return tuple(results), tuple(dims)
