"""Counts instructions of the CPU kernels by valgrind's callgrind and compares them with the recorded counts.

    python benchmarks/instructions.py build/instructions/tests/native/count_instructions [--record]

Counts do not depend on the machine's load, so they show what a noisy timing hides; they do depend on the compiler.
Valgrind runs no AVX-512, so these are the kernels for AVX2 and the baseline. `make instructions` builds the program and
runs this.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

RECORD = Path(__file__).parent / "results" / "instructions.json"
TOLERANCE = 0.01

STAGES, STEPS = 4, 2
SMALL, LARGE = 96, 192  # batches of whole tiles for every instruction set


class Shape(NamedTuple):
    """The sizes of one case: features, width of the hidden layers and their number."""

    dim: int
    width: int
    layers: int


class Counted(NamedTuple):
    """A thing that is counted: an entry point of the kernels of one instruction set, in one case."""

    isa: str
    kernel: str
    shape: Shape

    def name(self) -> str:
        """Returns the key of its entry in the record."""
        return f"{self.isa} {self.kernel} d={self.shape.dim} H={self.shape.width} layers={self.shape.layers}"


KERNELS = ("forward", "backward", "loss")
SHAPES = (Shape(2, 128, 2), Shape(43, 128, 2), Shape(6, 64, 1), Shape(2, 64, 3))
COUNTED = [Counted("avx2", kernel, shape) for shape in SHAPES for kernel in KERNELS]
COUNTED += [Counted("baseline", kernel, SHAPES[0]) for kernel in KERNELS]

Record = Mapping[str, Mapping[str, float]]


def count(program: str, what: Counted, batch: int) -> int:
    """Returns the instructions of one call, without those of the program around it."""
    function = {"loss": "jko_loss"}.get(what.kernel, what.kernel)
    arguments = [what.kernel, *map(str, what.shape), str(batch), str(STEPS)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        done = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"),
                f"--toggle-collect=jkoflow::cpu::{function}(*",
                *(program, *arguments),
            ],
            env={**os.environ, "JKOFLOW_ISA": what.isa, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"valgrind on {what.name()} failed with status {done.returncode}:\n{done.stderr}")
        found = re.search(r"^(?:summary|totals): (\d+)$", out.read_text(), re.MULTILINE)
    if found is None or int(found[1]) == 0:
        raise SystemExit(f"valgrind counted nothing for {what.name()}; was the program stripped of its symbols?")
    return int(found[1])


def measure(program: str) -> dict[str, dict[str, float]]:
    """Counts the instructions of all of `COUNTED`.

    Arguments:
        program: ``count_instructions`` of ``tests/native``.

    Returns:
        By name: instructions per sample and stage, from two batches, and the rest of a call (packing the weights, sums
        of gradients), which does not grow with the batch.
    """

    def one(what: Counted) -> dict[str, float]:
        small, large = (count(program, what, batch) for batch in (SMALL, LARGE))
        slope = (large - small) / (LARGE - SMALL)
        return {"per_sample_and_stage": round(slope / (STAGES * STEPS), 1), "per_call": round(small - SMALL * slope)}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {what.name(): row for what, row in zip(COUNTED, pool.map(one, COUNTED), strict=True)}


def differences(recorded: Record, measured: Record, tolerance: float) -> list[str]:
    """Returns a line for each count that has changed by more than the tolerance or is in only one of the two."""
    lines = []
    for name in sorted({*recorded, *measured}):
        if name not in recorded or name not in measured:
            lines.append(f"{name}: {'not recorded' if name not in recorded else 'recorded, but not measured'}")
            continue
        for quantity, before in recorded[name].items():
            now = measured[name][quantity]
            if abs(now - before) > tolerance * abs(before):
                lines.append(f"{name}: {quantity} was {before:g} and is {now:g} ({now / before - 1:+.1%})")
    return lines


def compiler_of(program: str) -> str:
    """Returns the compiler that built the program, as the program says itself."""
    return subprocess.run([program, "compiler"], capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    """Counts and prints, and compares with the record or writes it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="count_instructions, as built from tests/native")
    parser.add_argument("--record", action="store_true", help="write the counts instead of comparing them")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="relative change that is let pass")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind was not found; install it (Debian: apt-get install valgrind)")
    compiler = compiler_of(arguments.program)
    recorded: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    if not arguments.record and recorded.get("compiler") != compiler:
        print(
            f"{RECORD.name} was recorded with {recorded.get('compiler')}, this build is by {compiler}: their counts do "
            "not compare. Record the commit to compare with (--record), then measure again.",
            file=sys.stderr,
        )
        return 2
    measured = measure(arguments.program)
    print(f"{'':>40} | per sample and stage | per call")
    for name, row in measured.items():
        print(f"{name:>40} | {row['per_sample_and_stage']:20,.1f} | {row['per_call']:12,.0f}")
    if arguments.record:
        content = {"compiler": compiler, "stages": STAGES, "steps": STEPS, "instructions": measured}
        RECORD.write_text(json.dumps(content, indent=2) + "\n")
        return 0
    lines = differences(recorded["instructions"], measured, arguments.tolerance)
    for line in lines:
        print(line)
    if lines:
        print(f"changes beyond {arguments.tolerance:.0%}: if they are meant, record them with --record")
    else:
        print(f"all within {arguments.tolerance:.0%} of the record")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
