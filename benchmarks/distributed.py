"""Measures training by two processes of one thread against one process of two threads, and models many processes.

    python benchmarks/distributed.py [--rounds 7] [--seconds 1.0] [--out figures.json]

Both wait while the other one runs, and take turns in every round; figures are medians of the rounds' ratios. The time
of all-reduces is that between the same two processes. More processes are modelled from these, see `modelled`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

import jkoflow
from jkoflow import TrainConfig
from jkoflow.training.fit import Fit, FitHooks
from jkoflow.training.place import Place
from jkoflow.training.progress import Silent
from jkoflow.training.pushed import PushedSamples
from jkoflow.training.ranks import Ranks, is_group
from jkoflow.training.recipe import recipe_of_block
from jkoflow.training.state import FitCounters
from jkoflow.training.world import World
from record import write

ROWS, WARMUP = 40_000, 3

NUMBERS = (37_500, 125_000, 375_000, 1_250_000)
"""Counts of the float32 numbers whose all-reduce is measured: 150 KB to 5 MB."""

PROCESSES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of processes of the model."""

DRAWS = 200
"""Batches by which the model finds how large the largest part of a batch is."""


class Case(NamedTuple):
    """What is trained."""

    dim: int
    width: int
    batch: int

    @property
    def name(self) -> str:
        """Returns the text for tables."""
        return f"d = {self.dim}, H = {self.width} x 2, B = {self.batch}"


CASES = (Case(6, 128, 250), Case(6, 128, 2000), Case(63, 256, 1000))


# ---- The processes that are measured


def fit_of(case: Case, world: World) -> Fit:
    """Returns a fit of a block as training has it by default, of which every process has its part of the rows."""
    config = TrainConfig(hidden=(case.width,) * 2, batch_size=case.batch, num_steps=4)
    torch.manual_seed(0)
    block = jkoflow.Block(jkoflow.MLPVelocity(case.dim, config.first_hidden, linear=True), 4, jko_step=0.5)
    rows, part = torch.randn(ROWS, case.dim), world.part(ROWS)
    place = None if world.size == 1 else Place(part.start, part.stop, ROWS)
    samples = PushedSamples(rows[part].clone(), rows[:500], torch.zeros(500), world=world, place=place)
    hooks = FitHooks(world, lambda event: None, lambda fit: None, None, Silent())
    counters = FitCounters(iterations=10**9)
    return Fit(0, block, samples, config, recipe_of_block(block, config, case.dim), hooks, counters)


def answer(threads: int) -> None:
    """Answers requests of the standard input, one a line, with seconds; all processes of a group get the same ones."""
    torch.set_num_threads(threads)
    world = Ranks() if is_group() else World()
    fits: dict[Case, Fit] = {}
    for line in sys.stdin:
        kind, *values = json.loads(line)
        if kind == "reduce":
            seconds = _reduce(world, *values)
        else:
            case = Case(*values[1:])
            if case not in fits:
                fits[case] = fit_of(case, world)
                for _ in range(WARMUP):
                    fits[case].iterate()
            start = time.perf_counter()
            for _ in range(values[0]):
                fits[case].iterate()
            seconds = (time.perf_counter() - start) / values[0]
        if world.leads:
            print(json.dumps(seconds), flush=True)


def _reduce(world: World, count: int, times: int) -> float:
    vector = torch.zeros(count)
    for _ in range(WARMUP):
        world.update(vector)
    start = time.perf_counter()
    for _ in range(times):
        world.update(vector)
    return (time.perf_counter() - start) / times


class Group:
    """Processes that answer requests, and otherwise wait."""

    def __init__(self, size: int, threads: int, folder: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        meeting = folder / f"meeting-{size}-{threads}"
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--answer", str(rank), str(size), str(threads), str(meeting)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
            )
            for rank in range(size)
        ]

    def ask(self, *request: Any) -> float:
        """Returns the first process's answer to a request to all."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        assert self._processes[0].stdout is not None
        return json.loads(self._processes[0].stdout.readline())

    def end(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.communicate()


# ---- The model


class Network(NamedTuple):
    """What an all-reduce takes, by a ring."""

    latency: float
    """Seconds of a message of no length."""
    seconds_per_byte: float

    def all_reduce(self, size: int, processes: int) -> float:
        """Returns the seconds of an all-reduce: 2 (P - 1) messages, one after the other, of a P-th of the bytes."""
        return 2 * (processes - 1) * (self.latency + size / processes * self.seconds_per_byte)

    @classmethod
    def of(cls, sizes: list[int], seconds: list[float]) -> Network:
        """Returns the least-squares line through measured all-reduces of two processes."""
        slope, at_zero = statistics.linear_regression(sizes, seconds)
        return cls(max(at_zero, 0.0) / 2, max(slope, 0.0))


def largest_share(batch: int, processes: int) -> float:
    """Returns the mean largest part of a random batch that one process holds, as a share of the batch."""
    draws = torch.randint(0, processes, (DRAWS, batch), generator=torch.Generator().manual_seed(0))
    return float(torch.stack([draw.bincount(minlength=processes).max() for draw in draws]).double().mean()) / batch


def modelled(seconds: float, rest: float, parameters: int, batch: int, network: Network) -> dict[int, float]:
    """Returns how many times faster an iteration is with P processes than with one, for the same batch.

    Arguments:
        seconds: Measured seconds of an iteration of one process with one thread.
        rest: Seconds of it that do not become fewer with fewer rows: the optimiser's.
        parameters: Number of parameters.
        batch: Rows of a batch.
        network: What an all-reduce takes.
    """
    speedups = {}
    for processes in PROCESSES:
        gradient = (seconds - rest) * largest_share(batch, processes)
        exchange = 0.0 if processes == 1 else network.all_reduce(4 * parameters, processes)
        speedups[processes] = seconds / (gradient + rest + exchange)
    return speedups


# ---- All


def measured(rounds: int, seconds: float) -> dict[str, Any]:
    """Measures all cases in paired rounds."""
    with tempfile.TemporaryDirectory() as folder:
        threads, processes, one = (Group(*kind, Path(folder)) for kind in ((1, 2), (2, 1), (1, 1)))
        found: dict[str, Any] = {"cases": {}, "all_reduce": {}}
        for case in CASES:
            times = max(3, round(seconds / threads.ask("iterate", 3, *case)))
            turns = [tuple(g.ask("iterate", times, *case) for g in (threads, processes, one)) for _ in range(rounds)]
            tiny = Case(case.dim, case.width, 1)
            found["cases"][case.name] = {
                "one process, two threads, ms": 1e3 * statistics.median(turn[0] for turn in turns),
                "two processes, one thread each, ms": 1e3 * statistics.median(turn[1] for turn in turns),
                "one process, one thread, ms": 1e3 * statistics.median(turn[2] for turn in turns),
                "efficiency": statistics.median(turn[0] / turn[1] for turn in turns),
                "of it for one row, ms": 1e3 * one.ask("iterate", 20, *tiny),
                "parameters": len(fit_of(tiny, World()).optimizer.parameters),
            }
        for count in NUMBERS:
            found["all_reduce"][4 * count] = statistics.median(
                processes.ask("reduce", count, 50) for _ in range(rounds)
            )
        for group in (threads, processes, one):
            group.end()
    network = Network.of(list(found["all_reduce"]), list(found["all_reduce"].values()))
    found["network"] = network._asdict()
    found["model"] = {
        case.name: modelled(
            record["one process, one thread, ms"] / 1e3,
            record["of it for one row, ms"] / 1e3,
            record["parameters"],
            case.batch,
            network,
        )
        for case, record in zip(CASES, found["cases"].values(), strict=True)
    }
    return found


def main() -> None:
    """Measures, prints and writes."""
    if sys.argv[1:2] == ["--answer"]:
        rank, size, threads, meeting = sys.argv[2:]
        if int(size) > 1:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=int(size))
        answer(int(threads))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each of the three in a round")
    parser.add_argument("--out", help="file for the figures")
    chosen = parser.parse_args()
    found = measured(chosen.rounds, chosen.seconds)
    print(json.dumps(found, indent=2))
    write(found, chosen.out)


if __name__ == "__main__":
    main()
