"""Rows without a finite density: they are named, and means are taken over the other rows.

One such row would make every mean over its part of the data NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.callers import warn_caller
from jkoflow.data import DataWarning
from jkoflow.flow import JKOFlow

DIVERGED_SHARE = 0.01
"""Share of the rows beyond which the blocks that overflow on them are at fault, not the rows."""


class RowNames(NamedTuple):
    """The name and numbers of rows in messages."""

    name: str = "rows of x"
    """What the rows are, in the plural."""
    numbers: Sequence[int] | None = None
    """Numbers of the rows, counting from 0, if some are missing; 0, 1, ... if None."""

    def number(self, index: int) -> int:
        """Returns the number of the row with a given index."""
        return index if self.numbers is None else int(self.numbers[index])

    def some(self, chosen: Tensor) -> str:
        """Returns the text that counts the chosen ones (N,) of the rows and names the first of them."""
        indices = chosen.nonzero()[:, 0]
        number = self.number(int(indices[0]))
        first = f"row {number}" if len(indices) == 1 else f"the first is row {number}"
        return f"{len(indices)} of {len(chosen)} {self.name} ({first}, counting from 0)"


@torch.no_grad()
def warn_of_left_out(flow: JKOFlow, x: Tensor, finite: Tensor, names: RowNames) -> None:
    """Warns of rows that a mean leaves out: which they are, why their density is not finite, and what to do.

    Arguments:
        flow: The flow.
        x: Rows in their own units, with shape (N, d).
        finite: Whether the rows' densities are finite, with shape (N,).
        names: What the rows are called.
    """
    if bool(finite.all()):
        return
    entering = finite.clone()
    entering[~finite] = has_finite_length(flow.enter(x[~finite])[0])
    means = "the means are over the other rows; " if bool(finite.any()) else ""
    if not bool(entering.all()):
        _warn(
            f"no finite density for {names.some(~entering)}: too far outside the training data; {means}drop "
            "such rows, or see whether they are in the units of the training data"
        )
    overflowing = entering & ~finite
    count = int(overflowing.sum())
    if count > DIVERGED_SHARE * len(x):
        _warn(
            f"no finite density for {names.some(overflowing)}: the blocks overflow, so training has diverged; {means}"
            "train with guard = true, more num_steps or a smaller learning_rate"
        )
    elif count:
        _warn(
            f"no finite density for {names.some(overflowing)}: the blocks overflow there; {means}"
            "drop such rows, or train with rows like them"
        )


def has_finite_length(x: Tensor) -> Tensor:
    """Tells for points x (B, d) whether their squared distance from the origin is finite, with shape (B,)."""
    return torch.isfinite(x.square().sum(1))


def _warn(text: str) -> None:
    warn_caller(text, DataWarning)
