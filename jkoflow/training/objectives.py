"""The objectives that a fit minimises: their terms on a batch and on the validation rows, and the terms' names."""

from __future__ import annotations

import math

from torch import Tensor

from jkoflow.ops import JKOTerms, jko_terms
from jkoflow.training.chain import Trainable

TERMS = JKOTerms._fields[1:]
"""Names, in progress and history, of the terms whose sum is the loss."""


class JKO:
    """The JKO objective of a block, see `jkoflow.jko_loss`.

    Arguments:
        jko_step: JKO step size h, positive; ``inf`` means no penalty.
    """

    def __init__(self, jko_step: float) -> None:
        self.jko_step = jko_step

    def terms(self, block: Trainable, batch: Tensor, context: Tensor | None) -> JKOTerms:
        """Returns the loss, which carries the gradient, and its terms on a batch (B, d) of samples for the block."""
        return block.jko_loss(batch, context, self.jko_step)

    def validate(self, x: Tensor, y: Tensor, logdet: Tensor) -> JKOTerms:
        """Returns the loss and its terms, in float64, for rows x (N, d) carried to y (N, d) with a logdet (N,)."""
        return jko_terms(x.double(), y.double(), logdet.double(), self.jko_step)

    def rows(self, x: Tensor, y: Tensor, logdet: Tensor) -> Tensor:
        """Returns the loss of every row, in float64 with shape (N,), for rows x (N, d) carried to y with a logdet."""
        x, y = x.double(), y.double()
        return 0.5 * y.square().sum(1) - logdet.double() + 0.5 * (y - x).square().sum(1) / self.jko_step

    def of_identity(self, x: Tensor) -> float:
        """Returns the loss of rows x (N, d) that stay where they are."""
        return float(0.5 * x.square().sum(1).double().mean())


class Likelihood(JKO):
    """The negative log-likelihood, up to the Gaussian's constant: the objective of a free block and of a chain."""

    def __init__(self) -> None:
        super().__init__(math.inf)
