"""The protocol of an update rule: what becomes of some of the parameters, given their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from jkoflow.training.optimizer.factors import Factor


class Rule(Protocol):
    """Protocol of an update rule for a part of the vector of parameters.

    It is made for this part and for that of the gradient, and keeps views of both.
    """

    memory: dict[str, Tensor]
    """What the rule has gathered from the gradients so far, by name; it is changed in place."""

    def factors(self, rate: float, updates: int) -> tuple[float, ...]:
        """Returns all numbers of an update that depend on its rate or number, as many in every update.

        Arguments:
            rate: Step length.
            updates: Number of updates, this one included.
        """
        ...

    def refreshes(self, updates: int) -> bool:
        """Tells whether an update does more than most, by calls that a CUDA graph cannot hold."""
        ...

    def step(self, factors: Sequence[Factor], refresh: bool) -> None:
        """Updates the parameters in place, without waiting for the device.

        Arguments:
            factors: The numbers of `factors`.
            refresh: What `refreshes` tells of the update.
        """
        ...
