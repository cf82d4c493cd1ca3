"""Fine-tuning: the blocks of a finished chain are trained together, end to end, on the likelihood.

Each block was trained for what is best for itself, after blocks that did not know of it. Trained together, the blocks
can do better, and they begin at parameters that an end-to-end training from scratch takes long to reach.
"""

from __future__ import annotations

from jkoflow.training.chain import Chain
from jkoflow.training.config import TrainConfig
from jkoflow.training.fit import Recipe, recipe_of_block
from jkoflow.training.objectives import Likelihood

RATE_SHARE = 0.5
"""Peak learning rates of the chain, as a share of those of a single block."""


def recipe_of_chain(chain: Chain, config: TrainConfig, columns: int) -> Recipe:
    """Returns the recipe by which a chain is trained on samples, with the given number of columns.

    The loop validates the chain before the first iteration, so that its present parameters are the first candidate. Its
    velocities are not shortened: it was trained for these samples, and if the guard refuses it, it lacks steps.
    """
    of_block = recipe_of_block(chain.blocks[0], config, columns)
    share = config.finetune or 0.0  # without a time budget there is no such round unless it is set
    return Recipe(
        objective=Likelihood(),
        peak_rates=of_block.peak_rates.times(RATE_SHARE),
        tolerances=of_block.tolerances.times(len(chain.blocks)),  # every block has passed with its own
        # an iteration takes as long as one of every block
        iterations=max(1, round(of_block.iterations * share / (1 - share))),
        alone=None,
    )
