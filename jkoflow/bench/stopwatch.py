"""How long something takes: by the clock on the wall, or between two events on a GPU's stream."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import torch

Stopwatch = Callable[[Callable[[], object], int], float]
"""Calls something so many times and returns the seconds that it took."""


def wall_clock(run: Callable[[], object], repeats: int) -> float:
    """Times what is done when its call returns, such as everything on the CPU."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - start


def cuda_events(run: Callable[[], object], repeats: int) -> float:
    """Times what the calls put on the current GPU's current stream, from its first launch to its end."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def in_turn(runs: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Makes one call of several: every time it is called, the next of them runs."""
    endless = itertools.cycle(runs)
    return lambda: next(endless)()
