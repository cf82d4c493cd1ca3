"""What a recipe is worth to rows that are held out, since few rows make a map of many knots fit their chance.

A map is fitted in closed form, so that it can be fitted several times, each time without some of the rows, and every
row is judged by a map that has not seen it. No row is lost to the choice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jkoflow.initial_map.chain import InitialMap

FOLDS = 5
"""Number of parts that the rows are divided into, each held out once."""


@torch.no_grad()
def held_out_nll(rows: Tensor, recipe: str) -> Tensor:
    """Returns the NLL of every row under the recipe's map of the rows in other folds, in nats, as float64 with (N,).

    The images under the map are taken for standard Gaussian.

    Arguments:
        rows: Rows in random order, at least `FOLDS`, with shape (N, d).
        recipe: Name of the recipe, one of `jkoflow.initial_map.RECIPES`.

    Raises:
        ValueError: If there are fewer rows than folds, or the recipe is unknown.
    """
    if len(rows) < FOLDS:
        raise ValueError(f"rows must be at least {FOLDS}, one for each fold, got {len(rows)}")
    exact, place = rows.double(), torch.arange(len(rows), device=rows.device) % FOLDS
    losses = exact.new_empty(len(rows))
    for fold in range(FOLDS):
        held_out = place == fold
        y, logdet = InitialMap.fit(exact[~held_out], recipe)(exact[held_out])
        constant = 0.5 * rows.shape[1] * math.log(2 * math.pi)
        losses[held_out] = 0.5 * y.square().sum(1) + constant - logdet
    return losses
