"""Times exported flows beside the flow itself: python benchmarks/exported.py MODEL FILE... [--rows 1 1000].

MODEL is a run or a model file, the files are what `jkoflow export MODEL` wrote with the log_prob and its default steps.
Prints, for each number of rows, the median milliseconds of the flow and the median ratios of the artefacts to it in
paired rounds, without gradients, with as many threads as torch takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import jkoflow
from jkoflow.exporting import FORMATS
from jkoflow.exporting.quiet import quiet


def seconds(call: Callable[[], object]) -> float:
    """Returns the seconds of a call, of as many as last a twentieth of a second."""
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.05:
        call()
        count += 1
    return (time.perf_counter() - begin) / count


def format_of(path: Path) -> str:
    """Returns the format of a file: that of its suffix, or what its bytes tell."""
    if path.suffix == ".onnx":
        return "onnx"
    return "aoti" if b"/aotinductor/" in path.read_bytes() else "torch-export"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Times exported flows beside the flow itself.")
    parser.add_argument("model", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 100, 10_000])
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    flow = jkoflow.load(chosen.model)
    if not isinstance(flow, jkoflow.JKOFlow) or flow.context_dim:
        parser.error("MODEL must be the flow of plain numbers, without context")
    with quiet():
        runs = {f"{format_of(path)}, {path.name}": FORMATS[format_of(path)].load(path) for path in chosen.files}
    print(f"steps: {flow.grids()}, threads: {torch.get_num_threads()}")
    for count in chosen.rows:
        x = flow.rsample(count, generator=torch.Generator().manual_seed(0)).contiguous()
        own, ratios = [], {name: [] for name in runs}
        for run in runs.values():
            run(x)
        for _ in range(chosen.rounds):
            own.append(seconds(lambda: flow.log_prob(x)))  # noqa: B023
            for name, run in runs.items():
                ratios[name].append(seconds(lambda: run(x)) / own[-1])  # noqa: B023
        print(f"{count} rows: {1e3 * statistics.median(own):.3g} ms")
        for name, found in ratios.items():
            off = float((runs[name](x)[0] - flow.log_prob(x)).abs().max())
            print(f"  {name}: {statistics.median(found):.2f} times as long, off by {off:.1e} nats")


if __name__ == "__main__":
    main()
