"""Gains in mean loss between two models of the same rows, and whether they are more than chance."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

CLEAR = 2.0
"""Standard errors that a gain must exceed for the less simple of two models to be taken."""


class Gain(NamedTuple):
    """The difference of the mean losses of two models on the same rows."""

    value: float
    """Mean loss of the first model less that of the second, in nats; positive if the second is better."""
    stderr: float
    """Standard error of the mean of the rows' differences; NaN for a single row."""

    @property
    def is_clear(self) -> bool:
        """Tells whether the second model is better by more than `CLEAR` standard errors; False for a single row."""
        if self.value == math.inf:  # the first model has no finite loss at all, the second has
            return True
        return self.value > CLEAR * self.stderr  # False for NaN


def paired_gain(before: Tensor, after: Tensor) -> Gain:
    """Returns what rows gain from one model to another, with the standard error of the differences row by row.

    Two losses of a row have most of their spread in common, so that the differences tell far smaller gains from chance
    than the errors of the two means would.

    Arguments:
        before: Losses of the rows under the simpler model, in nats, with shape (N,).
        after: Losses of the same rows under the other model, with shape (N,).

    Returns:
        The gain, -inf if a row has no finite loss after, inf if one has none before alone.

    Raises:
        ValueError: If the shapes differ or there is no row.

    Example:
        >>> import torch
        >>> paired_gain(torch.tensor([5.0, 1.0, 3.0]), torch.tensor([4.0, 0.0, 2.0]))
        Gain(value=1.0, stderr=0.0)
    """
    if before.shape != after.shape or before.dim() != 1 or len(before) == 0:
        raise ValueError(
            f"before and after must have the same shape (N,) with N at least 1, got {tuple(before.shape)} and "
            f"{tuple(after.shape)}"
        )
    if not bool(after.isfinite().all()):
        return Gain(-math.inf, math.nan)
    if not bool(before.isfinite().all()):
        return Gain(math.inf, math.nan)
    differences = before.double() - after.double()
    stderr = float(differences.std()) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return Gain(float(differences.mean()), stderr)
