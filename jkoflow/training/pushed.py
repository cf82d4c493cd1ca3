"""The pushed samples: the data carried through the blocks trained so far, in standardised units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from jkoflow.block import Block
from jkoflow.mapped import empty_beside, gather, is_mapped, parts, permutation, release, select
from jkoflow.metrics import CHUNK, Movement, chunks, movement, spread_numbers
from jkoflow.training.chain import Trainable
from jkoflow.training.place import Place
from jkoflow.training.upload import Upload
from jkoflow.training.world import World

EPOCHS_AHEAD = 2
"""Orders of rows that the CPU may be ahead of a GPU."""


@dataclass
class PushedSamples:
    """The positions of training and validation rows before the next block.

    Only the present positions are kept, so that memory does not grow with the number of blocks. Of several processes
    each holds, and carries, a part of the training rows; the validation rows are held by all, and each carries a part.

    Arguments:
        train: Training rows of this process, with shape (N, d).
        val: Validation rows, with shape (N_val, d).
        val_logdet: Logdet of the blocks so far for the validation rows, without standardisation, with shape (N_val,).
        train_context: Standardised conditioning variables of the training rows, with shape (N, c); None without.
        val_context: Standardised conditioning variables of the validation rows, with shape (N_val, c); None without.
        world: The processes that hold the samples.
        place: Which of all training rows those of this process are; None if they are all.
    """

    train: Tensor
    val: Tensor
    val_logdet: Tensor
    train_context: Tensor | None = None
    val_context: Tensor | None = None
    world: World = field(default_factory=World)
    place: Place | None = None

    @property
    def rows(self) -> int:
        """Returns the number of training rows of all processes."""
        return len(self.train) if self.place is None else self.place.total

    def push(self, block: Trainable) -> Movement:
        """Carries the samples through a finished block and returns its movement over the training rows.

        A grid finer than that of the training is used: the next block should start from where the flow's ODE
        takes the samples, not from the integrator's error.
        """
        before = self.train
        self.train = carry_rows(block, self.train, self.train_context)
        self.push_val(block)
        return self.moved(before)

    def moved(self, before: Tensor) -> Movement:
        """Returns the movement of the training rows from where those of this process (N, d) were."""
        return movement(before, self.train, self.world.sums if self.world.size > 1 else None)

    def push_val(self, block: Trainable) -> None:
        """Carries the validation rows alone through a finished block."""
        self.val, increment = self.val_images(block)
        self.val_logdet = self.val_logdet + increment

    def val_images(self, block: Trainable) -> tuple[Tensor, ...]:
        """Returns images (N_val, d) and logdets (N_val,) of the validation rows, see `push_rows`."""
        return self.world.share_out(partial(push_rows, block), self.val, self.val_context)

    def carry_val(self, block: Trainable) -> Tensor:
        """Returns the images (N_val, d) of the validation rows, see `carry_rows`."""

        def carry(x: Tensor, context: Tensor | None) -> tuple[Tensor]:
            return (carry_rows(block, x, context),)

        return self.world.share_out(carry, self.val, self.val_context)[0]

    def push_through(self, blocks: Sequence[Block]) -> list[float]:
        """Carries the samples through finished blocks, sets their movements and returns their standard errors."""
        moved = [self.push(block) for block in blocks]
        for block, measured in zip(blocks, moved, strict=True):
            block.movement = measured.value
        return [measured.stderr for measured in moved]

    def keep(self, count: int, *counters: int) -> None:
        """Keeps a random choice of ``count`` of all training rows, the same for the same counters."""
        if count >= self.rows:
            return
        if self.place is not None:
            order = torch.randperm(self.rows, generator=generator(*counters))
            numbers, self.place = self.place.chosen(order[:count].sort().values)
            chosen = torch.zeros(len(self.train), dtype=torch.bool)
            chosen[numbers] = True
        else:
            order = permutation(self.train, generator(*counters))
            chosen = torch.zeros(len(self.train), dtype=torch.bool)
            for some in parts(order[:count]):
                chosen[some.long()] = True
        self.train = select(self.train, chosen)
        self.train_context = None if self.train_context is None else select(self.train_context, chosen)

    def batches(self, batch_size: int, seed: int, block: int, round_number: int) -> Batches:
        """Returns the batches of the training rows for a block in a round."""
        return Batches(self.train, batch_size, seed, block, round_number, self.train_context, self.place)

    def spread(self, limit: int) -> tuple[Tensor, Tensor | None]:
        """Returns at most ``limit`` evenly spread ones of all training rows, and their context; all rows if alone."""
        if self.place is None:
            return self.train, self.train_context
        numbers = self.place.own(spread_numbers(self.rows, limit)).to(self.train.device)
        context = None if self.train_context is None else self.world.gathered(self.train_context[numbers])
        return self.world.gathered(self.train[numbers]), context

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
        place: Which of all rows these are, if other processes hold the others. A batch is then of all rows, the same as
            one process would have, and what is returned is the part of it that is of these rows.
    """

    def __init__(
        self,
        rows: Tensor,
        batch_size: int,
        seed: int,
        block: int,
        round_number: int = 0,
        context: Tensor | None = None,
        place: Place | None = None,
    ) -> None:
        self.rows = rows
        self.conditions = context
        self._count = rows.shape[0] if place is None else place.total
        self.batch_size = min(batch_size, self._count)
        self.per_epoch = self._count // self.batch_size
        self._seed, self._block, self._round = seed, block, round_number
        self._epoch = -1
        self._place = place
        self._ends: list[int] = []  # of the parts of an epoch's batches, if other processes hold the others
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
            random = generator(self._seed, self._block, epoch, self._round)
            if self._place is None:
                order = permutation(self.rows, random)
            else:
                order = self._own(torch.randperm(self._count, generator=random), self._place)
            if self._upload is None:
                self._order = order
            else:
                self._upload(order)
            self._epoch = epoch
        if self._place is not None:
            return self._order[self._ends[place] : self._ends[place + 1]]
        places = self._order[place * self.batch_size : (place + 1) * self.batch_size].long()
        release(self._order)
        return places

    def _own(self, order: Tensor, place: Place) -> Tensor:
        """Returns these rows in the order of all rows (N,), and notes where the parts of the batches end."""
        counts = place.holds(order).cumsum(0)[self.batch_size - 1 :: self.batch_size]
        self._ends = [0, *counts[: self.per_epoch].tolist()]
        return place.own(order)


def generator(seed: int, *counters: int) -> torch.Generator:
    """Returns a random generator on the CPU whose seed is a function of a seed and counters."""
    mixed = np.random.SeedSequence([seed, *counters]).generate_state(2)
    return torch.Generator().manual_seed((int(mixed[0]) << 31) ^ int(mixed[1]))
