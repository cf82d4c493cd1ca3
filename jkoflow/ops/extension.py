"""The compiled extension, or why it cannot be used, as constants that are set at import and torch.compile can trace."""

from __future__ import annotations

from typing import Any

import torch  # noqa: F401 (before the extension: both then share the OpenMP runtime that ships with torch)

from jkoflow.errors import UserError


class KernelError(UserError, RuntimeError):
    """Raised if kernels that were asked for are not available."""


class UnsupportedError(KernelError):
    """Raised if a backend that was asked for by name cannot run a request."""

    def __init__(self, asked: str, reason: str) -> None:
        super().__init__(asked, reason)
        self.reason = reason
        """Reason, without the name of the backend."""

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.reason}"


C: Any = None
"""The compiled module; None if it cannot be loaded."""
MISSING: str | None = None
"""Reason for which the CPU kernels cannot run; None if they can."""
BAD_ISA: str | None = None
"""Error in the value of the environment variable JKOFLOW_ISA; None if there is none."""

try:
    from jkoflow import _C  # pyright: ignore[reportAttributeAccessIssue]

    C = _C
    C.cpu_isa()
except ImportError as error:
    MISSING = f"the compiled extension cannot be loaded ({error}); `pip install .` in a checkout builds it"
except RuntimeError as error:
    MISSING = BAD_ISA = str(error)
