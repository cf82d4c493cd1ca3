"""Gains in mean loss between two models of the same rows, and whether they are more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    rows: float = math.inf
    """Number of rows; of few, the error itself is uncertain."""

    @property
    def is_clear(self) -> bool:
        """Tells whether the second model is better by more than chance; False for a single row.

        The gain must exceed `CLEAR` standard errors, and more for few rows, as Student's distribution asks for.
        """
        if self.value == math.inf:  # the first model has no finite loss at all, the second has
            return True
        return self.value > errors_beyond_chance(self.rows) * self.stderr  # False for NaN


def errors_beyond_chance(rows: float) -> float:
    """Returns the standard errors that a mean over so many rows exceeds by chance as rarely as `CLEAR` over many.

    It is a quantile of Student's distribution, expanded in the inverse of the degrees of freedom.

    References:
        | Handbook of mathematical functions (Abramowitz and Stegun, 1964), 26.7.5

    Example:
        >>> [round(errors_beyond_chance(rows), 2) for rows in (4, 20, 100, 5000)]
        [3.28, 2.14, 2.03, 2.0]
    """
    freedom, z = max(rows - 1, 1), CLEAR
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


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
        Gain(value=1.0, stderr=0.0, rows=3)
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
    return Gain(float(differences.mean()), stderr, len(differences))


def clearly_best(losses: Sequence[Tensor]) -> int:
    """Returns the number of the model with the least mean loss, of the first and those clearly better than the first.

    Arguments:
        losses: Losses of the same rows under every model, the simplest first, each with shape (N,).
    """
    clear = [number for number, other in enumerate(losses) if number and paired_gain(losses[0], other).is_clear]
    return min(clear, key=lambda number: float(losses[number].double().mean()), default=0)
