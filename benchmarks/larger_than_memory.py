"""Trains on generated rows that are larger than the memory allowed, and prints what it took.

    python benchmarks/larger_than_memory.py --rows 100000000 --memory 1GB --time-budget 300 --folder /scratch
    python benchmarks/larger_than_memory.py --rows 1000000 --memory 600MB --iterations 300 --compare

Each run is `jkoflow train DATA --out RUN --memory LIMIT` in a process of its own, whose largest resident memory (VmHWM)
is read at its end. With --compare a run without a limit follows, on the same rows. Rows of eight columns are written to
a .npy file (or, with --parquet, to a folder of Parquet files), which is deleted in the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = 8
BLOCK = 1_000_000
"""Rows that are generated at once."""

CHILD = """
import sys
from jkoflow.cli import main
try:
    main()
finally:
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print("peak", 1024 * int(status["VmHWM"].split()[0]), file=sys.stderr)
"""
"""Program of a process that runs the command and tells its largest resident memory."""


def blocks(rows: int) -> Iterator[np.ndarray]:
    """Yields rows of a mixture of two clusters whose columns depend on one another along curves."""
    for number, start in enumerate(range(0, rows, BLOCK)):
        random = np.random.default_rng([8, number])
        x = random.standard_normal((min(BLOCK, rows - start), COLUMNS), dtype=np.float32)
        x[:, 0] += 3 * random.integers(0, 2, len(x)).astype(np.float32)
        for column in range(1, COLUMNS):
            x[:, column] = 0.5 * x[:, column] + np.sin(x[:, column - 1]) + 0.2 * x[:, 0]
        yield x


def generate(path: Path, rows: int) -> None:
    """Writes the rows to a file, or to Parquet files of a million rows each in a folder."""
    if path.suffix == ".npy":
        array = np.lib.format.open_memmap(path, "w+", np.float32, (rows, COLUMNS))
        for start, x in zip(range(0, rows, BLOCK), blocks(rows), strict=True):
            array[start : start + len(x)] = x
        return
    import pyarrow
    import pyarrow.parquet

    path.mkdir()
    for number, x in enumerate(blocks(rows)):
        table = pyarrow.table({f"x{column}": values for column, values in enumerate(x.T)})
        pyarrow.parquet.write_table(table, path / f"part-{number:05}.parquet")


def train(data: Path, options: list[str]) -> dict[str, Any]:
    """Runs the command, and returns its metrics, seconds and largest resident memory in bytes."""
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-c", CHILD, "train", str(data), "--out", str(run), *options]
        started = time.perf_counter()
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(done.stderr)
        metrics = json.loads((run / "metrics.json").read_text())
    peak = int(done.stderr.rsplit("peak", 1)[1])
    kept = ("test_nll", "test_nll_stderr", "val_nll", "train_seconds", "n_train", "n_test", "eval_num_steps", "blocks")
    return {"peak_bytes": peak, "seconds": seconds, **{name: metrics[name] for name in kept}}


def main() -> None:
    """Generates the rows, trains and prints one JSON object a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--time-budget", type=float, help="seconds of a training")
    parser.add_argument("--iterations", type=int, default=300, help="iterations of a training without a time budget")
    parser.add_argument("--parquet", action="store_true", help="a folder of Parquet files instead of a .npy file")
    parser.add_argument("--compare", action="store_true", help="train without a limit, too")
    parser.add_argument("--folder", help="where data and runs lie; that of temporary files if left out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        data = Path(folder) / ("rows" if arguments.parquet else "rows.npy")
        generate(data, arguments.rows)
        settings = Path(folder) / "settings.toml"
        settings.write_text(f"iterations_per_block = {arguments.iterations}\nmax_blocks = 1\nhidden = [32, 32]\n")
        options = ["--config", str(settings)]
        if arguments.time_budget is not None:
            options = ["--time-budget", str(arguments.time_budget)]
        for memory in (arguments.memory, None)[: 1 + arguments.compare]:
            limit = [] if memory is None else ["--memory", memory]
            print(json.dumps({"rows": arguments.rows, "memory": memory, **train(data, [*options, *limit])}), flush=True)


if __name__ == "__main__":
    main()
