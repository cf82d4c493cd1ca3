"""The floor: the rate that this machine's CPU reaches in a large square product of the faster library.

No vendor's library is fast on every vendor's processors, so more than one is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from jkoflow.bench.stopwatch import wall_clock
from jkoflow.bench.timing import Rounds, Timer, median
from jkoflow.data import require

SIZE = 2048
FLOPS = 2 * SIZE**3
"""Number of floating-point operations of one product."""


def timers() -> dict[str, Timer]:
    """Makes timers of products of two float32 matrices of `SIZE`, by library, with as many threads as torch has then.

    Raises:
        MissingExtraError: If threadpoolctl is not installed.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=generator) for _ in range(2))
    out = torch.empty_like(a)
    return {"torch.mm": partial(wall_clock, lambda: torch.mm(a, b, out=out)), "numpy.matmul": _numpy_timer(a, b)}


def _numpy_timer(a: torch.Tensor, b: torch.Tensor) -> Timer:
    pools: Any = require("threadpoolctl", "the floor", "bench").ThreadpoolController()
    left, right, out = a.numpy(), b.numpy(), np.empty((SIZE, SIZE), dtype=np.float32)

    def timer(repeats: int) -> float:
        with pools.limit(limits=torch.get_num_threads(), user_api="blas"):
            return wall_clock(lambda: np.matmul(left, right, out=out), repeats)

    return timer


def gflops(times: Mapping[str, Rounds], products: Mapping[str, Timer]) -> dict[str, float]:
    """Computes the rate of each product from the seconds of all that was timed."""
    return {name: FLOPS / median(times[name]) / 1e9 for name in products}


def fastest(times: Mapping[str, Rounds], products: Mapping[str, Timer]) -> Rounds:
    """Returns the seconds of the faster product from the seconds of all that was timed."""
    return min((times[name] for name in products), key=median)
