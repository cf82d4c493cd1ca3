"""Training, saving, loading, scoring and sampling again and again, in one process and in bounded memory."""

import subprocess
import sys
from pathlib import Path

import pytest

import jkoflow
from soak import amount

HOST = """
import gc, sys, time, torch, jkoflow
from jkoflow import TrainConfig
from jkoflow.training.run_directory import RunDirectory
cycles, seconds, folder = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]

def memory():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

config = TrainConfig(hidden=(16, 16), max_blocks=2, iterations_per_block=30, batch_size=100, refine=2)
began, done, first = time.monotonic(), 0, None
while done < cycles or time.monotonic() - began < seconds:
    torch.manual_seed(done)
    rows = torch.randn(1000, 3) @ torch.randn(3, 3) + torch.randn(3)
    run = f"{folder}/{done}"
    trained = jkoflow.train(rows, config, run_dir=run)
    loaded = jkoflow.load(run)
    assert torch.equal(loaded.log_prob(rows), trained.log_prob(rows))
    assert loaded.metrics == trained.metrics
    samples, log_prob = loaded.sample_and_log_prob(500, exact=True)
    torch.testing.assert_close(loaded.log_prob(samples), log_prob, rtol=1e-2, atol=2e-2)
    assert bool(loaded.log_prob(rows, tol=1e-2).isfinite().all())
    done += 1
    if done == 3:
        first = memory()
print(done, memory() - first)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of Linux's processes")
def test_cycles_in_bounded_memory(tmp_path):
    command = [sys.executable, "-c", HOST, str(amount(6, 100)), str(amount(0, 7200)), str(tmp_path)]
    root = str(Path(jkoflow.__file__).parents[1])
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    count, grown = done.stdout.split()
    assert int(count) >= 6
    assert float(grown) < 32, done.stdout
