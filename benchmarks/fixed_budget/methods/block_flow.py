"""A stack of blocks on our kernels, trained block by block or end to end."""

from __future__ import annotations

import torch
from torch import Tensor

from fixed_budget.model import Model
from jkoflow.block import Block
from jkoflow.flow import JKOFlow, base_log_prob
from jkoflow.initial_map import InitialMap
from jkoflow.training import TrainConfig
from jkoflow.velocity import MLPVelocity

MOST_STEPS = 384


class BlockFlow(Model):
    """A `JKOFlow` as the comparison sees it.

    Arguments:
        flow: The flow, of blocks that all train with as many steps.
        num_steps: Runge-Kutta steps per block at level 0.
        max_num_steps: Where `refine` ends.
        kinetic: Weight of the kinetic energy, the sum of the blocks' squared movements, in `loss`.
    """

    val_level = 1

    def __init__(self, flow: JKOFlow, num_steps: int, max_num_steps: int = 24, kinetic: float = 0.0) -> None:
        super().__init__()
        self.flow, self.num_steps, self.max_num_steps, self.kinetic = flow, num_steps, max_num_steps, kinetic

    @property
    def levels(self) -> int:  # type: ignore[override]
        """As many doublings as end at `MOST_STEPS`."""
        return (MOST_STEPS // self.num_steps).bit_length()

    @property
    def has_fixed_steps(self) -> bool:
        """It has."""
        return True

    def loss(self, x: Tensor) -> Tensor:
        """Mean NLL, and the kinetic energy times its weight."""
        z, logdet = self.flow.enter(x)
        energy = x.new_zeros(())
        for block in self.flow.stack:
            start = z
            z, increment = block(start, None, self.num_steps)
            logdet = logdet + increment
            if self.kinetic:
                energy = energy + (z - start).square().sum(1).mean()
        return -(base_log_prob(z) + logdet).mean() + self.kinetic * energy

    def encode(self, x: Tensor, level: int = 0) -> tuple[Tensor, Tensor]:
        """Through all blocks."""
        return self.flow.forward(x, num_steps=self.num_steps << level)

    def decode(self, z: Tensor, level: int = 0) -> Tensor:
        """Backwards in time."""
        return self.flow.inverse(z, num_steps=self.num_steps << level)[0]

    def describe_level(self, level: int) -> str:
        """Like ``6 steps per block``."""
        return f"{self.num_steps << level} steps per block"

    def refine(self) -> bool:
        """Doubles the steps of training, as the guard of `jkoflow.train` does."""
        if 2 * self.num_steps > self.max_num_steps:
            return False
        self.num_steps *= 2
        return True


def end_to_end(
    dim: int,
    seed: int,
    config: TrainConfig,
    initial_map: InitialMap | None = None,
    kinetic: float = 0.0,
    blocks: int | None = None,
) -> BlockFlow:
    """Blocks of the same networks as block-wise training has, to be trained jointly.

    None means as many as it has at most.

    Every block starts as the identity, as the first one of block-wise training does.
    """
    torch.manual_seed(seed)
    stack = [
        Block(
            MLPVelocity(dim, config.hidden, config.activation, config.time, 0, config.linear),
            config.num_steps,
            config.method,
        )
        for _ in range(config.most_blocks if blocks is None else blocks)
    ]
    for block in stack:
        block.velocity.scale_output(0.0)
    return BlockFlow(JKOFlow(dim, stack, initial_map=initial_map), config.num_steps, config.max_num_steps, kinetic)
