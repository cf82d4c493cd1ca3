"""The compiled extension, or why it cannot be used; settled at import, as constants that torch.compile can trace."""

from __future__ import annotations

from typing import Any

import torch  # noqa: F401 (before the extension: both then share the OpenMP runtime that ships with torch)

C: Any = None
"""The module; None if it cannot be loaded."""
MISSING: str | None = None
"""Why its CPU kernels cannot run; None if they can."""
BAD_ISA: str | None = None
"""What is wrong with a wish in the environment variable JKOFLOW_ISA."""

try:
    from jkoflow import _C  # pyright: ignore[reportAttributeAccessIssue]

    C = _C
    C.cpu_isa()
except ImportError as error:
    MISSING = f"the compiled extension cannot be loaded ({error}); `pip install .` in a checkout builds it"
except RuntimeError as error:
    MISSING = BAD_ISA = str(error)
