"""Integrands that keep the paths of a continuous flow straight and its field smooth, a number for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Point(NamedTuple):
    """The field at one time, and where it has been evaluated."""

    field: Callable[..., Tensor]
    """The velocity as a function of x, t and context."""
    x: Tensor
    """Positions, with shape (N, d)."""
    t: float | Tensor
    context: Tensor | None
    velocity: Tensor
    """The velocity there, with shape (N, d)."""
    noise: Tensor | None
    """A probe of the Jacobian, with shape (N, d), where a regularizer needs one."""

    def directional(self, direction: Tensor) -> Tensor:
        """Returns the Jacobian of the velocity times a direction (N, d), to be differentiated once more by autograd."""
        return torch.func.jvp(lambda x: self.field(x, self.t, self.context), (self.x,), (direction,))[1]


def kinetic(point: Point) -> Tensor:
    r"""Returns :math:`|v|^2`, whose integral is the cost of transport."""
    return point.velocity.square().sum(1)


def jacobian(point: Point) -> Tensor:
    r"""Returns :math:`|J e|^2` of the probe e, which is :math:`|J|_F^2` in the mean over probes."""
    assert point.noise is not None
    return point.directional(point.noise).square().sum(1)


def frobenius(point: Point) -> Tensor:
    r"""Returns :math:`|J|_F^2` itself, by d directions."""
    columns = torch.eye(point.x.shape[1], dtype=point.x.dtype, device=point.x.device)
    return sum((point.directional(column.expand_as(point.x)).square().sum(1) for column in columns), torch.zeros(()))


REGULARIZERS: dict[str, Callable[[Point], Tensor]] = {"kinetic": kinetic, "jacobian": jacobian, "frobenius": frobenius}
"""The regularizers by name."""
