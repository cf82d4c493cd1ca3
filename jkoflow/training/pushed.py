"""The pushed samples: the data carried through the blocks trained so far, in standardised units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jkoflow.block import Block
from jkoflow.mapped import empty_beside, gather, is_mapped, parts, permutation, release, select
from jkoflow.metrics import CHUNK, Movement, chunks, movement
from jkoflow.training.chain import Trainable
from jkoflow.training.upload import Upload

EPOCHS_AHEAD = 2
"""Orders of rows that the CPU may be ahead of a GPU."""


@dataclass
class PushedSamples:
    """The positions of training and validation rows before the next block.

    Only the present positions are kept, so that memory does not grow with the number of blocks.

    Arguments:
        train: Training rows, with shape (N, d).
        val: Validation rows, with shape (N_val, d).
        val_logdet: Logdet of the blocks so far for the validation rows, without standardisation, with shape (N_val,).
        train_context: Standardised conditioning variables of the training rows, with shape (N, c); None without.
        val_context: Standardised conditioning variables of the validation rows, with shape (N_val, c); None without.
    """

    train: Tensor
    val: Tensor
    val_logdet: Tensor
    train_context: Tensor | None = None
    val_context: Tensor | None = None

    def push(self, block: Trainable) -> Movement:
        """Carries the samples through a finished block and returns its movement over the training rows.

        A grid finer than that of the training is used: the next block should start from where the flow's ODE
        takes the samples, not from the integrator's error.
        """
        before = self.train
        self.train = carry_rows(block, self.train, self.train_context)
        self.push_val(block)
        return movement(before, self.train)

    def push_val(self, block: Trainable) -> None:
        """Carries the validation rows alone through a finished block."""
        self.val, increment = push_rows(block, self.val, self.val_context)
        self.val_logdet = self.val_logdet + increment

    def push_through(self, blocks: Sequence[Block]) -> list[float]:
        """Carries the samples through finished blocks, sets their movements and returns their standard errors."""
        moved = [self.push(block) for block in blocks]
        for block, measured in zip(blocks, moved, strict=True):
            block.movement = measured.value
        return [measured.stderr for measured in moved]

    def keep(self, count: int, *counters: int) -> None:
        """Keeps a random choice of ``count`` training rows, the same for the same counters."""
        if count < len(self.train):
            order = permutation(self.train, generator(*counters))
            chosen = torch.zeros(len(self.train), dtype=torch.bool)
            for some in parts(order[:count]):
                chosen[some.long()] = True
            self.train = select(self.train, chosen)
            self.train_context = None if self.train_context is None else select(self.train_context, chosen)

    def val_nll(self) -> float:
        """Returns the NLL of the validation rows under the flow so far, in nats, on standardised columns."""
        return float(self.val_rows().mean()) + gaussian_constant(self.val)

    def val_rows(self) -> Tensor:
        """Returns the NLL of every validation row but for the Gaussian's constant, in float64 with shape (N_val,)."""
        return (0.5 * self.val.square().sum(1) - self.val_logdet).double()


@torch.no_grad()
def push_rows(block: Trainable, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns images (N, d) and logdets (N,) of rows x (N, d), context (N, c), on the block's refined grid."""
    pushed = [block(*rows, block.grid.refined()) for rows in chunks(x, context)]
    return torch.cat([y for y, _ in pushed]), torch.cat([logdet for _, logdet in pushed])


@torch.no_grad()
def carry_rows(block: Trainable, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Returns the images of `push_rows` without the logdets, which takes half the time."""
    y = empty_beside(x, len(x))
    for there, rows in zip(parts(y, CHUNK), chunks(x, context), strict=True):
        there.copy_(block.carry(*rows, block.grid.refined()))
    return y


def gaussian_constant(x: Tensor) -> float:
    """Returns the constant of the standard Gaussian's NLL for rows x (N, d), d/2 log(2 pi)."""
    return 0.5 * x.shape[1] * math.log(2 * math.pi)


class Batches:
    """Batches of rows in a new order every epoch; the number of an iteration alone determines its batch.

    Arguments:
        rows: Rows, with shape (N, d).
        batch_size: Rows per batch, all if N is less; rows at the end of an epoch that do not fill a batch are dropped.
        seed: Seed of the run.
        block: Number of the block.
        round_number: Number of the round: every round sees the rows in an order of its own.
        context: Conditioning variables of the rows, with shape (N, c).
    """

    def __init__(
        self,
        rows: Tensor,
        batch_size: int,
        seed: int,
        block: int,
        round_number: int = 0,
        context: Tensor | None = None,
    ) -> None:
        self.rows = rows
        self.conditions = context
        self.batch_size = min(batch_size, rows.shape[0])
        self.per_epoch = rows.shape[0] // self.batch_size
        self._seed, self._block, self._round = seed, block, round_number
        self._epoch = -1
        mapped = is_mapped(rows)  # as is their order then
        self._upload = None if mapped else Upload((rows.shape[0],), torch.long, rows.device, EPOCHS_AHEAD)
        self._order = rows if self._upload is None else self._upload.there  # none yet

    def __call__(self, iteration: int) -> Tensor:
        """Returns the batch (batch_size, d) of an iteration."""
        return gather(self.rows, self.places(iteration))

    def context(self, iteration: int) -> Tensor | None:
        """Returns the conditioning variables (batch_size, c) of an iteration's batch."""
        return self.at(self.places(iteration))[1]

    def at(self, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the rows (n, d) at places (n,), and their conditioning variables (n, c)."""
        return gather(self.rows, places), None if self.conditions is None else gather(self.conditions, places)

    def places(self, iteration: int) -> Tensor:
        """Returns the places of the rows that are the batch of an iteration, with shape (batch_size,)."""
        epoch, place = divmod(iteration, self.per_epoch)
        if epoch != self._epoch:
            order = permutation(self.rows, generator(self._seed, self._block, epoch, self._round))
            if self._upload is None:
                self._order = order
            else:
                self._upload(order)
            self._epoch = epoch
        places = self._order[place * self.batch_size : (place + 1) * self.batch_size].long()
        release(self._order)
        return places


def generator(seed: int, *counters: int) -> torch.Generator:
    """Returns a random generator on the CPU whose seed is a function of a seed and counters."""
    mixed = np.random.SeedSequence([seed, *counters]).generate_state(2)
    return torch.Generator().manual_seed((int(mixed[0]) << 31) ^ int(mixed[1]))
