"""Time and memory of scoring ten million rows of six columns in one command.

    python benchmarks/score_ten_million.py OUTDIR                       # 10 million rows in Parquet, tol 1e-2
    python benchmarks/score_ten_million.py OUTDIR --rows 100000 --kinds parquet csv npy

A flow is trained on six columns of the bundled gas-turbine data for a minute. The rows are such rows with some noise
on them, written piece by piece. Each command is a process of its own, whose peak memory is what the system tells.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jkoflow.data import Dataset, load_dataset
from jkoflow.data.piecewise import writing
from jkoflow.environment import describe

COLUMNS = 6
NOISE = 0.02  # of a column's standard deviation
PIECE = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("out", type=Path, help="directory for data, scores and the figures; what is there is used")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=60, help="time to train the flow")
    parser.add_argument("--tol", type=float, default=1e-2)
    parser.add_argument("--kinds", nargs="+", default=["parquet"], help="files to score: parquet, csv, npy")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = load_dataset("gasturbine")
    assert isinstance(data, Dataset)
    train, names = data.train.numpy()[:, :COLUMNS], data.features[:COLUMNS]
    run = arguments.out / "run"
    if not run.is_dir():
        draw(arguments.out / "train.parquet", len(train), train, names, seed=1)
        measured("train", arguments.out / "train.parquet", "--out", run, "--time-budget", arguments.seconds)
    record = {"environment": describe(), "rows": arguments.rows, "columns": COLUMNS, "tol": arguments.tol, "scored": {}}
    for kind in arguments.kinds:
        rows, scores = arguments.out / f"rows.{kind}", arguments.out / f"scores.{'npy' if kind == 'npy' else 'parquet'}"
        if not rows.exists():
            draw(rows, arguments.rows, train, names)
        seconds, peak = measured("score", run, rows, "--out", scores, "--tol", arguments.tol)
        rate = arguments.rows / seconds
        record["scored"][kind] = {"seconds": seconds, "peak_mb": peak, "rows_per_second": rate}
        print(f"{kind}: {seconds:.1f} s, {rate:,.0f} rows a second, {peak:.0f} MB at the peak", flush=True)
    (arguments.out / "score_ten_million.json").write_text(json.dumps(record, indent=2))


def draw(path: Path, rows: int, train: np.ndarray, names: tuple[str, ...], seed: int = 0) -> None:
    """Writes rows of the training, chosen at random, with noise on them."""
    random, spread = np.random.default_rng(seed), NOISE * train.std(0)
    with writing(path, rows) as piece:
        for begin in range(0, rows, PIECE):
            count = min(PIECE, rows - begin)
            chosen = train[random.integers(len(train), size=count)]
            noisy = chosen + (spread * random.standard_normal(chosen.shape)).astype(np.float32)
            piece(dict(zip(names, noisy.T, strict=True)))


def measured(*command: object) -> tuple[float, float]:
    """Runs a command of jkoflow and returns its seconds and the MB of its memory's peak."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "jkoflow", *map(str, command)])
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"jkoflow {command[0]} ended with {code}")
    return time.perf_counter() - begun, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
