"""The peak memory of one training step per row of the batch, measured for each peer in a process of its own."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jkoflow.bench.case import Case
from jkoflow.bench.peers import PEERS
from jkoflow.bench.shapes import Shape

METHOD = (
    "bytes by which the peak of the process's resident memory grows per row, between batches of n and 2n rows; one "
    "forward and backward pass each, after a warm-up; n grows until one batch takes 32 MiB or has at least 16384 rows; "
    "every allocation of 64 KiB and more is mapped on its own and returned when freed"
)
ENOUGH = 32 << 20
SMALLEST, LARGEST = 128, 1 << 14
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def unsupported() -> str | None:
    """Says why memory cannot be measured on this system; returns None if it can."""
    if not _STATUS.is_file() or "VmHWM" not in _STATUS.read_text(encoding="ascii", errors="replace"):
        return "peak memory is read from Linux's /proc"
    if not os.access(_RESET, os.W_OK):
        return f"{_RESET} cannot be written"
    return None


def measure(name: str, shapes: Sequence[Shape], largest: int = LARGEST) -> list[float]:
    """Measures the bytes per row of a training step, by shape.

    Arguments:
        name: A peer that runs in this process, such as `jkoflow.bench.peers.MEASURED_MEMORY`.
        shapes: Shapes, whose batch is not used.
        largest: Number of rows at which batches stop to grow.

    Raises:
        RuntimeError: If the process that measures fails.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    request = {"name": name, "shapes": shapes, "largest": largest, "threads": torch.get_num_threads()}
    result = subprocess.run(
        [sys.executable, "-m", "jkoflow.bench.memory"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**environment, **_ALLOCATOR, "PYTHONPATH": path},
    )
    if result.returncode != 0:
        raise RuntimeError((result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1])
    return json.loads(result.stdout)


def bytes_per_row(name: str, shape: Shape, largest: int) -> float:
    """Measures the bytes per row in this process, which `measure` must have started."""
    batch = SMALLEST
    rise = _rise(name, shape._replace(batch=batch))
    while rise < ENOUGH and batch < largest:
        batch *= 4
        rise = _rise(name, shape._replace(batch=batch))
    twice = _rise(name, shape._replace(batch=2 * batch))
    return max(0.0, (twice - rise) / batch)


def _rise(name: str, shape: Shape) -> int:
    """Measures the bytes by which one training step of a batch raises the peak."""
    (peer,) = (peer for peer in PEERS if peer.name == name)
    peer.build(Case(shape._replace(batch=SMALLEST))).gradient()  # what is loaded and kept once, whatever the batch
    candidate = peer.build(Case(shape))
    gc.collect()
    _RESET.write_text("5")  # the peak starts again at what is resident now
    before = _kib("VmRSS")
    candidate.gradient()
    return 1024 * (_kib("VmHWM") - before)


def _kib(key: str) -> int:
    (line,) = (line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1])


def main() -> None:
    """Reads a request from standard input and writes the bytes per row of each shape."""
    import warnings

    from jkoflow.ops import FallbackWarning

    warnings.simplefilter("ignore", FallbackWarning)
    request: dict[str, Any] = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    name, largest = request["name"], request["largest"]
    print(json.dumps([bytes_per_row(name, Shape(*shape), largest) for shape in request["shapes"]]))


if __name__ == "__main__":
    main()
