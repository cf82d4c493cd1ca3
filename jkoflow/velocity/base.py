"""The protocol of a velocity, which a block asks of any network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from jkoflow.velocity.field import MLPField, stacked


class Velocity(nn.Module, ABC):
    r"""A velocity field v(x, t, context) that a `jkoflow.Block` can be made of, trained with and saved with.

    A field of your own derives from it. What is needed is ``dim``, ``context_dim`` and the four abstract methods; it
    then runs through its `forward`, with the divergence by autograd. If it is an MLP behind its own names, `field`
    returns its weights (`jkoflow.velocity.MLPField`), or `field_at` those at one time, and the divergence comes from
    them; together with `unfused`, which is None where there is a field. To read saved flows, add the class to
    `jkoflow.velocity.KINDS` under the ``"kind"`` that `describe` gives. `jkoflow.integrate` takes any callable, so
    nothing of this is needed for integrating alone.

    Example:
        A spiral, :math:`v(x) = r (x_2, -x_1) - a x`, with two parameters:

        >>> class Spiral(jkoflow.velocity.Velocity):
        ...     dim, context_dim = 2, 0
        ...
        ...     def __init__(self, speed=1.0, pull=0.1):
        ...         super().__init__()
        ...         self.arguments = {"speed": speed, "pull": pull}
        ...         self.rates = torch.nn.Parameter(torch.tensor([speed, pull]))
        ...
        ...     def forward(self, x, t=0.0, context=None):
        ...         turned = torch.stack([x[..., 1], -x[..., 0]], dim=-1)
        ...         return self.rates[0] * turned - self.rates[1] * x
        ...
        ...     def describe(self):
        ...         return {"kind": "spiral", **self.arguments}
        ...
        ...     @torch.no_grad()
        ...     def scale_output(self, factor):
        ...         self.rates.mul_(factor)
        ...
        ...     def work(self):
        ...         return 6.0
        >>> spiral = Spiral(pull=0.5)  # whose divergence is -1 everywhere
        >>> _, logdet, _ = jkoflow.integrate(spiral, torch.randn(3, 2), backend="reference")
        >>> torch.allclose(logdet, torch.full((3,), -1.0))
        True
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

    def field_at(self, t: float | Tensor) -> MLPField | None:
        """Returns the weights at one time t, for a velocity whose whole matrices depend on it and which has no `field`.

        None if only `forward` can evaluate it. The weights do not depend on t any more: ``time`` is False.

        Raises:
            ValueError: If the velocity has been changed since it was built.
        """
        return None

    def fields_at(self, times: Tensor) -> MLPField | None:
        """Returns the weights at several times (N,) at once: those of `field_at`, with a leading axis of N.

        An integration asks for the weights of all its stages together, so that a velocity that makes them in one call
        saves time by a method of its own.

        Raises:
            ValueError: If the velocity has been changed since it was built.
        """
        fields = [field for field in map(self.field_at, times) if field is not None]
        return stacked(fields) if len(fields) == len(times) else None

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
