"""Whether calling a module still means what its class and its parameters say, which is all that a kernel is told."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize

_HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}
# as they were defined: a class may be patched later
_CALL = nn.Module.__call__
_LOOK_UP = nn.Module.__getattr__
_LINEAR = nn.Linear.forward


def global_hook() -> str | None:
    """Says that a hook watches every module of the process; None if none does."""
    return "a global module hook is registered" if _has_any_global_hook() else None


def altered(module: nn.Module, where: str) -> str | None:
    """Says what runs when a module is called besides the forward of its class; None if nothing does.

    Arguments:
        module: The module.
        where: What the answer calls it.
    """
    if type(module).__call__ is not _CALL:
        return f"{where} is a {type(module).__name__}, which has a __call__ of its own"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        kinds = [kind for name, kind in _HOOKS.items() if getattr(module, name)]
        return f"{where} has a {' and a '.join(kinds)}"
    return f"{where} has a forward of its own" if "forward" in module.__dict__ else None


def altered_linear(layer: nn.Linear, where: str) -> str | None:
    """Says what makes calling a linear layer something else than x W^T + b; None if nothing does."""
    kind = type(layer)
    if kind.forward is not _LINEAR:
        return f"{where} is a {kind.__name__}, which has a forward of its own"
    if reason := altered(layer, where):
        return reason
    if kind is not nn.Linear and (
        kind.__getattr__ is not _LOOK_UP or kind.__getattribute__ is not object.__getattribute__
    ):
        return f"{where} is a {kind.__name__}, which looks its attributes up by itself"
    for name in ("weight", "bias"):
        registered = name in layer._parameters and name not in layer.__dict__
        if registered and (kind is nn.Linear or not hasattr(kind, name)):
            continue
        if not parametrize.is_parametrized(layer, name) and not _replicated(layer, name):
            if kind is not nn.Linear and hasattr(kind, name):
                return f"{where} is a {kind.__name__}, which computes its {name}"
            if isinstance(getattr(layer, name, None), Tensor):
                return f"{where}.{name} is no parameter, so something else may keep it up to date"
    return None


def _replicated(layer: nn.Linear, name: str) -> bool:
    """Whether the tensor is a copy of a parameter that DataParallel made for one device."""
    copies = getattr(layer, "_former_parameters", {})
    return name in copies and layer.__dict__.get(name) is copies[name]
