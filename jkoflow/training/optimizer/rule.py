"""The protocol of an update rule: what becomes of some of the parameters, given their gradient."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Rule(Protocol):
    """Protocol of an update rule for a part of the vector of parameters."""

    memory: dict[str, Tensor]
    """What the rule has gathered from the gradients so far, by name; it is changed in place."""

    def step(self, parameters: Tensor, gradient: Tensor, rate: float, updates: int) -> None:
        """Updates the parameters in place, without waiting for the device.

        Arguments:
            parameters: This part of the vector of parameters, with shape (Q,).
            gradient: Gradient, with shape (Q,), which is left as it is.
            rate: Step length.
            updates: Number of updates, this one included.
        """
        ...
