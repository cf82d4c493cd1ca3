"""Builds and checks the CUDA kernels on a bare machine with an NVIDIA GPU and no network: gpu_check.sh OUTDIR.

The stages, each with a time limit and some time that the stages before it leave to it; one that fails is recorded, and
the next one runs all the same:

    build      the extension, for this machine's GPU only: linked from kernels that were compiled elsewhere
               (gpu_check.sh --prebuild) if they are there and of these sources, else compiled
    layout     how one mma instruction spreads its operands over the threads (tests/native/cuda/mma_layout.cu)
    smoke      small cases of every kernel against float64 (scripts/gpu_small.py)
    core       those tests of tests/test_gpu.py that matter most
    memcheck   compute-sanitizer on the small cases: addresses; first on a program with faults
    racecheck  compute-sanitizer on the small cases: shared memory; first on the program with faults
    synccheck  compute-sanitizer on the small cases: barriers; first on the program with faults
    profile    ncu on the six kernels that decide (scripts/gpu_profile.py)
    train      what an iteration of training costs (scripts/gpu_train.py)
    rest       the other tests
    plans      tests/test_cuda_plan.py: plans for GPUs that need not be there are those that run
    benchmark  jkoflow bench --device cuda --compile at three shapes

OUTDIR/report.json is written before the first stage and anew after every stage: device, driver, commit, versions, and
of every stage its result, seconds and the end of its output; profile.json, train.json and bench.json hold the figures,
and bench.md and bench.png show the last; log.txt takes all output as it comes. A table comes last. A stage whose time
is up is interrupted, so that it can say what it has, and then killed.

It needs python3 (3.11 or newer) with its headers, torch for CUDA, numpy, safetensors, pytest and pybind11, for the
benchmark typer, pandas and matplotlib, too; and cmake, ninja and nvcc, on PATH, beside python3 or in CUDA_HOME. Wheels
of what is missing may lie in the folder that the environment variable WHEELS names, and COMMIT names the commit where
the checkout has no history or another one. It writes to OUTDIR and below build/ only, and leaves the settings of the
GPU alone.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_prebuilt
from gpu_build import site_problem
from gpu_machine import describe_machine, extend_path
from gpu_stages import stages
from gpu_table import table
from supervision import Stage, run_stage

RESERVE = 15
"""Seconds that are kept for the end."""
ENDING = {"benchmark": 25, "memcheck": 25, "racecheck": 25, "synccheck": 25}
"""Seconds of a stage's time in which it starts nothing more: for its start, the last measurement, the chart, and the
end of a process that compute-sanitizer watches."""
USUAL_ENDING = 12
FIGURES = {"profile": "profile.json", "train": "train.json", "benchmark": "bench.json"}
"""Files of figures that become part of the report."""


def check(
    outdir: Path, seconds: float, chosen: list[str] | None, benchmark_arguments: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs the stages and returns the report, which is in OUTDIR after every stage."""
    started = time.monotonic()
    outdir.mkdir(parents=True, exist_ok=True)
    log = outdir / "log.txt"
    log.write_text("")
    report: dict[str, Any] = {"machine": describe_machine(), "stages": {}}
    gpu = report["machine"]["gpu"]
    if gpu is None:
        report["problem"] = "neither nvidia-smi nor torch finds a GPU: " + report["machine"]["gpu_problem"]
    _write(report, outdir)
    if gpu is None:
        return report
    known = {stage.name: stage for stage in stages(outdir, gpu["compute_cap"], benchmark_arguments)}
    if unknown := set(chosen or ()) - set(known):
        raise SystemExit(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    wanted = [stage for stage in known.values() if chosen is None or stage.name in chosen]
    for i, stage in enumerate(wanted):
        lacking = [why for name in stage.needs if (why := _lacking(known[name], report["stages"])) is not None]
        left = seconds - RESERVE - (time.monotonic() - started) - sum(later.least for later in wanted[i + 1 :])
        limit = left if stage.name == "benchmark" else min(stage.limit, left)
        if lacking:
            entry: dict[str, Any] = {"result": "not run", "reason": ", ".join(lacking), "seconds": 0.0}
        elif limit < 5:
            entry = {"result": "not run", "reason": "no time left", "seconds": 0.0}
        else:
            print(f"{stage.name} (at most {limit:.0f} s) ...", flush=True)
            # some are told to end in time, with what they have
            told = f"{max(limit - ENDING.get(stage.name, USUAL_ENDING), 1):.0f}"
            stage.commands = [[part.replace("{seconds}", told) for part in command] for command in stage.commands]
            figures = outdir / FIGURES[stage.name] if stage.name in FIGURES else None
            if figures is not None:
                figures.unlink(missing_ok=True)  # those of an earlier check
            entry = run_stage(stage, limit, log)
            if figures is not None:
                report[stage.name] = _read(figures)
        report["stages"][stage.name] = entry
        report["seconds"] = round(time.monotonic() - started, 1)
        _write(report, outdir)
        if entry["result"] in ("failed", "timed out"):
            print("\n".join(entry["output_end"].strip().splitlines()[-15:]), flush=True)
    return report


def _lacking(needed: Stage, entries: dict[str, Any]) -> str | None:
    """Says why a needed stage has not left its results; returns None if it has, perhaps in an earlier check."""
    if needed.name in entries:
        return None if entries[needed.name]["result"] == "passed" else f"{needed.name} did not pass"
    missing = [str(path) for path in needed.makes if not path.exists()]
    if missing:
        return f"{needed.name} was not chosen and there is no {', '.join(missing)}"
    if needed.name == "build" and (problem := site_problem()):
        return f"build was not chosen and {problem}"
    return None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return {"problem": str(error)}


def _write(report: dict[str, Any], outdir: Path) -> None:
    part = outdir / "report.json.part"
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.replace(outdir / "report.json")


def main() -> int:
    """Checks, prints the table and returns 0 if every stage passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", nargs="?", type=Path, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="when everything has ended")
    parser.add_argument("--stages", help="some of the stages, such as build,tests")
    parser.add_argument("--benchmark-arguments", default="", help='such as "--peers closed-form"')
    parser.add_argument("--prebuild", metavar="ARCHITECTURE", help='compile for GPUs elsewhere, such as "90", and end')
    parser.add_argument("--jobs", type=int, help="compilations of --prebuild at a time")
    arguments = parser.parse_args()
    extend_path()
    if arguments.prebuild is not None:
        gpu_prebuilt.make(arguments.prebuild, arguments.jobs)
        return 0
    if arguments.outdir is None:
        parser.error("OUTDIR is needed")
    chosen = arguments.stages.split(",") if arguments.stages else None
    report = check(
        arguments.outdir.resolve(), 60 * arguments.minutes, chosen, shlex.split(arguments.benchmark_arguments)
    )
    print(table(report))
    passed = report["stages"] and all(entry["result"] == "passed" for entry in report["stages"].values())
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
