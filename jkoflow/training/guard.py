"""The integrator guard: notices when a block's likelihood is an artefact of too few Runge-Kutta steps.

A fixed-step integrator gets exploited: an optimiser finds velocities on which the quadrature of the divergence is wrong
in its favour, and the loss falls without end while the density gets worse. Twice the steps tell the difference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.training.chain import Trainable


class GuardReading(NamedTuple):
    """How much a block's result depends on its integrator."""

    nll_difference: float
    """Mean absolute difference of the samples' NLL between num_steps and twice as many, in nats."""
    round_trip: float
    """Mean Euclidean distance between x and its image under the block and back, in the units of x."""

    def within(self, nll_tolerance: float, round_trip_tolerance: float) -> bool:
        """Whether both are at most their tolerance; False if one is NaN or inf."""
        return self.nll_difference <= nll_tolerance and self.round_trip <= round_trip_tolerance


@torch.no_grad()
def read_guard(block: Trainable, x: Tensor, context: Tensor | None = None) -> GuardReading:
    """Compares a block at its num_steps with itself at twice as many.

    Arguments:
        block: The block, or several in a chain.
        x: Samples that enter it, with shape (B, d).
        context: Their standardised conditioning variables, with shape (B, c).

    Returns:
        The reading; NaN or inf where the block is so broken that a number overflows.
    """
    y, logdet = block(x, context)
    fine_y, fine_logdet = block(x, context, block.grid.refined())
    back = block.carry(y, context, inverse=True)
    difference = 0.5 * (y.square().sum(1) - fine_y.square().sum(1)) - (logdet - fine_logdet)
    distance = (back - x).square().sum(1).sqrt()
    return GuardReading(*torch.stack([difference.abs().mean(), distance.mean()]).tolist())
