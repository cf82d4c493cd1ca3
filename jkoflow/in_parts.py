"""Rows that come in parts: their log-densities are on the same steps, or within the same tolerance."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.flow import JKOFlow
from jkoflow.log_densities import LogDensities
from jkoflow.ops.grid import Steps
from jkoflow.tolerance import MOST, steps_of
from jkoflow.within import Chosen, grids_within, log_prob_on, warn_if_beyond


class InParts(NamedTuple):
    """The log-densities of rows that come in parts, all on the same steps or within the same tolerance.

    Arguments:
        flow: The flow.
        num_steps: Runge-Kutta steps per block; None means the calibrated number.
        every_error: Whether to estimate the error of every row.
        chosen: Grids that keep the tolerance; None without one.
        tol: The tolerance.
    """

    flow: JKOFlow
    num_steps: Steps | None
    every_error: bool
    chosen: Chosen | None = None
    tol: float = math.inf

    def within(self, points: Tensor, context: Tensor | None, tol: float) -> InParts:
        """Returns the same within a tolerance that is kept on some rows (M, d), see `grids_within`."""
        chosen = grids_within(self.flow, points, context, tol, part=True) if len(points) else None
        return self._replace(chosen=chosen, tol=tol)

    def log_prob(self, points: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns log-densities (n,) of rows (n, d), and estimates (n,) of their errors, 0 if not asked for."""
        if self.chosen is not None:
            found = log_prob_on(LogDensities(self.flow, points, context), self.chosen, self.tol, self.every_error)
            return found[0], found[1].nan_to_num(nan=0.0)
        if self.every_error:
            return self.flow.log_prob_and_error(points, context, self.num_steps)
        values = self.flow.log_prob(points, context, self.num_steps)
        return values, torch.zeros_like(values, dtype=torch.float64)

    def warn_if_beyond(self, errors: Tensor) -> None:
        """Warns if errors (N,) are beyond the tolerance."""
        at_most = self.chosen is not None and steps_of(self.chosen.grids) >= MOST
        warn_if_beyond(errors, self.tol, self.flow.standardize.mean.dtype, at_most)
