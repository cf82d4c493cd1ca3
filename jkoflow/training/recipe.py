"""The settings of a fit: of a block that is trained by itself, and of blocks that are trained together, end to end.

Each block of a chain that was built block by block was trained for what is best for itself, after blocks that did not
know of it. Trained together, the blocks can do better, and they begin at parameters that an end-to-end training from
scratch takes long to reach. The blocks that a single block was divided into go on as one training.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jkoflow.block import Block
from jkoflow.ops.grid import Fixed, Grid
from jkoflow.training.chain import Chain
from jkoflow.training.config import TrainConfig
from jkoflow.training.first_layer import first_steps
from jkoflow.training.guard import Tolerances, guard_tolerances
from jkoflow.training.objectives import JKO, Likelihood
from jkoflow.training.optimizer import PeakRates, peak_rates

RATE_SHARE = 0.5
"""Peak learning rates of a chain whose blocks have each been trained to their end, as a share of those of a block."""


class Recipe(NamedTuple):
    """The settings of a fit that depend on whether it trains one block by itself or several blocks together."""

    objective: JKO
    peak_rates: PeakRates
    """Largest learning rates."""
    coarsest: Grid
    """Coarsest grid, of a block or of the chain's block with the most steps, that the guard goes back to."""
    full_rate_cost: int
    """Cost of a pass, in Runge-Kutta steps, up to which learning rates are full."""
    span: tuple[float, float]
    """Part of the learning rate's curve that the fit goes through."""
    weight_decay: float
    """Decay of the matrices that have one."""
    tolerances: Tolerances
    """Tolerances of the guard."""
    iterations: int
    """Number of iterations without a time budget, which would set it."""
    last: bool
    """Whether no block of the round follows."""
    alone: Block | None
    """The block that is trained by itself, whose velocity may be shortened at the start; None for a chain."""
    from_nothing: bool
    """Whether the fit is to be compared with no block at all, since nothing was trained before it."""

    def rate_share(self, cost: int) -> float:
        """Returns the share of the learning rates for a pass of some cost.

        Velocities that need more steps are sharper, and would get sharper still at full rates.
        """
        return math.sqrt(min(1.0, self.full_rate_cost / cost))


def first_grid(config: TrainConfig, scale: float, more_steps: int = 0) -> Grid:
    """Returns the grid that the training of a block begins with.

    Arguments:
        config: Settings of the run, which may have a number of steps.
        scale: Scale of the first layer, which asks for a number of steps if the settings have none.
        more_steps: Steps in addition to these.
    """
    return Fixed(first_steps(scale) + more_steps if config.num_steps is None else config.num_steps)


def recipe_of_block(
    block: Block,
    config: TrainConfig,
    columns: int,
    scale: float = 1.0,
    end: float = 1.0,
    last: bool = True,
    more_steps: int = 0,
) -> Recipe:
    """Returns the recipe by which a block is trained by itself.

    Arguments:
        block: The block.
        config: Settings of the run.
        columns: Number of columns of the samples.
        scale: Scale of the first layer (`jkoflow.training.first_layer`). Sharp details take large weights behind the
            first layer, too, so that weight decay is divided by it.
        end: Where on the learning rate's curve the fit ends: before its end if the same block is then divided and
            trained on.
        last: Whether no block of the round follows.
        more_steps: Runge-Kutta steps that the block begins with beyond those that the scale asks for.
    """
    grid = first_grid(config, scale, more_steps)
    return Recipe(
        objective=JKO(block.jko_step),
        peak_rates=peak_rates(config.optimizer, columns, config.learning_rate),
        coarsest=grid,
        full_rate_cost=grid.cost,
        span=(0.0, end),
        weight_decay=config.weight_decay / scale,
        tolerances=guard_tolerances(config.guard_nll, config.guard_round_trip, columns),
        iterations=config.iterations_per_block,
        last=last,
        alone=block,
        from_nothing=True,
    )


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
        share: Share of the training that goes to the chain; 1 for new blocks.
        divided: Whether the chain is a single block that was divided. It then goes on where the block's learning rate
            has ended.
    """
    is_new = share == 1
    of_block = recipe_of_block(chain.blocks[0], config, columns, scale)
    blocks = len(chain.blocks)
    return of_block._replace(
        objective=Likelihood(),
        peak_rates=of_block.peak_rates.times(1.0 if divided or is_new else RATE_SHARE),
        coarsest=of_block.coarsest.split(blocks) if divided or is_new else of_block.coarsest,
        full_rate_cost=max(of_block.full_rate_cost, blocks) if divided or is_new else of_block.full_rate_cost * blocks,
        span=(1 - share, 1.0) if divided else (0.0, 1.0),
        tolerances=of_block.tolerances.times(blocks),  # every block has passed with its own
        # an iteration takes as long as one of every block
        iterations=of_block.iterations if is_new else max(1, round(of_block.iterations * share / (1 - share))),
        alone=None,
        from_nothing=is_new,
    )
