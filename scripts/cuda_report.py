"""Compiles the CUDA kernels and writes ptxas's report on them, with estimates of occupancy and instruction mix.

Needs nvcc, cmake and the compiled extension, no GPU: `python scripts/cuda_report.py` writes docs/cuda_kernels.json and
the tables in docs/cuda.md. Tiles, shared memory and shares of the batch are those of the extension's own plans; how
many thread blocks fit on a multiprocessor follows from them and from the registers. The instruction mix is counted by
hand from `multiply` in csrc/cuda/product.cuh; the least times on an H100 follow from the work and from the
GPU's published rates. These are estimates, not measurements. `--tables` writes the tables from the last report and
needs no nvcc.
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
from typing import Any

from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.extension import MISSING, C
from jkoflow.ops.tableau import TABLEAUX

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "cuda_kernels.json"
PAGE = ROOT / "docs" / "cuda.md"
ARCHITECTURES = ("80", "90")
PRECISIONS = ("fp32", "tf32x3", "tf32")
TASKS = ("forward", "backward", "adaptive_forward", "adaptive_backward")
CALLS = {"forward": "forward", "adaptive_forward": "adaptive", "adaptive_backward": "adaptive_backward"}
# Multiprocessors of an A100; shared memory of a thread block and of a multiprocessor, and registers, from the CUDA
# programming guide's table of compute capabilities. For 90 the extension's own defaults hold.
GPUS = {"80": (108, 163 * 1024, 164 * 1024), "90": ()}
REGISTERS = 65536
WARPS = 64
# An H100 (SXM): of the data sheet's dense TF32 rate, 494.7 TFLOP/s, `mma.sync` is reported to reach about 62 % and a
# large product of cuBLAS, which takes `wgmma`, 379 (benchmarks/results/gpu_h100.json); what is reported for reads from
# the L2 cache; the data sheet's memory; exponentials and reciprocals in a second.
TENSOR_RATE = 0.62 * 494.7e12
GROUP_RATE = 379e12
L2_RATE = 5.5e12
MEMORY_RATE = 3.35e12
FUNCTION_RATE = 132 * 16 * 1.755e9


def digest() -> str:
    """Returns a hash of all device sources, so that a report of other sources is noticed."""
    folder = ROOT / "csrc" / "cuda"
    sources, found = [folder / "instance.cuh", folder / "prepare_finish.cu"], set()
    while sources:
        source = sources.pop().resolve()
        if source not in found and source.is_file():  # the emulation's header is none of the device's
            found.add(source)
            sources += [source.parent / name for name in re.findall(r'#include "(\S+)"', source.read_text())]
    total = hashlib.sha256()
    for path in sorted(found):
        total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def gpu(architecture: str) -> Any:
    """Returns the description of the GPU that an architecture is planned for."""
    described = C.CudaGpu()
    if GPUS[architecture]:
        described.architecture = int(architecture)
        described.multiprocessors, described.shared_per_block, described.shared_per_multiprocessor = GPUS[architecture]
    return described


def plan(
    task: str,
    H: int,
    tangents: bool = False,
    architecture: str = "90",
    batch: int = 10_000,
    dim: int = 6,
    precision: str = "tf32x3",
) -> dict[str, Any]:
    """Returns the extension's plan for two hidden layers of H units (three with tangents) and exact divergence.

    Steps are of rk4, adaptive ones of dopri5.
    """
    if MISSING is not None:
        raise RuntimeError(f"the plans are made by the compiled extension, but {MISSING}")
    adaptive = task.startswith("adaptive")
    tableau, problem = EMBEDDED["dopri5"] if adaptive else TABLEAUX["rk4"], C.Problem()
    problem.batch, problem.dim, problem.time, problem.num_steps = batch, dim, True, 3
    problem.hidden = [H] * (3 if tangents else 2)
    problem.tableau = C.Tableau(tableau.a, tableau.b, tableau.c)
    problem.row_times = adaptive
    return C.cuda_plan(problem, CALLS.get(task, "jko_loss"), getattr(C.Precision, precision), gpu(architecture))


def write_instances(folder: Path) -> list[Path]:
    """Lets CMake write the sources of the kernels, as a build does, and returns their paths."""
    command = ["cmake", f"-DJKOFLOW_INSTANCES={folder}", "-P", str(ROOT / "csrc" / "cuda" / "sources.cmake")]
    subprocess.run(command, check=True)
    return sorted(folder.glob("*.cu"))


def compile_source(source: Path, architecture: str) -> list[dict[str, object]]:
    """Returns what ptxas reports of every kernel of a source."""
    with tempfile.TemporaryDirectory() as folder:
        target = "sm_90a" if architecture == "90" else f"sm_{architecture}"  # as cmake/cuda.cmake builds
        command = ["nvcc", "-std=c++17", "-O3", f"-arch={target}", "-Xptxas", "-v", "-cubin"]
        command += [f"-I{ROOT / 'csrc'}", str(source), "-o", str(Path(folder) / "kernels.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    kernels = []
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\S+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    for match in pattern.finditer(done.stderr):
        name = re.search(
            r"((?:adaptive_)?(?:forward|backward))_kernelILi(\d+)ELNS0_9PrecisionE(\d)ELb(\d)", match["name"]
        )
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


def estimate(kernel: dict[str, object]) -> dict[str, object]:
    """Estimates occupancy, and instructions of one multiplication of 16 rows, 8 columns and a fragment of 8 samples."""
    task, H, tangents = str(kernel["task"]), int(str(kernel["H"])), bool(kernel["tangents"])
    precision = str(kernel["precision"])
    planned = plan(task, H, tangents, str(kernel["architecture"]), precision=precision)
    threads, fragments = planned["threads"], planned["tile"] // 8
    registers = (int(str(kernel["registers"])) + 7) // 8 * 8
    blocks = min(planned["resident"], REGISTERS // (registers * threads))
    # Of a product of hidden layers, by warp: tensor or FMA, loads, and the rest (splitting and rounding factors).
    mix = {
        "tf32x3": {"tensor": 3.0, "load": 1.0 + 1.0 / fragments, "other": 4.0 + 8.0 / fragments},
        "tf32": {"tensor": 1.0, "load": 1.0 + 1.0 / fragments, "other": 4.0 + 8.0 / fragments},
        "fp32": {"fma": 32.0, "load": 4.0 + 4.0 / fragments, "other": 0.0},
    }[precision]
    if planned["warp_groups"]:  # the right factor is neither loaded nor split; a product has all fragments
        mix = {"tensor": 3.0 / fragments, "load": 1.0 / fragments, "other": 8.0 / fragments}
    return {
        "samples": planned["tile"],
        "threads": threads,
        "shared_bytes": planned["shared_bytes"],
        "blocks_per_multiprocessor": blocks,
        "occupancy": round(blocks * threads / 32 / WARPS, 2),
        "instructions_per_product": {name: round(value, 2) for name, value in mix.items()},
    }


def table(report: dict[str, object]) -> str:
    """Returns the report as a table in Markdown."""
    lines = [
        "| kernel | H | precision | arch | samples | registers | spilled bytes | shared KB | blocks | occupancy |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    kernels = report["kernels"]
    assert isinstance(kernels, list)
    for k in kernels:
        kind = k["task"].replace("_", " ") + (", tangents" if k["tangents"] else "")
        lines.append(
            f"| {kind} | {k['H']} | {k['precision']} | sm_{k['architecture']} | {k['samples']} | {k['registers']} | "
            f"{k['spill_stores']} | {k['shared_bytes'] / 1024:.0f} | {k['blocks_per_multiprocessor']} | "
            f"{k['occupancy']:.2f} |"
        )
    return "\n".join(lines)


def up(number: int, multiple: int) -> int:
    """Returns the number rounded up to a multiple."""
    return -(-number // multiple) * multiple


@dataclass
class Bounds:
    """Least times of a kernel in 3xTF32, in seconds, by the work of each unit."""

    l2: float
    tensor: float
    functions: float
    memory: float
    """Seconds for sums of gradients that are kept in memory, as they are for H = 256."""
    l2_bytes: float
    stage_bytes: int
    """Bytes of weights that a stage of a tile reads."""


def bounds(
    task: str, batch: int, tile: int, small: int, blocks: int, H: int = 128, dim: int = 6, steps: int = 3
) -> Bounds:
    """Computes the least times of two hidden layers with exact divergence and time, rk4; `task` is forward or loss.

    Every tile streams all weights from the L2 cache at every stage; several warps that read the same rows at a time
    count once. The busiest multiprocessor decides for the tensor cores and the functions. Products between hidden
    layers are by warp groups, those of the first and last layer and the gradients' outer products are not.
    """
    narrow, rows, first = up(dim, 8), up(dim, 16), up(dim + 2, 8)
    square, velocity = H * H, H * first + rows * H
    # numbers read in a stage, multiply-adds for a sample, exponentials and reciprocals for a sample
    reads, hidden, others, functions = velocity + 2 * square, 2 * square, velocity, 2 * 2 * H
    if task == "loss":
        reads = (velocity + square) + (H * first + 4 * square + H * narrow + 16 * H)
        adjoint = H * first + 4 * square + H * narrow + 16 * H
        gradients = 2 * square + H * first + H * narrow
        hidden, functions = 5 * square, 2 * 5 * H
        others = velocity + square + adjoint + gradients - hidden
    multiprocessors = gpu("90").multiprocessors
    number, share, large_tiles, small_tiles = C.cuda_share_out(batch, multiprocessors * blocks, tile, small)
    tiles = (large_tiles + small_tiles) * number
    stages, busiest = 4 * steps, -(-number // multiprocessors) * share
    l2_bytes = 4.0 * reads * stages * tiles
    return Bounds(
        l2_bytes / L2_RATE,
        3 * 2 * (hidden / GROUP_RATE + others / TENSOR_RATE) * stages * busiest * multiprocessors,
        functions * stages * busiest * multiprocessors / FUNCTION_RATE,
        4 * 2 * 2 * square * stages * tiles / MEMORY_RATE if task == "loss" and H > 128 else 0.0,
        l2_bytes,
        4 * reads,
    )


def bounds_table() -> str:
    """Returns the table of least times with the tiles that are built, and with others."""
    lines = [
        "| kernel | d, H | samples | tile, small | blocks | weights a stage, KB | from L2, MB | "
        "L2, us | tensor cores, us | functions, us | memory, us |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = [
        ("forward", 6, 128, 10_000, None),
        ("forward", 6, 128, 10_000, (80, 16, 1)),
        ("forward", 6, 128, 100_000, None),
        ("forward", 6, 128, 100_000, (80, 16, 1)),
        ("loss", 6, 128, 250, None),
        ("loss", 6, 128, 10_000, None),
        ("loss", 6, 128, 100_000, None),
        ("forward", 63, 256, 10_000, None),
        ("loss", 63, 256, 10_000, None),
    ]
    for task, dim, H, batch, other in rows:
        built = plan(task, H, batch=batch, dim=dim)
        tile, small, blocks = other or (built["tile"], built["small_tile"], built["resident"])
        note = "" if other is None else ", not built"
        b = bounds(task, batch, tile, small, blocks, H, dim)
        times = " | ".join(f"{1e6 * seconds:.0f}" for seconds in (b.l2, b.tensor, b.functions, b.memory))
        lines.append(
            f"| {task}{note} | {dim}, {H} | {batch} | {tile}, {small} | {blocks} | {b.stage_bytes / 1024:.0f} | "
            f"{b.l2_bytes / 1e6:.0f} | {times} |"
        )
    return "\n".join(lines)


def write_tables(report: dict[str, object]) -> None:
    """Puts the tables of kernels and of least times into the page."""
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
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        pairs = [(source, architecture) for source in write_instances(Path(folder)) for architecture in ARCHITECTURES]
        kernels = [k for found in pool.map(lambda pair: compile_source(*pair), pairs) for k in found]
    for kernel in kernels:
        kernel.update(estimate(kernel))
    kernels.sort(key=lambda k: (TASKS.index(k["task"]), k["tangents"], k["H"], k["precision"], k["architecture"]))
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"release ([\d.]+)", nvcc)
    report = {"nvcc": version[1] if version else "unknown", "sources": digest(), "kernels": kernels}
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    write_tables(report)


if __name__ == "__main__":
    main()
