"""Which rule updates which parameters of a block or chain, at which rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from jkoflow.training.chain import Trainable, blocks_of
from jkoflow.training.optimizer.rates import PeakRates
from jkoflow.velocity import MLPVelocity, Velocity


class Group(NamedTuple):
    """Parameters that are updated in the same way."""

    parameters: tuple[nn.Parameter, ...]
    """The parameters, matrices of one shape side by side, since neighbours of one shape are computed together."""
    algorithm: str
    """Name of the rule, one of `jkoflow.training.optimizer.OPTIMIZERS`."""
    rate: float
    """Peak step length."""
    decay: float = 0.0
    """Weight decay: every update first multiplies the parameters by 1 - rate * decay."""


class Treatment(NamedTuple):
    """How the matrices of a layer are updated, beside the settings."""

    rate_share: float
    """Share of the matrices' rate."""
    decays: bool
    """Whether weight decay applies."""


TREATMENTS = {
    "muon": {
        # decay would take back the sharpness of the first layer, which has to be as fine as the data are
        "first": Treatment(1.0, decays=False),
        "hidden": Treatment(1.0, decays=True),
        # Muon's steps are as long from the first update on, where this layer is 0 and decides alone what the block does
        "output": Treatment(0.25, decays=True),
    },
    "soap": dict.fromkeys(("first", "hidden", "output"), Treatment(1.0, decays=False)),
}
"""How the matrices of the first layer, the output layer and those between them are updated, by optimiser."""


def groups_of(module: Trainable, optimizer: str, rates: PeakRates, weight_decay: float = 0.0) -> list[Group]:
    """Divides the parameters of a block or chain into groups.

    With Muon and SOAP, Adam updates what is no matrix of a layer: biases and the linear term, which has no layer behind
    or before it. Of a velocity that is no `jkoflow.MLPVelocity`, every matrix is one of a hidden layer.

    Arguments:
        module: The block or chain.
        optimizer: Name of the optimiser, one of `jkoflow.training.optimizer.OPTIMIZERS`.
        rates: Peak rates of matrices and vectors.
        weight_decay: Decay of the matrices that `TREATMENTS` has it for.

    Returns:
        The groups, which hold every parameter once.

    Example:
        >>> from jkoflow import Block
        >>> block = Block(MLPVelocity(2, hidden=(8, 8)))
        >>> for group in groups_of(block, "muon", PeakRates(0.02, 0.005), 0.1):
        ...     print(group.algorithm, group.rate, group.decay, [tuple(p.shape) for p in group.parameters])
        muon 0.02 0.0 [(8, 3)]
        muon 0.02 0.1 [(8, 8)]
        muon 0.005 0.1 [(2, 8)]
        adam 0.005 0.0 [(8,), (8,), (2,)]
    """
    parameters = list(dict.fromkeys(module.parameters()))  # tied ones once
    if optimizer not in TREATMENTS:
        return [Group(tuple(parameters), "adam", rates.matrices)]
    places = {parameter: place for block in blocks_of(module) for parameter, place in _matrices(block.velocity)}
    treatments = TREATMENTS[optimizer]
    groups = []
    for treatment in dict.fromkeys(treatments.values()):
        chosen = [p for p in parameters if p in places and treatments[places[p]] == treatment]
        side_by_side = tuple(sorted(chosen, key=lambda parameter: tuple(parameter.shape)))
        decay = weight_decay if treatment.decays else 0.0
        groups.append(Group(side_by_side, optimizer, rates.matrices * treatment.rate_share, decay))
    groups.append(Group(tuple(p for p in parameters if p not in places), "adam", rates.vectors))
    return [group for group in groups if group.parameters]


def _matrices(velocity: Velocity) -> Iterator[tuple[nn.Parameter, str]]:
    """Yields the trained matrices of a velocity's layers, each with the place of its layer."""
    places: dict[nn.Parameter, str | None] = {}
    if isinstance(velocity, MLPVelocity):
        layers = list(velocity.layers.children())
        of_modules = ((layers[0], "first"), (layers[-1], "output"), (velocity.linear, None))
        places = {p: place for part, place in of_modules if part is not None for p in part.parameters()}
    for parameter in velocity.parameters():
        place = places.get(parameter, "hidden")
        if place is not None and parameter.ndim == 2 and parameter.requires_grad:
            yield parameter, place
