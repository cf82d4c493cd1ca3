"""The place in a user's code that a warning points at."""

from __future__ import annotations

import sys
import warnings

_OURS = ("jkoflow", "torch")


def warn_caller(text: str, category: type[Warning]) -> None:
    """Warns, at the first code outside of jkoflow and torch."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
