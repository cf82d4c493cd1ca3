"""Adam, Muon and SOAP on one vector of all parameters, and the rate of every iteration."""

from __future__ import annotations

from jkoflow.training.optimizer.build import adam, build_optimizer
from jkoflow.training.optimizer.groups import Group, groups_of
from jkoflow.training.optimizer.optimizer import Optimizer
from jkoflow.training.optimizer.rates import (
    OPTIMIZERS,
    PeakRates,
    cosine,
    learning_rate,
    peak_learning_rate,
    peak_rates,
)
from jkoflow.training.optimizer.state import OptimizerState

__all__ = [
    "OPTIMIZERS",
    "Group",
    "Optimizer",
    "OptimizerState",
    "PeakRates",
    "adam",
    "build_optimizer",
    "cosine",
    "groups_of",
    "learning_rate",
    "peak_learning_rate",
    "peak_rates",
]
