"""Compiles the CUDA kernels and writes what ptxas reports of them, with estimates of occupancy and instruction mix.

Needs nvcc, no GPU: `python scripts/cuda_report.py` writes docs/cuda_kernels.json and the tables in docs/cuda.md. The
occupancies follow from registers, shared memory and threads; the instruction mix is counted by hand from `multiply` in
csrc/cuda/product.cuh; the least times on an H100 follow from the work and from what the GPU is said to do in a second.
All three are estimates, not measurements. `--tables` writes the tables from the last report and needs no nvcc.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
# An H100 (SXM): the data sheet's dense TF32 rate, of which `mma.sync` is reported to reach about 62 %; what is reported
# for reads from the L2 cache; the data sheet's memory; exponentials and reciprocals in a second.
MULTIPROCESSORS = 132
TENSOR_RATE = 0.62 * 494.7e12
L2_RATE = 5.5e12
MEMORY_RATE = 3.35e12
FUNCTION_RATE = 132 * 16 * 1.755e9


def digest() -> str:
    """Of all device sources, so that a report of other sources is noticed."""
    sources = sorted((ROOT / "csrc" / "cuda").rglob("*.cu*")) + sorted((ROOT / "csrc" / "cuda").glob("*.h"))
    sources += [ROOT / "csrc" / "activation.h"]
    total = hashlib.sha256()
    for path in sources:
        if path.name not in {"launch.h", "plan.h", "runtime.h", "runtime.cu", "share.h"}:
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
        "tf32": {"tensor": 1.0, "load": 1.0 + 1.0 / fragments, "other": 4.0 + 8.0 / fragments},
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


def up(number: int, multiple: int) -> int:
    """Rounded up."""
    return -(-number // multiple) * multiple


def share_out(batch: int, slots: int, tile: int, small: int) -> tuple[int, list[int]]:
    """Blocks, and the tiles of each one: csrc/cuda/share.h."""
    least = -(-batch // slots)
    rest = least % tile
    tiles = [tile] * (least // tile) + ([] if rest == 0 else [small] if rest <= small else [tile])
    return -(-batch // sum(tiles)), tiles


@dataclass
class Bounds:
    """Least times of a kernel in 3xTF32, in seconds, by what each unit has to do."""

    l2: float
    tensor: float
    functions: float
    memory: float
    """Sums of gradients that are kept there: H = 256."""
    l2_bytes: float
    stage_bytes: int
    """Of weights, for a tile's stage."""


def bounds(
    task: str, batch: int, tile: int, small: int, blocks: int, H: int = 128, dim: int = 6, steps: int = 3
) -> Bounds:
    """Of two hidden layers with the exact divergence and time, rk4; `task` is forward or loss.

    Every tile streams all weights from the L2 cache at every stage; several warps that read the same rows at a time
    count once. The busiest multiprocessor decides for the tensor cores and the functions.
    """
    narrow, rows, first = up(dim, 8), up(dim, 16), up(dim + 2, 8)
    square, velocity = H * H, H * first + rows * H
    # numbers read in a stage, multiply-adds for a sample, exponentials and reciprocals for a sample
    reads, products, functions = velocity + 2 * square, velocity + 2 * square, 2 * 2 * H
    if task == "loss":
        reads = (velocity + square) + (H * first + 4 * square + H * narrow + 16 * H)
        adjoint = H * first + 4 * square + H * narrow + 16 * H
        gradients = 2 * square + H * first + H * narrow
        products, functions = velocity + square + adjoint + gradients, 2 * 5 * H
    number, tiles = share_out(batch, MULTIPROCESSORS * blocks, tile, small)
    stages, busiest = 4 * steps, -(-number // MULTIPROCESSORS) * sum(tiles)
    l2_bytes = 4.0 * reads * stages * len(tiles) * number
    return Bounds(
        l2_bytes / L2_RATE,
        3 * 2 * products * stages * busiest * MULTIPROCESSORS / TENSOR_RATE,
        functions * stages * busiest * MULTIPROCESSORS / FUNCTION_RATE,
        4 * 2 * 2 * square * stages * len(tiles) * number / MEMORY_RATE if task == "loss" and H > 128 else 0.0,
        l2_bytes,
        4 * reads,
    )


def bounds_table() -> str:
    """With the tiles that are built, and with others."""
    lines = [
        "| kernel | d, H | samples | tile, small | blocks | weights a stage, KB | from L2, MB | "
        "L2, us | tensor cores, us | functions, us | memory, us |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    found = shapes()
    forward, forward_256 = (8 * found["forward", H, False] for H in (128, 256))
    loss, loss_256 = (8 * found["backward", H, False] for H in (128, 256))
    rows = [
        ("forward", 6, 128, 10_000, forward, 16, 2, ""),
        ("forward", 6, 128, 10_000, 80, 16, 1, ", not built"),
        ("forward", 6, 128, 100_000, forward, 16, 2, ""),
        ("forward", 6, 128, 100_000, 80, 16, 1, ", not built"),
        ("loss", 6, 128, 250, loss, 16, 1, ""),
        ("loss", 6, 128, 10_000, loss, 16, 1, ""),
        ("loss", 6, 128, 100_000, loss, 16, 1, ""),
        ("forward", 63, 256, 10_000, forward_256, 8, 1, ""),
        ("loss", 63, 256, 10_000, loss_256, 8, 1, ""),
    ]
    for task, dim, H, batch, tile, small, blocks, note in rows:
        b = bounds(task, batch, tile, small, blocks, H, dim)
        times = " | ".join(f"{1e6 * seconds:.0f}" for seconds in (b.l2, b.tensor, b.functions, b.memory))
        lines.append(
            f"| {task}{note} | {dim}, {H} | {batch} | {tile}, {small} | {blocks} | {b.stage_bytes / 1024:.0f} | "
            f"{b.l2_bytes / 1e6:.0f} | {times} |"
        )
    return "\n".join(lines)


def write_tables(report: dict[str, object]) -> None:
    """Puts the tables into the page."""
    page = PAGE.read_text()
    for name, text in (("kernels", table(report)), ("bounds", bounds_table())):
        start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = page.partition(start)
        page = f"{before}{start}\n{text}\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(page)


def main() -> None:
    """Writes the report and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="compilations at a time")
    parser.add_argument("--tables", action="store_true", help="write the tables only, without compiling")
    arguments = parser.parse_args()
    if arguments.tables:
        write_tables(json.loads(REPORT.read_text()))
        return
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
    write_tables(report)


if __name__ == "__main__":
    main()
