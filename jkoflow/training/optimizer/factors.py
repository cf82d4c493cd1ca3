"""The factors of an update: numbers that are new in every update, and the operations that multiply by them.

The CPU takes them as numbers. On a GPU they lie in memory, since a CUDA graph is captured once and replayed in every
update: a number would stay what it was at the capture.
"""

from __future__ import annotations

from torch import Tensor

Factor = float | Tensor
"""A number, or a tensor without axes on the device of the parameters."""


def add_scaled(parameters: Tensor, step: Tensor, factor: Factor) -> None:
    """Adds a step times a factor to parameters in place."""
    if isinstance(factor, Tensor):
        parameters.addcmul_(step, factor)
    else:
        parameters.add_(step, alpha=factor)


def add_ratio(parameters: Tensor, numerator: Tensor, denominator: Tensor, factor: Factor) -> None:
    """Adds a ratio times a factor to parameters in place."""
    if isinstance(factor, Tensor):
        parameters.addcmul_(numerator / denominator, factor)
    else:
        parameters.addcdiv_(numerator, denominator, value=factor)
