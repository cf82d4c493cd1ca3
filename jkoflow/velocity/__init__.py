"""The velocity fields that blocks are made of: a protocol, and one file for each kind of network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jkoflow.velocity.base import Velocity
from jkoflow.velocity.field import MLPField
from jkoflow.velocity.mlp import MLPVelocity

__all__ = ["KINDS", "MLPField", "MLPVelocity", "Velocity", "from_description"]

KINDS: dict[str, type[Velocity]] = {"mlp": MLPVelocity}
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
