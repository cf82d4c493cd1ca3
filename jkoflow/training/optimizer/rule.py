"""The protocol of an update rule: what becomes of some of the parameters, given their gradient."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Rule(Protocol):
    """Protocol of an update rule for a part of the vector of parameters.

    It is made for this part and for that of the gradient, and keeps views of both.
    """

    memory: dict[str, Tensor]
    """What the rule has gathered from the gradients so far, by name; it is changed in place."""

    def step(self, rate: float, updates: int) -> None:
        """Updates the parameters in place, without waiting for the device.

        Arguments:
            rate: Step length.
            updates: Number of updates, this one included.
        """
        ...
