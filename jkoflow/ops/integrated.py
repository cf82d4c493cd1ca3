"""The result of `jkoflow.integrate`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class _Ends(NamedTuple):
    x: Tensor
    """x at t1, with shape (B, d)."""
    logdet: Tensor
    """Integral of the divergence, with shape (B,)."""
    path: Tensor | None
    """x at the given times, with shape (T, B, d); else at every equal step, with shape (num_steps + 1, B, d). None if
    ``keep_path=False``, and for adaptive steps without times."""


class Integrated(_Ends):
    """The result of `jkoflow.integrate`: a tuple of ``x``, ``logdet`` and ``path``, with two more attributes."""

    evaluations: Tensor | int
    """Evaluations of the velocity: the number for every row with equal steps, else int64 with shape (B,)."""
    logdet_path: Tensor | None
    """Integral of the divergence up to the given times, with shape (T, B); None without times."""

    def __new__(
        cls,
        x: Tensor,
        logdet: Tensor,
        path: Tensor | None,
        evaluations: Tensor | int = 0,
        logdet_path: Tensor | None = None,
    ) -> Integrated:
        """Returns a result whose members are as given."""
        result = super().__new__(cls, x, logdet, path)
        result.evaluations = evaluations
        result.logdet_path = logdet_path
        return result
