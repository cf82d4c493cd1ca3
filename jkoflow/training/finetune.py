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
"""Peak learning rates of a chain whose blocks have each been trained to their end, as a share of those of a block."""


def recipe_of_chain(
    chain: Chain, config: TrainConfig, columns: int, scale: float, share: float, divided: bool
) -> Recipe:
    """Returns the recipe by which a chain is trained.

    The loop validates the chain before the first iteration, so that its present parameters are the first candidate. Its
    velocities are not shortened: it was trained for these samples, and if the guard refuses it, it lacks steps.

    Arguments:
        chain: The chain.
        config: Settings of the run.
        columns: Number of columns of the samples.
        scale: Scale of the first layer.
        share: Share of the training that goes to the chain.
        divided: Whether the chain is a single block that was divided. It then goes on where the block's learning rate
            has ended.
    """
    of_block = recipe_of_block(chain.blocks[0], config, columns, scale)
    return Recipe(
        objective=Likelihood(),
        peak_rates=of_block.peak_rates.times(1.0 if divided else RATE_SHARE),
        tolerances=of_block.tolerances.times(len(chain.blocks)),  # every block has passed with its own
        # an iteration takes as long as one of every block
        iterations=max(1, round(of_block.iterations * share / (1 - share))),
        span=(1 - share, 1.0) if divided else (0.0, 1.0),
        weight_decay=of_block.weight_decay,
        last=True,
        alone=None,
    )
