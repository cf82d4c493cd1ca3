"""The CPU in the place of a GPU: what `jkoflow bench` does on one, without one."""

from contextlib import nullcontext
from functools import partial

import torch

from jkoflow.bench.gpu import Gpu
from jkoflow.bench.peers import on_gpu
from jkoflow.bench.stopwatch import wall_clock

CEILINGS = {"fp32": 50.0, "tf32": 300.0}


def replay(run, batches):
    """What `jkoflow.bench.graph.replayed` returns, without graphs."""
    return [partial(run, batch) for batch in batches]


def cpu_as_gpu(**other):
    """A `Gpu` that is the CPU, with the CPU kernels in their one precision; anything can be another."""
    parts = {
        "device": torch.device("cpu"),
        "peers": on_gpu.peers(("fp32",), "cpu"),
        "description": {"name": "A test", "capability": "9.0", "multiprocessors": 132, "memory_gib": 79.2},
        "stopwatch": wall_clock,
        "replay": replay,
        "ceilings": lambda: CEILINGS,
        "use": nullcontext,
        "free": lambda: None,
    }
    return Gpu(**{**parts, **other})
