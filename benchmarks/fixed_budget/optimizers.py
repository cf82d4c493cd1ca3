"""The optimisers that peers may be trained with, by the names that settings.toml has for them."""

from __future__ import annotations

from collections.abc import Callable

from jkoflow.training import TrainConfig
from jkoflow.training.optimizer import Adam, HasParameters

MakeOptimizer = Callable[[HasParameters, TrainConfig], Adam]
"""Function that makes the optimiser of a module; the configuration has its constants."""


def adam(module: HasParameters, config: TrainConfig) -> Adam:
    """Returns Adam with the configuration's constants."""
    return Adam(module, config.beta1, config.beta2, config.clip_norm)


OPTIMIZERS: dict[str, MakeOptimizer] = {"adam": adam}
"""Makers of the optimisers by name."""


def maker(name: str) -> MakeOptimizer:
    """Returns the maker of the optimiser with a name.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    return OPTIMIZERS[name]
