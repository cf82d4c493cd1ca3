"""A stack of blocks on our kernels, trained block by block or end to end."""

from __future__ import annotations

import torch
from torch import Tensor

from fixed_budget.model import GridModel
from jkoflow.flow import JKOFlow, base_log_prob
from jkoflow.initial_map import InitialMap
from jkoflow.ops.grid import Grid
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.training import TrainConfig
from jkoflow.training.first_layer import sharpen
from jkoflow.training.recipe import first_grid
from jkoflow.training.start import block_of

MOST_STEPS = 384
"""Largest number of steps per block, at which levels end."""


class BlockFlow(GridModel):
    """A `JKOFlow` as the comparison sees it.

    Arguments:
        flow: The flow, whose blocks are all integrated on the same grid.
        grid: The grid of every block at level 0.
        finest_training: Cost of the grid at which `refine` ends.
        kinetic: Weight of the kinetic energy, the sum of the blocks' squared movements, in `loss`.
    """

    def __init__(self, flow: JKOFlow, grid: Grid, finest_training: int = 24, kinetic: float = 0.0) -> None:
        super().__init__(grid, MOST_STEPS)
        self.flow, self.finest_training, self.kinetic = flow, finest_training, kinetic

    def loss(self, x: Tensor) -> Tensor:
        """Returns the mean NLL, and the kinetic energy times its weight."""
        z, logdet = self.flow.enter(x)
        energy = x.new_zeros(())
        for block in self.flow.stack:
            start = z
            z, increment = block(start, None, self.grid)
            logdet = logdet + increment
            if self.kinetic:
                energy = energy + (z - start).square().sum(1).mean()
        return -(base_log_prob(z) + logdet).mean() + self.kinetic * energy

    def encode(self, x: Tensor, level: int = 0) -> tuple[Tensor, Tensor]:
        """Carries x (B, d) through all blocks."""
        return self.flow.forward(x, num_steps=self.grid_at(level).num_steps)

    def decode(self, z: Tensor, level: int = 0) -> Tensor:
        """Carries z (B, d) backwards in time."""
        return self.flow.inverse(z, num_steps=self.grid_at(level).num_steps)[0]

    def evaluations(self, x: Tensor) -> float:
        """Returns stages times steps times blocks."""
        return self.grid.num_steps * sum(TABLEAUX[block.method].stages for block in self.flow.stack)

    def describe_level(self, level: int) -> str:
        """Returns the text of a level, such as ``6 steps per block``."""
        return f"{self.grid_at(level).num_steps} steps per block"

    def refine(self) -> bool:
        """Refines the grid of training, as the guard of `jkoflow.train` does."""
        finer = self.grid.refined()
        if finer.cost > self.finest_training:
            return False
        self.grid = finer
        return True


def end_to_end(
    dim: int,
    seed: int,
    config: TrainConfig,
    initial_map: InitialMap | None = None,
    scale: float = 1.0,
    kinetic: float = 0.0,
    blocks: int = 2,
) -> BlockFlow:
    """Returns a flow with the same networks as block-wise training has, to be trained jointly.

    Every block starts as the identity, as the first one of block-wise training does.

    Arguments:
        dim: Number d of columns.
        seed: Seed of the parameters.
        config: The blocks' settings.
        initial_map: The map before the blocks.
        scale: Scale of the blocks' first layers.
        kinetic: Weight of the kinetic energy, see `BlockFlow`.
        blocks: Number of blocks, which share the Runge-Kutta steps that `jkoflow.train` begins with.
    """
    torch.manual_seed(seed)
    grid = first_grid(config, scale).split(blocks)
    stack = [block_of(config, grid, dim) for _ in range(blocks)]
    for block in stack:
        sharpen(block, scale)
        block.velocity.scale_output(0.0)
    return BlockFlow(JKOFlow(dim, stack, initial_map=initial_map), grid, config.max_num_steps, kinetic)
