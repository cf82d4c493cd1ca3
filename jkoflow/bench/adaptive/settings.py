"""The settings of the group "adaptive"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from jkoflow.bench.adaptive.cases import CASES
from jkoflow.bench.adaptive.rivals import RIVAL_LIBRARIES

QUICK: Mapping[str, Any] = {"cases": tuple(CASES)[:1], "rounds": 3, "budget": 0.02, "rows": 64}


@dataclass(frozen=True)
class AdaptiveSettings:
    """The settings of the group "adaptive".

    Arguments:
        cases: Names of `jkoflow.bench.adaptive.cases.CASES` that are measured.
        libraries: Names of `RIVAL_LIBRARIES`; jkoflow is always measured.
        threads: Number of threads of everybody.
        rounds: Number of rounds of measurements; figures are medians.
        budget: Seconds of each candidate in a round.
        compiled: Whether to measure peers that ``torch.compile`` compiles.
        seconds: Seconds after which no case is started; None for no limit.
        rows: Rows of every batch; None for the published numbers.

    Raises:
        ValueError: If a number is not positive, or a case or a library is not known.
    """

    cases: tuple[str, ...] = tuple(CASES)
    libraries: tuple[str, ...] = RIVAL_LIBRARIES
    threads: int = field(default_factory=torch.get_num_threads)
    rounds: int = 7
    budget: float = 0.1
    compiled: bool = False
    seconds: float | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        for name, given, known in (("cases", self.cases, CASES), ("peers", self.libraries, RIVAL_LIBRARIES)):
            unknown = [value for value in given if value not in known]
            if unknown:
                raise ValueError(f"{name} must be among {', '.join(known)}, got {', '.join(unknown)}")
        if not self.cases:
            raise ValueError(f"cases must name at least one of {', '.join(CASES)}, got none")
        for name in ("threads", "rounds", "budget", "seconds", "rows"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    @classmethod
    def of(cls, quick: bool = False, **given: Any) -> Self:
        """Returns the settings that are given, on one case with few rows and short rounds if they shall be quick.

        Raises:
            ValueError: If a value is refused.
        """
        return cls(**{**(QUICK if quick else {}), **given})
