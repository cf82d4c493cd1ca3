"""One run in a process of its own, which loads, trains, measures and writes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fixed_budget import settings
from fixed_budget.cost_to_use import cost_to_use
from fixed_budget.evaluate import evaluate
from fixed_budget.methods import train
from fixed_budget.model import Model
from fixed_budget.problem import Problem, load
from fixed_budget.trained import Point
from jkoflow import checkpoint
from jkoflow.bench.allocator import keep_freed_memory
from jkoflow.checkpoint import finite
from jkoflow.environment import describe
from jkoflow.training import TrainConfig
from jkoflow.training.world import Clock

FORMAT = 1
CURVE_POINTS = 40

CLOCKS: dict[str, Clock] = {"processor": time.process_time, "wall": time.monotonic}
"""The clocks by their names in records."""


@dataclass(frozen=True)
class Job:
    """The arguments of one run.

    Arguments:
        source: Data, see `fixed_budget.problem.load`.
        method: One of `fixed_budget.methods.METHODS`.
        seed: Seed of the training.
        budget: Seconds of training.
        threads: Number of PyTorch's threads.
        learning_rate: Learning rate in place of the settings'; None means that of the settings.
        test: Whether to measure on the test rows; a search for settings must not.
        changes: Settings of `TrainConfig` in place of the defaults, and ``ensemble``, a number of flows to mix. A
            mixture is measured on the validation rows alone.
        label: Name of the changes, for records.
    """

    source: str
    method: str
    seed: int
    budget: float
    threads: int = 1
    learning_rate: float | None = None
    test: bool = True
    changes: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def clock(self) -> str:
        """Returns the name of the one of `CLOCKS` that measures the budget.

        With one thread it is the process's own time on the processor, whatever else the machine does: it equals the
        wall clock of an idle core. With more threads their times would add up.
        """
        return "processor" if self.threads == 1 else "wall"


def run(job: Job, config: TrainConfig = TrainConfig()) -> dict[str, Any]:  # noqa: B008 (frozen)
    """Runs a job in this process and returns its record."""
    torch.set_num_threads(job.threads)
    changes = dict(job.changes)
    members = changes.pop("ensemble", 1)
    config = dataclasses.replace(config, **changes)
    problem = load(job.source)
    chosen = settings.of(job.method, problem.name, job.budget)
    tuned = settings.tuned_at(job.method, problem.name, job.budget)
    if job.learning_rate is not None:
        chosen["learning_rate"], tuned = job.learning_rate, None
    result = train(job.method, problem, chosen, job.budget, job.seed, config, members, CLOCKS[job.clock])
    return {
        "format": FORMAT,
        "data": problem.name,
        "method": job.method,
        "seed": job.seed,
        **({"label": job.label} if job.label else {}),
        "budget": job.budget,
        "threads": job.threads,
        "clock": job.clock,
        "settings": chosen,
        **({} if tuned is None else {"rate_tuned_at": tuned}),
        "batch_size": min(chosen.get("batch_size", config.batch_size), len(problem.train)),
        "dim": problem.dim,
        "train_rows": len(problem.train),
        "sum_log_std": problem.sum_log_std,
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "batches": result.batches,
        "train_seconds": result.seconds,
        "seconds_per_batch": result.seconds / max(result.batches, 1),
        "peak_memory_mib": result.memory,
        "val_nll": result.val_nll,
        "events": result.events,
        **result.extra,
        **(_measured(result.model, problem) if job.test and members == 1 else {}),
        "curve": [[round(p.seconds, 2), p.batches, p.nll] for p in thinned(result.curve)],
    }


def _measured(model: Model, problem: Problem) -> dict[str, Any]:
    found = evaluate(model, problem)
    return found | cost_to_use(model, problem, found["level"])


def thinned(points: list[Point], limit: int = CURVE_POINTS) -> list[Point]:
    """Returns at most ``limit`` points, evenly spread, with the first and the last."""
    if len(points) <= limit:
        return points
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]


def write(job: Job, path: Path) -> None:
    """Runs a job and writes its record with its environment, whole or not at all."""
    allocator = keep_freed_memory()
    record = run(job)
    record["environment"] = describe() | {"allocator": allocator}
    checkpoint.write_atomically(path, (json.dumps(finite(record), indent=1) + "\n").encode())
