"""Choosing the initial map: every candidate gets a short block for a trial, and the best validation NLL wins.

How Gaussian the mapped data look says little about how well blocks do on them: a map that bends straight dependences
between columns can start better and end worse. A trained block tells.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from jkoflow.block import Block
from jkoflow.initial_map import InitialMap
from jkoflow.metrics import spread_rows
from jkoflow.training.config import TrainConfig
from jkoflow.training.fit import BlockFit, FitHooks
from jkoflow.training.progress import Silent
from jkoflow.training.pushed import PushedSamples

AUTO = "auto"
"""The setting that asks for trials."""

CANDIDATES = ("whiten", "whiten+radial", "marginals+whiten")
"""The recipes that are tried: each of the others did worse than one of these on every data set of the sweep."""

TRIAL_SHARE = 0.08
"""Share of a time budget that all trials together may take; of a block's iterations, each trial's."""

TRIAL_VAL_ROWS = 2000
"""Validation rows of a trial, at most."""

FIT_ROWS = 100_000
"""Rows that a map is fitted to, and trials run on, at most: more do not move its quantiles."""


@dataclass(frozen=True)
class Trial:
    """What one candidate came to."""

    recipe: str
    val_nll: float
    """With the trial's block, in nats on standardised columns."""
    iterations: int
    seconds: float


def fit_map(rows: Tensor, recipe: str) -> InitialMap:
    """The initial map of a recipe for standardised rows (N, d)."""
    return InitialMap.fit(spread_rows(rows, FIT_ROWS), recipe)


def trial_config(config: TrainConfig) -> TrainConfig:
    """The settings of a trial's block, which is shorter than a run's; a time budget sets its length instead."""
    return dataclasses.replace(
        config,
        iterations_per_block=math.ceil(TRIAL_SHARE * config.iterations_per_block),
        val_rows=min(TRIAL_VAL_ROWS, config.val_rows),
    )


def run_trial(
    samples: PushedSamples, block: Block, config: TrainConfig, elapsed: Callable[[], float], seconds: float | None
) -> tuple[float, int]:
    """Trains a block behind a candidate.

    Arguments:
        samples: The data behind its map.
        block: A new block without penalty.
        config: Settings of the trial.
        elapsed: Seconds into the run.
        seconds: Time for it; None without a time budget.

    Returns:
        Validation NLL with the block, in nats on standardised columns, and the iterations.
    """

    def share(started: float, row_step: float, num_steps: int) -> float:
        # the push, which BlockFit reserves time for, is not wanted
        return (seconds or 0.0) + 2 * num_steps * row_step * len(samples.train)

    # a trial leaves its outcome alone: no records, no state
    hooks = FitHooks(elapsed, lambda event: None, lambda fit: None, None if seconds is None else share, Silent())
    fit = BlockFit(0, block, samples, config, hooks)
    fit.run()
    samples.push_val(block)
    return samples.val_nll(), fit.counters.iteration
