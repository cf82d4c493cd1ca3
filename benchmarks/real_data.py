"""Trains on real data with the default settings, by the command that users run, and prints the figures.

    python benchmarks/real_data.py gasturbine [FILE.npz ...] [--time-budget 120] [--seeds 1] [--out figures.json]
    python benchmarks/real_data.py gasturbine --time-budget 15 --options "--device cuda --batch-size 4096"

Each run is `jkoflow train DATA --out RUN --time-budget SECONDS --seed SEED` in a temporary directory; the figures are
its metrics.json. NLLs are in nats on standardised columns, at as many Runge-Kutta steps as it takes to converge.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jkoflow.training.run_directory import RunDirectory
from record import write


def train(data: str, time_budget: float, seed: int, options: list[str]) -> dict[str, Any]:
    """Runs the command and returns its metrics and the seconds that it took in all."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "jkoflow", "train", data, "--out", str(run)]
        started = time.perf_counter()
        command += ["--time-budget", str(time_budget), "--seed", str(seed), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return RunDirectory(run).metrics() | {"command_seconds": time.perf_counter() - started}


def main() -> None:
    """Trains on every data set and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="built-in names or files")
    parser.add_argument("--time-budget", type=float, default=120.0, help="seconds of each run")
    parser.add_argument("--seeds", type=int, default=1, help="runs on each data set")
    parser.add_argument("--options", default="", help="more options of `jkoflow train`, in one string")
    parser.add_argument("--out", help="JSON file to write")
    arguments = parser.parse_args()
    results = []
    print(f"{'data':>16} seed | test NLL (nats)  | steps | inversion error, mean (max) | blocks | guard | seconds")
    for data in arguments.data:
        for seed in range(arguments.seeds):
            metrics = train(data, arguments.time_budget, seed, shlex.split(arguments.options))
            asked = {"data": Path(data).stem, "time_budget": arguments.time_budget, "options": arguments.options}
            results.append(asked | metrics)
            print(
                f"{Path(data).stem:>16} {seed:4} | {metrics['test_nll']:6.3f} +- {metrics['test_nll_stderr']:.3f} | "
                f"{metrics['eval_num_steps']:5} | {metrics['inversion_error_mean']:12.1e} "
                f"({metrics['inversion_error_max']:.1e})    | {metrics['blocks']:6} | {metrics['guard_events']:5} | "
                f"{metrics['command_seconds']:.0f}",
                flush=True,
            )
    write(results, arguments.out)


if __name__ == "__main__":
    main()
