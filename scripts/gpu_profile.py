"""Profiles the kernels that decide with ncu: python gpu_profile.py OUT.json, where jkoflow can be imported.

ncu runs this script again with --launch, which makes the calls of CASES and marks where each begins by a kernel of
PyTorch. Of every kernel OUT.json has the figures that matter (FIGURES), its stalls from the longest on, and all metrics
of SECTIONS, by their names; it is written even if ncu says little.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

MARK = "spin_kernel"
"""Kernel of torch.cuda._sleep, which begins a case."""
SECTIONS = (
    "SpeedOfLight",
    "LaunchStats",
    "Occupancy",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "MemoryWorkloadAnalysis_Tables",
    "WarpStateStats",
    "SchedulerStats",
)

FIGURES: Mapping[str, tuple[str, float]] = {
    "us": (r"gpu__time_duration\.sum", 1e-3),
    "tensor pipe %": (r"sm__(inst_executed_)?pipe_tensor\w*\.avg\.pct_of_peak_sustained_active", 1),
    "fma pipe %": (r"sm__(inst_executed_)?pipe_fma(_cycles_active)?\.avg\.pct_of_peak_sustained_active", 1),
    "L2 %": (r"lts__(t|lts2xbar)\w*\.avg\.pct_of_peak_sustained_elapsed", 1),
    "L1 %": (r"l1tex__throughput\.avg\.pct_of_peak_sustained_(active|elapsed)", 1),
    "DRAM %": (r"(dram__throughput|gpu__dram_throughput)\.avg\.pct_of_peak_sustained_elapsed", 1),
    "shared load conflicts": (r"l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld\.sum", 1),
    "shared store conflicts": (r"l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st\.sum", 1),
    "occupancy %": (r"sm__warps_active\.avg\.pct_of_peak_sustained_active", 1),
    "issue %": (r"smsp__issue_active\.avg\.pct(_of_peak_sustained_active)?", 1),
    "registers": (r"launch__registers_per_thread", 1),
    "blocks": (r"launch__grid_size", 1),
    "spilled": (r"launch__local_memory_spill\w*|smsp__inst_executed_op_local\w*\.sum", 1),
}
"""Metrics in words: a pattern, of whose matches the largest counts, and a factor (of ns, in the base units of ncu)."""
STALL = re.compile(r"smsp__average_warps?_(?:issue_stalled|latency_issue_stalled)_(\w+?)(?:_per_issue_active)?\.ratio")


class Case(NamedTuple):
    """A call: its name, features, width, rows, and whether it is the loss with its gradient."""

    name: str
    dim: int
    width: int
    batch: int
    loss: bool


CASES = (
    Case("forward, d 6, H 128, B 10000", 6, 128, 10_000, False),
    Case("loss, d 6, H 128, B 250", 6, 128, 250, True),
    Case("loss, d 6, H 128, B 10000", 6, 128, 10_000, True),
    Case("loss, d 63, H 256, B 10000", 63, 256, 10_000, True),
)


def launch() -> None:
    """Makes the calls for ncu, once before, since CUDA loads a kernel when it is first used, and once with marks."""
    import torch

    import jkoflow

    calls = []
    for case in CASES:
        torch.manual_seed(0)
        velocity = jkoflow.MLPVelocity(case.dim, (case.width, case.width)).cuda()
        x = torch.randn(case.batch, case.dim, device="cuda")

        def call(velocity: jkoflow.MLPVelocity = velocity, x: torch.Tensor = x, loss: bool = case.loss) -> None:
            if loss:
                jkoflow.jko_loss(velocity, x, 0.5, num_steps=3, backend="cuda", precision="tf32x3").total.backward()
            else:
                with torch.no_grad():
                    jkoflow.integrate(velocity, x, num_steps=3, backend="cuda", precision="tf32x3")

        calls.append(call)
        call()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for call in calls:
        torch.cuda._sleep(1)
        call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def command(output: Path) -> list[str]:
    """Returns the command that profiles `launch` into a file of comma-separated values."""
    told = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(output)]
    told += ["--clock-control", "none", "--cache-control", "none", "--profile-from-start", "off"]
    told += ["--kernel-name-base", "demangled", "--kernel-name", f"regex:jkoflow|{MARK}"]
    for section in SECTIONS:
        told += ["--section", section]
    return [*told, sys.executable, *(["-P"] if sys.flags.safe_path else []), __file__, "--launch"]


def read(lines: Iterable[str]) -> list[dict[str, str]]:
    """Reads ncu's raw page: lines of its own, then names of columns, their units, and a line for each kernel."""
    rows = [line for line in lines if line.startswith('"')]
    begin = next((i for i, line in enumerate(rows) if line.startswith('"ID"')), None)
    if begin is None:
        return []
    return [row for row in csv.DictReader(rows[begin:]) if (row["ID"] or "").strip()]  # the units have no ID


def summarise(rows: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Returns an entry for each kernel: its case and name, the figures that matter, stalls, and all metrics."""
    entries = []
    case = -1
    for row in rows:
        name = row.get("Kernel Name", "")
        if MARK in name:
            case += 1
            continue
        metrics = {key: value for key, text in row.items() if key and (value := _number(text)) is not None}
        figures = {}
        for title, (pattern, factor) in FIGURES.items():
            found = [value for key, value in metrics.items() if re.fullmatch(pattern, key)]
            if found:
                figures[title] = factor * max(found)
        stalls = {
            match[1]: value
            for key, value in metrics.items()
            if (match := STALL.fullmatch(key)) and "not_issued" not in key
        }
        entries.append(
            {
                "case": CASES[case].name if 0 <= case < len(CASES) else f"case {case}",
                "kernel": short_name(name),
                "figures": figures,
                "stalls": dict(sorted(stalls.items(), key=lambda pair: -pair[1])),
                "metrics": metrics,
            }
        )
    return entries


def short_name(name: str) -> str:
    """Returns a kernel's name without namespaces and parameters: ``backward_kernel<128, 1, 0>``."""
    match = re.search(r"(\w+_kernel)\s*(<.*?>)?\(", name)
    if match is None:
        return name[:60]
    return match[1] + re.sub(r"\([^)]*\)", "", match[2] or "")  # the values follow their types: "(int)128"


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def main() -> int:
    """Profiles, writes the file, prints a line for each kernel and returns 0 if there is any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="file for the results")
    parser.add_argument("--launch", action="store_true", help="make the calls, under ncu")
    arguments = parser.parse_args()
    if arguments.launch:
        launch()
        return 0
    if arguments.out is None:
        parser.error("OUT.json is needed")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        try:
            status = subprocess.run(command(log), check=False).returncode
        except OSError as error:
            status = str(error)
        text = log.read_text(errors="replace") if log.is_file() else ""
    entries = summarise(read(text.splitlines()))
    said = [line for line in text.splitlines() if line.startswith("==") and "==PROF==" not in line]
    record: dict[str, Any] = {"kernels": entries, "status": status, "said": said[:40]}
    if not entries:
        record["problem"] = f"ncu (status {status}) measured no kernel: {' '.join(said)[:300]}"
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    for entry in entries:
        print(
            entry["case"], entry["kernel"], {key: round(value, 2) for key, value in entry["figures"].items()}, sep="; "
        )
    print(record.get("problem", f"{len(entries)} kernels"), flush=True)
    return 0 if entries else 1


if __name__ == "__main__":
    sys.exit(main())
