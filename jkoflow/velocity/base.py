"""The protocol of a velocity, which a block asks of any network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from jkoflow.velocity.field import MLPField


class Velocity(nn.Module, ABC):
    """A velocity field v(x, t, context) that a `jkoflow.Block` can be made of, trained with and saved with.

    A new kind of network derives from it and is added to `jkoflow.velocity.KINDS`, under whose name its description is
    saved. `jkoflow.integrate` takes any callable, so nothing of this is needed for integrating alone.
    """

    dim: int
    """Number d of features of x."""
    context_dim: int
    """Number c of conditioning variables; 0 without context."""

    @abstractmethod
    def forward(self, x: Tensor, t: float | Tensor = 0.0, context: Tensor | None = None) -> Tensor:
        """Evaluates the velocity (*, d) at positions x (*, d), times t that broadcast to (*) and context (*, c)."""

    def field(self) -> MLPField | None:
        """Returns the weights of the velocity for the fused kernels; None if only `forward` can evaluate it.

        Raises:
            ValueError: If the velocity has been changed since it was built.
        """
        return None

    def unfused(self) -> str | None:
        """Says why `field` returns None, so that the velocity runs through its `forward`; None if there is a field."""
        return f"{type(self).__name__} has no kernel: its divergence is computed by autograd"

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns everything but the parameters, as JSON values: `jkoflow.velocity.from_description` reads it."""

    @abstractmethod
    def scale_output(self, factor: float) -> None:
        """Multiplies the velocity by a factor, in its last layer alone; the hidden layers keep their parameters."""

    @abstractmethod
    def work(self) -> float:
        """Returns about how many floating-point operations v and its exact divergence take at one point."""
