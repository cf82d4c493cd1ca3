"""Checks whether a call of a module still does what its class and its parameters say; kernels read nothing else."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.nn.utils import parametrize

from jkoflow.activation import Activation

_HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}
# as they were defined: a class may be patched later
_LOOK_UP = nn.Module.__getattr__
_LINEAR = nn.Linear.forward
_OPERATE = Tensor.__torch_function__.__func__  # type: ignore[attr-defined]
_DISABLED = nn.Parameter.__torch_function__


def global_hook() -> str | None:
    """Says that somebody's hook watches the forward of every module; None if none does.

    Those of torch's own tools, which count and measure, change nothing.
    """
    if not (_global_forward_hooks or _global_forward_pre_hooks):
        return None
    for hook in (*_global_forward_hooks.values(), *_global_forward_pre_hooks.values()):
        if not str(getattr(hook, "__module__", "")).startswith("torch."):
            return "a global module hook is registered"
    return None


def altered(module: nn.Module) -> str | None:
    """Says, in words that follow the module's name, what a call runs besides the class's forward; None if nothing."""
    if type(module).__call__ is not nn.Module.__call__:
        return f"is a {type(module).__name__}, which has a __call__ of its own"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return f"has a {' and a '.join(kind for name, kind in _HOOKS.items() if getattr(module, name))}"
    return "has a forward of its own" if "forward" in module.__dict__ else None


def altered_linear(layer: nn.Linear) -> str | None:
    """Says why a linear layer is not x W^T + b, in words that follow the layer's name; None if it is."""
    kind = type(layer)
    if kind.forward is not _LINEAR:
        return f"is a {kind.__name__}, which has a forward of its own"
    if reason := altered(layer):
        return reason
    parameters, others = layer._parameters, layer.__dict__
    for name in ("weight", "bias"):
        plain = kind is nn.Linear and name in parameters and name not in others
        if not plain and (reason := _computed(layer, name)):
            return reason
        value = parameters.get(name)
        if type(value) is not nn.Parameter and isinstance(value, Tensor) and _computes(type(value)):
            return f"has a {name} that is a {type(value).__name__}, which computes in its own way"
    return None


def altered_activation(activation: object) -> str | None:
    """Says that an activation computes in its own way; None if it does not."""
    if type(activation) is not Activation and isinstance(activation, Activation):
        return f"velocity.activation is a {type(activation).__name__}, whose value and slope may be its own"
    if isinstance(activation, Activation) and ("value" in activation.__dict__ or "slope" in activation.__dict__):
        return "velocity.activation has a value or a slope of its own"
    return None


def altered_velocity(velocity: nn.Module, defined: object) -> str | None:
    """Says why only a call of a velocity can evaluate it, its layers aside; None if its class says all.

    Arguments:
        velocity: A velocity with an ``activation``.
        defined: The forward as its class defines it.
    """
    if type(velocity).forward is not defined:
        return f"{type(velocity).__name__} has a forward of its own"
    if reason := global_hook():
        return reason
    if reason := altered(velocity):
        return f"the velocity {reason}"
    return altered_activation(getattr(velocity, "activation", None))


def altered_layers(velocity: nn.Module) -> str | None:
    """Says which module of a velocity, wherever it is, is not the plain linear layer or container it looks like."""
    for name, module in velocity.named_modules():
        if module is velocity or ".parametrizations" in name:  # which is evaluated when its tensor is read
            continue
        reason = altered_linear(module) if isinstance(module, nn.Linear) else altered(module)
        if reason is not None:
            return f"velocity.{_path(name)} {reason}"
    return None


def _path(name: str) -> str:
    """Returns a module's name as Python would index it: ``layers[0]`` for ``layers.0``."""
    first, *rest = name.split(".")
    return first + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in rest)


def _computes(kind: type[Tensor]) -> bool:
    """Tells whether a class of tensors may change what an operation on them does."""
    function = kind.__torch_function__
    return getattr(function, "__func__", None) is not _OPERATE and function is not _DISABLED


def _computed(layer: nn.Linear, name: str) -> str | None:
    """Says why a weight or bias read now may differ from the one that a call of the layer uses; None if it cannot."""
    kind = type(layer)
    if kind.__getattr__ is not _LOOK_UP or kind.__getattribute__ is not object.__getattribute__:
        return f"is a {kind.__name__}, which looks its attributes up by itself"
    if parametrize.is_parametrized(layer, name):
        return None
    if hasattr(kind, name):
        return f"is a {kind.__name__}, which computes its {name}"
    value = layer.__dict__.get(name, layer._buffers.get(name))
    if not isinstance(value, Tensor) or value is getattr(layer, "_former_parameters", {}).get(name):
        return None  # a parameter, nothing that a layer could be called with, or the copy of one by DataParallel
    return f"has a {name} that is no parameter, so that something else may keep it up to date"
