"""Measures what jkoflow's odeint adds to a call that it hands on to torchdiffeq: what changing the import alone costs.

    python benchmarks/import_alone.py [--rounds 600] [--out figures.json]

The field is the user's own (examples/hypernet_cnf.py's), so that torchdiffeq solves it either way. A long solve would
bury the difference in its noise; so the solve is the shortest there is, one Euler step of eight rows, and the order
turns in every round.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchdiffeq

from jkoflow.interop.torchdiffeq import odeint
from record import write

EXAMPLE = Path(__file__).parents[1] / "examples/hypernet_cnf.py"
WARMUP = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument("--out", help="file for the figures")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    field, times = runpy.run_path(str(EXAMPLE))["HypernetFlow"](), torch.tensor([1.0, 0.0])
    state = torch.randn(8, 2), torch.zeros(8, 1)

    def seconds(solve: Callable) -> float:
        start = time.perf_counter()
        solve(field, (state[0].clone(), state[1]), times, method="euler")
        return time.perf_counter() - start

    for _ in range(WARMUP):
        seconds(torchdiffeq.odeint)
        seconds(odeint)
    theirs, added = [], []
    for _ in range(chosen.rounds):
        first, ours, again, last = (
            seconds(torchdiffeq.odeint),
            seconds(odeint),
            seconds(odeint),
            seconds(torchdiffeq.odeint),
        )
        theirs.append((first + last) / 2)
        added.append((ours + again - first - last) / 2)
    found = {"torchdiffeq, us": 1e6 * statistics.median(theirs), "added, us": 1e6 * statistics.median(added)}
    print(", ".join(f"{name}: {value:.1f}" for name, value in found.items()))
    write(found, chosen.out)


if __name__ == "__main__":
    main()
