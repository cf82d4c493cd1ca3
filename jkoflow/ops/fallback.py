"""The warning that PyTorch computes what no kernel does."""

from __future__ import annotations

import torch

from jkoflow.callers import warn_caller


class FallbackWarning(UserWarning):
    """Warns that PyTorch, or another library, computes because no fused kernel covers the request."""


_warned: set[str] = set()


def warn_fallback(reason: str, instead: str = "the PyTorch reference") -> None:
    """Tells, once a process, that something else computes in place of the kernels, and why."""
    text = f"using {instead}: {reason}"
    if text not in _warned and not torch.compiler.is_compiling():
        _warned.add(text)
        warn_caller(text, FallbackWarning)
