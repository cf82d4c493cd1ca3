"""The settings of a benchmark: what is measured, on which device, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from jkoflow.bench.peers import LIBRARIES
from jkoflow.bench.shapes import CUDA_SHAPES, SHAPES, Shape

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "cpu": {},
    "cuda": {"shapes": CUDA_SHAPES, "budget": 0.02, "memory": False, "seconds": 480.0},
}
"""Defaults on each type of device that differ from the defaults of `Settings`."""

QUICK: Mapping[str, Any] = {"rounds": 3, "budget": 0.02, "memory": False}


@dataclass(frozen=True)
class Settings:
    """The settings of a benchmark.

    Arguments:
        shapes: Sizes that are measured.
        libraries: Names of `jkoflow.bench.peers.LIBRARIES`; jkoflow is always among them.
        threads: Number of threads of every peer.
        rounds: Number of rounds of measurements; figures are medians.
        budget: Seconds of each candidate in a round.
        compiled: Whether to measure peers that ``torch.compile`` compiles.
        memory: Whether to measure the memory that training takes on the CPU.
        device: Device of the tensors: "cpu", "cuda" or "cuda:1"; peers that need the CPU are left out on a GPU.
        seconds: Seconds after which no measurement is started; None for no limit.

    Raises:
        ValueError: If a number is not positive, or a library or a device is not known.
    """

    shapes: tuple[Shape, ...] = SHAPES
    libraries: tuple[str, ...] = LIBRARIES
    threads: int = field(default_factory=torch.get_num_threads)
    rounds: int = 7
    budget: float = 0.1
    compiled: bool = False
    memory: bool = True
    device: str = "cpu"
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ValueError("shapes must name at least one shape, got none")
        unknown = [name for name in self.libraries if name not in LIBRARIES]
        if unknown:
            raise ValueError(f"peers must be among {', '.join(LIBRARIES)}, got {', '.join(unknown)}")
        for name in ("threads", "rounds", "budget", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        device_type(self.device)

    @classmethod
    def on(cls, device: str, quick: bool = False, **given: Any) -> Self:
        """Returns the settings for a device.

        Arguments:
            device: Name of the device.
            quick: Whether one shape and three short rounds are enough, unless something else is given.
            given: Settings that differ from the defaults.

        Raises:
            ValueError: If `Settings` refuses a value.
        """
        defaults = dict(DEFAULTS[device_type(device)])
        if quick:
            defaults |= {"shapes": defaults.get("shapes", SHAPES)[:1], **QUICK}
        return cls(**{**defaults, **given}, device=device)


def device_type(name: str) -> str:
    """Returns the type of a device, "cpu" or "cuda".

    Raises:
        ValueError: If the name is not one that a benchmark can run on.
    """
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in DEFAULTS:
        raise ValueError(f"device must be cpu, cuda or the index of a GPU such as cuda:1, got {name!r}")
    return kind
