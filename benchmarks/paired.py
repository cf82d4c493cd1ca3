"""Timing in paired rounds: every round runs each candidate, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import jkoflow
from jkoflow.environment import cpu_model
from jkoflow.ops import native


def rounds(candidates: Mapping[str, Callable[[], object]], count: int, seconds: float) -> dict[str, list[float]]:
    """Times candidates in turn.

    Arguments:
        candidates: What to run, by name.
        count: Number of rounds.
        seconds: Time that each candidate gets in a round; it runs as often as fits, at least once.

    Returns:
        Seconds per call, one value a round, by name.
    """
    repeats = {}
    for name, run in candidates.items():
        run()
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, round(seconds / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(count):
        for name, run in candidates.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def environment() -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    return {
        "jkoflow": jkoflow.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "isa": native.capabilities()["isa"],
        "processor": cpu_model(),
        "allocator": {k: v for k, v in os.environ.items() if k.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))},
    }


def write(results: Any, out: str | None) -> None:
    """Writes figures with their environment as JSON, if a file is wanted."""
    if out is not None:
        Path(out).write_text(json.dumps({"environment": environment(), "results": results}, indent=2) + "\n")
