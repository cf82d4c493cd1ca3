"""What keeps a training on few rows from learning their chance: when trained parameters are taken at all.

A validation loss that is lower than another by chance is found sooner or later among dozens. So parameters count as
better than something simpler only if the validation rows gain from them by more than chance, row by row. Where rows are
many, chance is small, and the rule asks for nothing.
"""

from __future__ import annotations

from torch import Tensor

from jkoflow.gain import paired_gain
from jkoflow.training.objectives import JKO


def beats_identity(objective: JKO, x: Tensor, y: Tensor, logdet: Tensor) -> bool:
    """Tells whether a block is clearly better than no block, by what validation rows gain from it.

    Arguments:
        objective: The objective of the block.
        x: Validation rows that enter the block, with shape (N, d).
        y: Their images, with shape (N, d).
        logdet: The logdets, with shape (N,).

    Returns:
        True if the mean loss is lower by more than `jkoflow.gain.CLEAR` standard errors of the rows' differences.
    """
    return paired_gain(objective.rows(x, x, logdet.new_zeros(len(x))), objective.rows(x, y, logdet)).is_clear
