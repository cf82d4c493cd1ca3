"""What an iteration of training costs on a GPU: python gpu_train.py OUT.json, where jkoflow can be imported.

`jkoflow.train` runs on the gas-turbine data as it does for a user, without validation in between. It is watched through
its progress, which is told of every few iterations right after the device has been waited for: some iterations under
torch.profiler, which counts launches and waits, and then some by the clock alone. Graphs, whose kernels are one launch,
count as one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import jkoflow
from jkoflow.data import gasturbine
from jkoflow.training.progress import Silent

BATCHES = (250, 4096)
WARM_UP, PROFILED, TIMED = 30, 100, 400
"""Numbers of iterations: before, under the profiler, by the clock."""

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch")
COPIES = ("cudaMemcpy", "cudaMemset", "cuMemcpy", "cuMemset")
WAITS = ("Synchronize",)


class Done(Exception):  # noqa: N818 (no error)
    """Raised to end a training that has been measured."""


class Watch(Silent):
    """The progress of a training that is measured."""

    def __init__(self, cuda: bool = True) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if cuda:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(activities=activities)
        self.begun: tuple[str, int, float] = ("", 0, 0.0)
        self.profiled = self.timed = 0
        self.seconds = 0.0

    def update(self, block: int, iteration: int, terms: Mapping[str, float]) -> None:
        """Begins and ends what is measured."""
        what, since, at = self.begun
        if not what and iteration >= WARM_UP:
            self.profiler.start()
            self.begun = ("profile", iteration, 0.0)
        elif what == "profile" and iteration >= since + PROFILED:
            self.profiler.stop()
            self.profiled = iteration - since
            self.begun = ("rest", iteration, 0.0)
        elif what == "rest":  # the profiler's end is not part of what is timed
            self.begun = ("time", iteration, time.perf_counter())
        elif what == "time" and iteration >= since + TIMED:
            self.seconds, self.timed = time.perf_counter() - at, iteration - since
            raise Done

    def figures(self, batch: int) -> dict[str, Any]:
        """Returns what was found, each for one iteration."""
        averages = self.profiler.key_averages()
        # names that PyTorch gives to parts of the program span the kernels within
        device = [event for event in averages if event.device_type.name == "CUDA" and not event.is_user_annotation]
        calls = {event.key: event.count / self.profiled for event in averages if event.key.startswith(("cuda", "cu"))}
        busy = sum(event.self_device_time_total for event in device) / self.profiled
        elapsed = 1e6 * self.seconds / self.timed

        def count(names: tuple[str, ...]) -> float:
            return sum(number for name, number in calls.items() if any(part in name for part in names))

        return {
            "batch": batch,
            "us_an_iteration": elapsed,
            "rows_a_second": 1e6 * batch / elapsed,
            "gpu_us": busy,
            "gpu_busy_share": busy / elapsed,
            "launches": count(LAUNCHES),
            "copies": count(COPIES),
            "waits": count(WAITS),
            "kernels": sum(event.count for event in device) / self.profiled,
            "calls": calls,
        }


def measure(batch: int, device: str = "cuda") -> dict[str, Any]:
    """Trains for as long as the measurement takes; returns its figures."""
    watch = Watch(cuda=device != "cpu")
    config = jkoflow.TrainConfig(
        device=device,
        batch_size=batch,
        initial_map="whiten",
        first_layer_scale=1.0,
        hidden=(128, 128),
        num_steps=3,
        max_blocks=1,
        iterations_per_block=2 * (WARM_UP + PROFILED + TIMED),
        validate_every=10**6,
        guard_every=10**6,
    )
    try:
        jkoflow.train(gasturbine(), config, progress=watch)
    except Done:
        return watch.figures(batch)
    raise SystemExit(f"the training ended before it was measured ({watch.begun[0] or 'warm-up'})")


def main() -> None:
    """Measures the batch sizes in turn and writes the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file for the results")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"batches": []}
    for batch in BATCHES:
        found["batches"].append(entry := measure(batch))
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
        print({name: value for name, value in entry.items() if name != "calls"}, flush=True)


if __name__ == "__main__":
    sys.exit(main())
