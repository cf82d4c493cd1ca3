"""Blocks in a row as one free block: what a fit trains when it trains all of them together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from jkoflow.block import Block
from jkoflow.ops import JKOTerms


class Chain:
    """The map of several blocks one after the other, as `jkoflow.training.fit.BlockFit` sees a block.

    Its JKO objective is that of a free block, hence the negative log-likelihood up to a constant. Its Runge-Kutta steps
    are those of the block that takes the most; the others keep their proportion, and at least one.

    Arguments:
        blocks: The blocks, which are trained in place.
        proportions: Runge-Kutta steps of each that are to be kept in proportion; those of the blocks if None.
    """

    jko_step = math.inf

    def __init__(self, blocks: Sequence[Block], proportions: Sequence[int] | None = None) -> None:
        self.blocks = list(blocks)
        self.velocity = nn.ModuleList([block.velocity for block in blocks])
        self._proportions = [block.num_steps for block in blocks] if proportions is None else list(proportions)

    @property
    def num_steps(self) -> int:
        """Runge-Kutta steps of the block that takes the most."""
        return max(block.num_steps for block in self.blocks)

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        most = max(self._proportions)
        for block, share in zip(self.blocks, self._proportions, strict=True):
            block.num_steps = max(1, share * num_steps // most)

    def _steps(self, num_steps: int | None) -> list[int]:
        """Steps of every block for so many of the block that takes the most: those that they have, multiplied."""
        most = self.num_steps
        return [max(1, block.num_steps * (num_steps or most) // most) for block in self.blocks]

    def __call__(self, x: Tensor, context: Tensor | None = None, num_steps: int | None = None) -> tuple[Tensor, Tensor]:
        """The image of x (B, d) under all blocks and the logdet of the way (B,)."""
        logdet = x.new_zeros(len(x))
        for block, steps in zip(self.blocks, self._steps(num_steps), strict=True):
            x, increment = block(x, context, steps)
            logdet = logdet + increment
        return x, logdet

    def carry(
        self, x: Tensor, context: Tensor | None = None, num_steps: int | None = None, inverse: bool = False
    ) -> Tensor:
        """The image of x (B, d) alone, or its preimage."""
        way = list(zip(self.blocks, self._steps(num_steps), strict=True))
        for block, steps in reversed(way) if inverse else way:
            x = block.carry(x, context, steps, inverse)
        return x

    def jko_loss(self, x: Tensor, context: Tensor | None = None) -> JKOTerms:
        """The objective on a batch x (B, d) of what enters the first block."""
        divergence = x.new_zeros(())
        *before, last = self.blocks
        for block in before:
            x, logdet = block(x, context)
            divergence = divergence - logdet.mean()
        # the penalty of the last block's own step size is not part of it
        terms = last.jko_loss(x, context, self.jko_step)
        # gradients flow through the total alone
        return JKOTerms(terms.total + divergence, terms.potential, terms.divergence + divergence, terms.movement)

    def describe(self) -> dict[str, Any]:
        """Everything but the parameters, as JSON values; `from_description` builds the chain again."""
        return {"blocks": [block.describe() for block in self.blocks], "proportions": self._proportions}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Builds a chain with fresh parameters."""
        blocks = [Block.from_description(block) for block in description["blocks"]]
        return cls(blocks, description["proportions"])

    def to(self, device: Any) -> Self:
        """Moves the blocks to a device."""
        for block in self.blocks:
            block.to(device)
        return self


Trainable = Block | Chain
"""What a fit trains."""
