"""The ceilings: the rates that a GPU reaches in a large matrix product of cuBLAS on each of its units."""

from __future__ import annotations

from functools import partial

import torch

from jkoflow.bench import tf32
from jkoflow.bench.stopwatch import Stopwatch
from jkoflow.bench.timing import median, rounds

SIZE = 8192
UNITS = ("fp32", "tf32")
"""Units that can run a product of float32 matrices: FMA, or tensor cores that round the factors to TF32."""

ROUNDS, BUDGET = 7, 0.04
"""Number of rounds of each product, and seconds of a round."""


def rates(device: torch.device, stopwatch: Stopwatch, size: int = SIZE) -> dict[str, float]:
    """Measures the product of two float32 matrices on each unit.

    Arguments:
        device: Device of the matrices.
        stopwatch: Function that times work on this device.
        size: Number of rows and of columns of the matrices.

    Returns:
        GFLOP/s by unit.
    """
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    out = torch.empty_like(a)
    found = {}
    for unit in UNITS:
        with tf32.products(unit == "tf32"):
            timer = partial(stopwatch, lambda: torch.mm(a, b, out=out))
            times = rounds({unit: timer}, ROUNDS, BUDGET, pause=None)[unit]
        found[unit] = 2 * size**3 / median(times) / 1e9
    return found
