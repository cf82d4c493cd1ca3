"""The warning that PyTorch computes what no kernel does."""

from __future__ import annotations

import torch

from jkoflow.callers import warn_caller


class FallbackWarning(UserWarning):
    """Warns that the PyTorch reference is used because no fused kernel covers the request."""


_warned: set[str] = set()


def warn_fallback(reason: str, instead: str = "the PyTorch reference") -> None:
    """Tells, once for every reason, that something else computes in place of the kernels."""
    text = f"using {instead}: {reason}"
    if text not in _warned and not torch.compiler.is_compiling():
        _warned.add(text)
        warn_caller(text, FallbackWarning)
