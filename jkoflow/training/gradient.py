"""The gradient of a batch, of which every process has the rows that it holds, and what all of them make of it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from jkoflow.training.chain import Trainable
from jkoflow.training.objectives import JKO, TERMS
from jkoflow.training.optimizer import Optimizer
from jkoflow.training.pushed import Batches
from jkoflow.training.world import World

NUMBERS = 1 + len(TERMS)
"""Count of the loss and its terms, which are added up with the gradients."""


def take_gradient(
    world: World, optimizer: Optimizer, objective: JKO, block: Trainable, batches: Batches, places: Tensor
) -> list[Tensor]:
    """Makes the gradient of an optimiser that of the loss of a batch.

    Arguments:
        world: The processes, each of which makes this call.
        optimizer: The optimiser of the block's parameters.
        objective: The objective of the block.
        block: The block or chain.
        batches: The batches.
        places: Places of the batch's rows that this process holds, with shape (n,), which may be none.

    Returns:
        The loss of the batch and its terms, tensors without axes that the next gradient may overwrite.
    """
    if world.size == 1:
        terms = objective.terms(block, *batches.at(places))
        optimizer.differentiate(terms.total)
        return [term.detach() for term in terms]
    numbers = optimizer.gradient_and_tail[len(optimizer.gradient) :][:NUMBERS]
    if len(places):
        share = len(places) / batches.batch_size  # means over parts of a batch are parts of its mean
        terms = objective.terms(block, *batches.at(places))
        optimizer.differentiate(terms.total * share)
        numbers.copy_(torch.stack([term.detach() for term in terms])).mul_(share)
    else:
        optimizer.gradient_and_tail.zero_()
    world.update(optimizer.gradient_and_tail)
    return list(numbers)


def check_alike(world: World, optimizer: Optimizer, best: Tensor, index: int) -> None:
    """Refuses to go on if the processes have trained different parameters.

    Arguments:
        world: The processes, each of which makes this call.
        optimizer: The optimiser, with the present parameters.
        best: The best parameters, with shape (P,).
        index: Number of the block.

    Raises:
        jkoflow.training.ranks.DriftError: If they have.
    """
    world.check_same(
        lambda: hashlib.sha256(torch.cat([optimizer.parameters, best]).cpu().numpy().data).hexdigest(),
        f"the parameters of block {index} must be the same in all processes of a training: run them on processors of "
        "one kind, with the same versions and as many threads",
    )
