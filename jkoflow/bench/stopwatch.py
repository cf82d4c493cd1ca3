"""The timing of calls: by the wall clock, or between two events on a GPU's stream."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import torch

Stopwatch = Callable[[Callable[[], object], int], float]
"""Function that makes a call a number of times and returns the seconds that they took."""


def wall_clock(run: Callable[[], object], repeats: int) -> float:
    """Times calls whose work is done when they return, as all work on the CPU is."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - start


def cuda_events(run: Callable[[], object], repeats: int) -> float:
    """Times the work that calls put on the current GPU's current stream, from the first launch to the end."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def in_turn(runs: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Returns a function that runs the next of several functions at every call."""
    endless = itertools.cycle(runs)
    return lambda: next(endless)()
