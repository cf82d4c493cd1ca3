"""Adam: every parameter has a step length of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jkoflow.training.optimizer.factors import Factor, add_ratio

EPSILON = 1e-8
"""Added to the root of the mean square, so that a gradient that has always been 0 changes nothing."""


class AdamRule:
    """Adam, in a few operations whatever the number of parameters.

    Arguments:
        parameters: The parameters, with shape (Q,).
        gradient: Their gradient, with shape (Q,), where it is at every step.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of squared gradients.

    References:
        | Adam: A method for stochastic optimization (Kingma and Ba, 2014)
        | https://arxiv.org/abs/1412.6980
    """

    def __init__(self, parameters: Tensor, gradient: Tensor, beta1: float = 0.9, beta2: float = 0.99) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self._parameters, self._gradient = parameters, gradient
        self.memory = {"mean": torch.zeros_like(parameters), "square": torch.zeros_like(parameters)}

    def factors(self, rate: float, updates: int) -> tuple[float, ...]:
        """Returns what brings the root mean square to its size, and the step length, with the bias corrected in both.

        See `jkoflow.training.optimizer.rule.Rule`.
        """
        return 1 / math.sqrt(1 - self.beta2**updates), -rate / (1 - self.beta1**updates)

    def refreshes(self, updates: int) -> bool:
        """Tells that all updates are alike."""
        return False

    def step(self, factors: Sequence[Factor], refresh: bool) -> None:
        """Updates the parameters in place, see `jkoflow.training.optimizer.rule.Rule`."""
        scale, length = factors
        mean, square, gradient = self.memory["mean"], self.memory["square"], self._gradient
        mean.lerp_(gradient, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        root = square.sqrt().mul_(scale).add_(EPSILON)
        add_ratio(self._parameters, mean, root, length)
