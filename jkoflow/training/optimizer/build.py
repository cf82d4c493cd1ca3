"""Makes the optimiser of a block or chain from settings, and plain Adam for any module."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

from torch import nn

from jkoflow.training.chain import Trainable
from jkoflow.training.optimizer.groups import Group, groups_of
from jkoflow.training.optimizer.optimizer import Optimizer
from jkoflow.training.optimizer.rates import PeakRates


class HasParameters(Protocol):
    """Protocol of a module whose parameters can be trained."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Returns the parameters, always in the same order."""
        ...


def build_optimizer(
    module: Trainable,
    optimizer: str,
    rates: PeakRates,
    weight_decay: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.99,
    clip_norm: float = math.inf,
) -> Optimizer:
    """Makes the optimiser of a block or chain.

    Arguments:
        module: The block or chain to train; its parameters keep their values and become views of a vector.
        optimizer: Name of the optimiser, one of `jkoflow.training.optimizer.OPTIMIZERS`.
        rates: Peak rates of matrices and vectors.
        weight_decay: Weight decay of Muon's matrices but the first layer's; not used by the others.
        beta1: Adam's decay of the mean of gradients.
        beta2: Adam's decay of the mean of squared gradients.
        clip_norm: Longer gradients are scaled down to it. Not used by Muon, whose steps do not depend on the
            gradient's length: clipping would only change how much an update weighs in the momentum.

    Returns:
        The optimiser.
    """
    groups = groups_of(module, optimizer, rates, weight_decay)
    return Optimizer(groups, beta1, beta2, math.inf if optimizer == "muon" else clip_norm)


def adam(
    module: HasParameters, rate: float = 1.0, beta1: float = 0.9, beta2: float = 0.99, clip_norm: float = math.inf
) -> Optimizer:
    """Makes plain Adam for all parameters of any module, in the module's order.

    Arguments:
        module: The module to train; its parameters keep their values and become views of a vector.
        rate: Peak rate; with 1, the factor of an update is its rate.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of squared gradients.
        clip_norm: Gradients longer than this are scaled down to it.

    Returns:
        The optimiser.
    """
    return Optimizer([Group(tuple(module.parameters()), "adam", rate)], beta1, beta2, clip_norm)
