"""The velocity fields that blocks are made of: a protocol, and one file for each kind of network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jkoflow.velocity.base import Velocity
from jkoflow.velocity.field import GATES, MLPField, Modulation
from jkoflow.velocity.hyper import HyperMLP
from jkoflow.velocity.mlp import MLPVelocity
from jkoflow.velocity.modulated import ConcatSquashMLP, FourierTimeMLP
from jkoflow.velocity.residual import ResidualMLP

__all__ = [
    "GATES",
    "KINDS",
    "ConcatSquashMLP",
    "FourierTimeMLP",
    "HyperMLP",
    "MLPField",
    "MLPVelocity",
    "Modulation",
    "ResidualMLP",
    "Velocity",
    "from_description",
]

KINDS: dict[str, type[Velocity]] = {
    "mlp": MLPVelocity,
    "concat-squash": ConcatSquashMLP,
    "fourier-time": FourierTimeMLP,
    "residual": ResidualMLP,
    "hyper": HyperMLP,
}
"""The kinds of velocity by the name under which they are saved."""


def from_description(description: Mapping[str, Any]) -> Velocity:
    """Builds a velocity with fresh parameters from what `Velocity.describe` returned.

    Arguments:
        description: The constructor's arguments by name and, under ``"kind"``, a name from `KINDS`; files of version
            0.1 have no ``"kind"``, which means ``"mlp"``.

    Raises:
        ValueError: If the kind is not known, or an argument is out of its range.
        TypeError: If an argument is missing or unknown.
    """
    arguments = dict(description)
    kind = arguments.pop("kind", "mlp")
    if kind not in KINDS:
        raise ValueError(f"velocity kind must be one of {', '.join(KINDS)}, got {kind!r}; upgrade jkoflow to read it")
    return KINDS[kind](**arguments)
