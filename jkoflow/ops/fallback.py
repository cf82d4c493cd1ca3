"""The warning that PyTorch computes what no kernel does."""

from __future__ import annotations

import torch

from jkoflow.callers import warn_caller


class FallbackWarning(UserWarning):
    """Warns that the PyTorch reference is used because no fused kernel covers the request."""


_warned: set[str] = set()


def warn_fallback(reason: str) -> None:
    """Tells why the PyTorch reference is used, once a process."""
    if reason not in _warned and not torch.compiler.is_compiling():
        _warned.add(reason)
        warn_caller(f"using the PyTorch reference: {reason}", FallbackWarning)
