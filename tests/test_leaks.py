"""Memory does not grow with the number of calls."""

import subprocess
import sys
from pathlib import Path

import pytest

import jkoflow
from soak import amount

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of Linux's processes")

HOST = """
import gc, sys, threading, torch, jkoflow
from jkoflow import Block, JKOFlow, MLPVelocity

def memory():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

torch.manual_seed(0)
velocity = MLPVelocity(4, (32, 32))
flow = JKOFlow(4, [Block(MLPVelocity(4, (16,)))]).requires_grad_(False).eval()
x = torch.randn(300, 4)
path = sys.argv[3]

def forward(turn):
    jkoflow.integrate(velocity, x, t1=1.0 + turn * 1e-6)
def gradient(turn):
    jkoflow.integrate(velocity, x, t1=1.0 + turn * 1e-6).logdet.sum().backward()
def adaptive(turn):
    jkoflow.integrate(velocity, x, method="dopri5", rtol=1e-3, atol=1e-3, t1=1.0 + turn * 1e-6).x.sum().backward()
def loss(turn):
    jkoflow.jko_loss(velocity, x, 0.5).total.backward()
def evaluate(turn):
    jkoflow.velocity_and_divergence(velocity, x, 0.1 * turn)
def density(turn):
    flow.log_prob(x, num_steps=1 + turn % 4)
def saved(turn):
    flow.save(path)
    JKOFlow.load(path)
def refused(turn):
    try:
        jkoflow.integrate(velocity, x[:, :3])
    except ValueError:
        pass
def threads(turn):
    thread = threading.Thread(target=lambda: flow.log_prob(x))
    thread.start()
    thread.join()

work, count = globals()[sys.argv[1]], int(sys.argv[2])
for turn in range(count // 4):  # caches fill, the allocator takes what it needs
    work(turn)
before = memory()
for turn in range(count):
    work(turn)
print((memory() - before) / 2**20)
"""

WORK = {
    "forward": 400, "gradient": 300, "adaptive": 200, "loss": 300, "evaluate": 500, "density": 400, "saved": 200,
    "refused": 500, "threads": 200,
}  # fmt: skip


@pytest.mark.parametrize("work", WORK)
def test_memory_stays(tmp_path, work):
    command = [sys.executable, "-c", HOST, work, str(amount(WORK[work], 50 * WORK[work])), str(tmp_path / "flow")]
    root = str(Path(jkoflow.__file__).parents[1])
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    # 4 MiB is what the allocator and the import of a late module may take; a leak of one batch in each call takes more
    assert float(done.stdout) < 4, done.stdout
