"""Fine-tuning: the blocks of a finished chain trained together, end to end, on the likelihood.

Each block was trained for what is best for itself, after blocks that did not know of it. Together they can do better,
and they begin where an end-to-end flow from scratch takes long to come.
"""

from __future__ import annotations

from jkoflow.training.chain import Chain
from jkoflow.training.config import TrainConfig
from jkoflow.training.fit import Recipe, recipe_of_block
from jkoflow.training.objectives import Likelihood

RATE_SHARE = 0.5
"""Peak learning rate, as a share of that of a block on its own."""


def recipe_of_chain(chain: Chain, config: TrainConfig, columns: int) -> Recipe:
    """Returns how a chain is trained on the samples, of so many columns, that enter its first block.

    The chain as it comes is the first candidate, since the loop looks at it before the first iteration, and it is not
    shortened: it was trained for these samples, and more steps are what it lacks if the guard refuses it.
    """
    of_block = recipe_of_block(chain.blocks[0], config, columns)
    share = config.finetune or 0.0  # without a time budget there is no such round unless it is set
    return Recipe(
        objective=Likelihood(),
        peak_rate=RATE_SHARE * of_block.peak_rate,
        tolerances=of_block.tolerances.times(len(chain.blocks)),  # every block has passed with its own
        # an iteration takes as long as one of every block
        iterations=max(1, round(of_block.iterations * share / (1 - share))),
        alone=None,
    )
