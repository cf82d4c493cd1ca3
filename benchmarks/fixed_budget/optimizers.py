"""The optimisers that peers may be trained with, by the names that settings.toml has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from fixed_budget.methods.block_flow import BlockFlow
from fixed_budget.model import Model
from jkoflow.training import TrainConfig
from jkoflow.training.chain import Chain
from jkoflow.training.optimizer import Optimizer, adam, build_optimizer, peak_rates

MakeOptimizer = Callable[[Model, TrainConfig, float], Optimizer]
"""Function that makes the optimiser of a model; the configuration has its constants, the number is the peak rate."""


def with_adam(model: Model, config: TrainConfig, rate: float) -> Optimizer:
    """Returns Adam with the configuration's constants."""
    return adam(model, rate, config.beta1, config.beta2, config.clip_norm)


def with_matrices(name: str, model: Model, config: TrainConfig, rate: float) -> Optimizer:
    """Returns an optimiser for matrices, as `jkoflow.train` has it, for a model that is a chain of blocks.

    Raises:
        ValueError: If the model is not one of blocks.
    """
    if not isinstance(model, BlockFlow):
        raise ValueError(f"optimizer {name!r} is for chains of blocks, got a {type(model).__name__}; take adam")
    rates = peak_rates(name, model.flow.dim, rate)
    return build_optimizer(
        Chain(model.flow.stack), name, rates, config.weight_decay, config.beta1, config.beta2, config.clip_norm
    )


OPTIMIZERS: Mapping[str, MakeOptimizer] = {
    "adam": with_adam, "muon": partial(with_matrices, "muon"), "soap": partial(with_matrices, "soap"),
}  # fmt: skip
"""Makers of the optimisers by name; those for matrices need a model of blocks."""


def maker(name: str) -> MakeOptimizer:
    """Returns the maker of the optimiser with a name.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    return OPTIMIZERS[name]
