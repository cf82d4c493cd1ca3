"""The method of this package: `jkoflow.train` within the budget, and its history as a curve."""

from __future__ import annotations

import tempfile
from typing import Any

from fixed_budget.memory import Peak
from fixed_budget.methods.block_flow import BlockFlow
from fixed_budget.problem import Problem
from fixed_budget.trained import Point, Trained
from jkoflow.data import Dataset
from jkoflow.metrics import training_grid
from jkoflow.training import TrainConfig, train
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.world import Clock

EVALUATION_ROWS = 8
"""Number of test rows for the evaluation in `jkoflow.train`, which the comparison does not use and which costs time."""


def train_blocks(problem: Problem, config: TrainConfig, clock: Clock | None = None) -> Trained:
    """Trains block by block, with the time budget of the configuration.

    The budget of `jkoflow.train` includes an evaluation. With `EVALUATION_ROWS` test rows, next to nothing is reserved
    for it. The result holds the seconds that were spent on training.
    """
    names = tuple(f"x{column}" for column in range(problem.dim))
    data = Dataset(problem.name, problem.train, problem.val, problem.test[:EVALUATION_ROWS], names)
    peak = Peak()
    with tempfile.TemporaryDirectory() as folder:
        flow = train(data, config, run_dir=folder, clock=clock)
        run = RunDirectory(folder)
        history, metrics = run.history(), run.metrics()
    memory = peak.growth()
    return Trained(
        BlockFlow(flow, training_grid(flow)),
        sum(record["iterations"] for record in history if record["event"] == "block"),
        metrics["train_seconds"],
        metrics["val_nll"],
        curve(history),
        [_event(record) for record in history if record["event"] == "guard"],
        {
            "initial_map": metrics["initial_map"],
            "blocks": len(flow.stack),
            "steps_per_block": [block.num_steps for block in flow.stack],
        },
        memory,
    )


def curve(history: list[dict[str, Any]]) -> list[Point]:
    """Returns seconds, batches and validation NLL at every look at the validation rows, in the order of time."""
    points: list[Point] = []
    before, seconds, begun = 0, 0.0, 0.0  # batches of finished blocks; time of the last record; time of finished blocks
    for record in history:
        if record["event"] == "iteration":
            seconds = record["seconds"]
        elif record["event"] == "validation":
            # the loop's records carry the time, those of the validation do not: the last one is at most 10 batches old
            points.append(Point(seconds, before + record["iteration"], record["nll"]))
        elif record["event"] == "block":
            before += record["iterations"]
            begun += record["seconds"]
            seconds = max(seconds, begun)
            points.append(Point(seconds, before, record["val_nll"]))
    return [point for point in points if point.nll is not None]


def _event(record: dict[str, Any]) -> str:
    return f"block {record['block']}, batch {record['iteration']}: {record['action']}, {record['num_steps']} steps"
