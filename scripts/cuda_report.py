"""Compiles the CUDA kernels and writes what ptxas reports of them, with estimates of occupancy and instruction mix.

Needs nvcc, no GPU: `python scripts/cuda_report.py` writes docs/cuda_kernels.json and the table in docs/cuda.md. The
occupancies follow from registers, shared memory and threads; the instruction mix is counted by hand from `multiply` in
csrc/cuda/product.cuh. Both are estimates, not measurements.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "cuda_kernels.json"
PAGE = ROOT / "docs" / "cuda.md"
ARCHITECTURES = ("80", "90")
PRECISIONS = ("fp32", "tf32x3", "tf32")
# Shared memory of a multiprocessor and registers, from the CUDA programming guide's table of compute capabilities.
SHARED_PER_MULTIPROCESSOR = {"80": 164 * 1024, "90": 228 * 1024}
REGISTERS = 65536
WARPS = 64


def digest() -> str:
    """Of all device sources, so that a report of other sources is noticed."""
    sources = sorted((ROOT / "csrc" / "cuda").rglob("*.cu*")) + sorted((ROOT / "csrc" / "cuda").glob("*.h"))
    sources += [ROOT / "csrc" / "activation.h"]
    total = hashlib.sha256()
    for path in sources:
        if path.name not in {"launch.h", "plan.h", "runtime.h", "runtime.cu"}:
            total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def shapes() -> dict[tuple[str, int, bool], int]:
    """Fragments of 8 samples in a tile by (task, H, tangents), read from the kernels' sources."""
    found = {}
    for task in ("forward", "backward"):
        text = (ROOT / "csrc" / "cuda" / f"{task}_kernels.cuh").read_text()
        match = re.search(r"kFragments = kTangents \? \(H == 256 \? (\d) : (\d)\) : \(H == 256 \? (\d) : (\d)\);", text)
        if match is None:
            raise RuntimeError(f"{task}_kernels.cuh no longer says kFragments as this script reads it")
        tangents_256, tangents, closed_256, closed = map(int, match.groups())
        for H in (64, 128, 256):
            found[task, H, True] = tangents_256 if H == 256 else tangents
            found[task, H, False] = closed_256 if H == 256 else closed
    return found


def shared_bytes(task: str, H: int, tangents: bool, fragments: int, dim: int = 6) -> int:
    """Of a problem with few features: panels, input and cotangent panels, slots and rows; plan.cpp has the truth."""
    tile = 8 * fragments
    panels = {("forward", False): 3, ("forward", True): 4, ("backward", False): 4, ("backward", True): 5}[
        task, tangents
    ]
    slots = {("forward", False): 0, ("forward", True): 3, ("backward", False): 1, ("backward", True): 11}[
        task, tangents
    ]
    floats = (panels + slots) * tile * H + tile * 32 + H // 16 * tile + 5 * tile * dim
    if task == "backward":
        floats += tile * 32 + tile + tile * dim + 2 * 8 * H
    return 4 * floats


def compile_source(source: Path, architecture: str) -> list[dict[str, object]]:
    """What ptxas says of every kernel of a source."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas", "-v", "-cubin"]
        command += [str(source), "-o", str(Path(folder) / "kernels.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    kernels = []
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\S+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    for match in pattern.finditer(done.stderr):
        name = re.search(r"(forward|backward)_kernelILi(\d+)ELNS0_9PrecisionE(\d)ELb(\d)", match["name"])
        if name is None:
            continue
        kernels.append(
            {
                "task": name[1],
                "H": int(name[2]),
                "precision": PRECISIONS[int(name[3])],
                "tangents": name[4] == "1",
                "architecture": architecture,
                "registers": int(match["registers"]),
                "stack": int(match["stack"]),
                "spill_stores": int(match["stores"]),
                "spill_loads": int(match["loads"]),
            }
        )
    return kernels


def estimate(kernel: dict[str, object], fragments: int) -> dict[str, object]:
    """Occupancy, and instructions for one multiplication of 16 rows, 8 columns and a fragment of 8 samples."""
    task, H, tangents = str(kernel["task"]), int(str(kernel["H"])), bool(kernel["tangents"])
    threads = 2 * H
    shared = shared_bytes(task, H, tangents, fragments)
    by_shared = SHARED_PER_MULTIPROCESSOR[str(kernel["architecture"])] // (shared + 1024)
    registers = (int(str(kernel["registers"])) + 7) // 8 * 8
    by_registers = REGISTERS // (registers * threads)
    blocks = max(1, min(by_shared, by_registers, 2048 // threads))
    # Of a product of hidden layers, by warp: tensor or FMA, loads, and the rest (splitting and rounding factors).
    mix = {
        "tf32x3": {"tensor": 3.0, "load": 1.0 + 1.0 / fragments, "other": 4.0 + 8.0 / fragments},
        "tf32": {"tensor": 1.0, "load": 1.0 + 1.0 / fragments, "other": 2.0 + 4.0 / fragments},
        "fp32": {"fma": 32.0, "load": 4.0 + 4.0 / fragments, "other": 0.0},
    }[str(kernel["precision"])]
    return {
        "samples": 8 * fragments,
        "threads": threads,
        "shared_bytes": shared,
        "blocks_per_multiprocessor": blocks,
        "occupancy": round(blocks * threads / 32 / WARPS, 2),
        "instructions_per_product": {name: round(value, 2) for name, value in mix.items()},
    }


def table(report: dict[str, object]) -> str:
    """The report as Markdown."""
    lines = [
        "| kernel | H | precision | arch | samples | registers | spilled bytes | shared KB | blocks | occupancy |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    kernels = report["kernels"]
    assert isinstance(kernels, list)
    for k in kernels:
        kind = k["task"] + (", tangents" if k["tangents"] else "")
        lines.append(
            f"| {kind} | {k['H']} | {k['precision']} | sm_{k['architecture']} | {k['samples']} | {k['registers']} | "
            f"{k['spill_stores']} | {k['shared_bytes'] / 1024:.0f} | {k['blocks_per_multiprocessor']} | "
            f"{k['occupancy']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Writes the report and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="compilations at a time")
    arguments = parser.parse_args()
    sources = sorted((ROOT / "csrc" / "cuda" / "instances").glob("*ward_*.cu"))
    pairs = [(source, architecture) for source in sources for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        kernels = [k for found in pool.map(lambda pair: compile_source(*pair), pairs) for k in found]
    fragments = shapes()
    for kernel in kernels:
        kernel.update(estimate(kernel, fragments[str(kernel["task"]), int(str(kernel["H"])), bool(kernel["tangents"])]))
    kernels.sort(key=lambda k: (k["task"] != "forward", k["tangents"], k["H"], k["precision"], k["architecture"]))
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"release ([\d.]+)", nvcc)
    report = {"nvcc": version[1] if version else "unknown", "sources": digest(), "kernels": kernels}
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    page = PAGE.read_text()
    start, end = "<!-- kernels: begin -->", "<!-- kernels: end -->"
    before, _, rest = page.partition(start)
    PAGE.write_text(f"{before}{start}\n{table(report)}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
