"""Several blocks in a row behind a block's interface, so that a fit can train all of them together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from jkoflow.block import Block
from jkoflow.ops import JKOTerms
from jkoflow.ops.grid import Grid, as_grid, finest


class Chain:
    """The map of several blocks one after the other, as `jkoflow.training.fit.Fit` sees a block.

    The chain's grid is that of the block that takes the most steps. The grids of the other blocks stay in proportion
    to it and have at least one step.

    Arguments:
        blocks: The blocks, which are trained in place.
        proportions: Grids whose costs are to be kept in proportion; the grids of the blocks if None.
    """

    def __init__(self, blocks: Sequence[Block], proportions: Sequence[Grid] | None = None) -> None:
        self.blocks = list(blocks)
        self._proportions = [block.grid for block in blocks] if proportions is None else list(proportions)

    @property
    def grid(self) -> Grid:
        """Returns the grid of the block that takes the most steps."""
        return finest(block.grid for block in self.blocks)

    @grid.setter
    def grid(self, grid: Grid) -> None:
        most = finest(self._proportions).cost
        for block, share in zip(self.blocks, self._proportions, strict=True):
            block.grid = grid.scaled(share.cost, most)

    @property
    def cost(self) -> int:
        """Returns the cost of a pass through all blocks, in Runge-Kutta steps of every row."""
        return sum(block.grid.cost for block in self.blocks)

    def _grids(self, grid: Grid | None) -> list[Grid]:
        """Returns the grids of all blocks, given the grid of the block that takes the most steps."""
        most = self.grid
        return [(grid or most).scaled(block.grid.cost, most.cost) for block in self.blocks]

    def __call__(self, x: Tensor, context: Tensor | None = None, grid: Grid | None = None) -> tuple[Tensor, Tensor]:
        """Returns the image of x (B, d) under all blocks and the sum of their logdets (B,)."""
        logdet = x.new_zeros(len(x))
        for block, own in zip(self.blocks, self._grids(grid), strict=True):
            x, increment = block(x, context, own)
            logdet = logdet + increment
        return x, logdet

    def carry(
        self, x: Tensor, context: Tensor | None = None, grid: Grid | None = None, inverse: bool = False
    ) -> Tensor:
        """Returns the image of x (B, d) under all blocks, or its preimage if ``inverse``, without the logdet."""
        way = list(zip(self.blocks, self._grids(grid), strict=True))
        for block, own in reversed(way) if inverse else way:
            x = block.carry(x, context, own, inverse)
        return x

    def jko_loss(self, x: Tensor, context: Tensor | None = None, jko_step: float = math.inf) -> JKOTerms:
        """Returns the terms of the objective on a batch x (B, d) of samples that enter the first block.

        A chain has no JKO step of its own: without a penalty it is the negative log-likelihood, up to a constant.

        Raises:
            ValueError: If the JKO step is finite.
        """
        if not math.isinf(jko_step):
            raise ValueError(f"jko_step must be inf for a chain, which is trained on the likelihood, got {jko_step}")
        divergence = x.new_zeros(())
        *before, last = self.blocks
        for block in before:
            x, logdet = block(x, context)
            divergence = divergence - logdet.mean()
        # the penalty of the last block's own JKO step is not part of it
        terms = last.jko_loss(x, context, jko_step)
        # gradients flow through the total alone
        return JKOTerms(terms.total + divergence, terms.potential, terms.divergence + divergence, terms.movement)

    def describe(self) -> dict[str, Any]:
        """Returns everything but the parameters, as JSON values; `from_description` builds the chain again."""
        proportions = [grid.num_steps for grid in self._proportions]
        return {"blocks": [block.describe() for block in self.blocks], "proportions": proportions}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Builds a chain with fresh parameters from what `describe` returned."""
        blocks = [Block.from_description(block).float() for block in description["blocks"]]
        return cls(blocks, [as_grid(num_steps) for num_steps in description["proportions"]])

    def parameters(self) -> Iterator[nn.Parameter]:
        """Returns the parameters of all blocks, from the first block on."""
        return itertools.chain.from_iterable(block.parameters() for block in self.blocks)

    def to(self, device: Any) -> Self:
        """Moves the blocks to a device."""
        for block in self.blocks:
            block.to(device)
        return self


Trainable = Block | Chain
"""A block, or a chain of blocks that a fit trains together."""


def blocks_of(module: Trainable) -> list[Block]:
    """Returns the blocks of a chain, or the block alone."""
    return module.blocks if isinstance(module, Chain) else [module]
