"""Builds and checks the CUDA kernels on a bare machine with an NVIDIA GPU and no network: gpu_check.sh OUTDIR.

The stages, each with a time limit and some time that the stages before it leave to it; one that fails is recorded, and
the next one runs all the same:

    build      the extension, for this machine's GPU only
    faulty     a program with faults for compute-sanitizer to see (tests/native/cuda/faulty.cu)
    layout     how one mma instruction spreads its operands over the threads (tests/native/cuda/mma_layout.cu)
    tests      tests/test_gpu.py
    memcheck   compute-sanitizer on small cases (scripts/gpu_small.py): addresses; first on the program with faults
    racecheck  compute-sanitizer on small cases: shared memory; first on the program with faults
    benchmark  jkoflow bench --device cuda --compile

OUTDIR/report.json is written before the first stage and anew after every stage: device, driver, commit, versions, and
of every stage its result, seconds and the end of its output; bench.json holds the figures and is written after every
measurement, and bench.md and bench.png show them in the end; log.txt takes all output as it comes. A table comes last.
A stage whose time is up is interrupted, so that it can say what it has, and then killed.

It needs python3 (3.11 or newer) with torch for CUDA, numpy, safetensors, pytest and pybind11, for the benchmark typer,
pandas and matplotlib, too; and cmake, ninja and nvcc, on PATH, beside python3 or in CUDA_HOME. Wheels of what is
missing may lie in the folder that the environment variable WHEELS names, and COMMIT names the commit where there is no
repository. It writes to OUTDIR and below build/ only, and leaves the settings of the GPU alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supervision import ROOT, Stage, run_command, run_stage

BUILD = ROOT / "build" / "gpu_check"
SITE = BUILD / "site"
"""Folder that the stages import from: the package with the extension of this build, and unpacked wheels."""
REQUIRED = ("torch", "numpy", "safetensors", "pytest", "pybind11", "typer", "pandas", "matplotlib")
RESERVE = 15
"""Seconds that are kept for the end."""
ENDING = 25
"""Seconds of the benchmark's time in which it starts nothing more: for its start, the last measurement, the chart."""


def extend_path() -> None:
    """Adds folders where tools often are to the end of PATH: beside this Python, of CUDA, of the driver."""
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    driver = Path("/usr/local/nvidia/bin")
    for folder in (Path(sys.executable).parent, cuda / "bin", cuda / "compute-sanitizer", driver):
        os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{folder}"


def describe_machine() -> dict[str, Any]:
    """Returns device, driver, versions and the commit that is checked."""
    found: dict[str, Any] = {"python": platform.python_version(), "commit": _commit(), "sources": _sources_hash()}
    fields = ("name", "driver_version", "compute_cap", "memory.total", "clocks.max.sm")
    code, text = run_command(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], 30, {})
    if code == 0 and text.strip():
        values = [value.strip() for value in text.strip().splitlines()[0].split(",")]
        found["gpu"] = dict(zip(fields, values, strict=True))
        found["gpus"] = len(text.strip().splitlines())
    else:
        found["gpu"], found["gpu_problem"] = None, text.strip()[-500:]
    code, text = run_command(["nvcc", "--version"], 30, {})
    found["nvcc"] = text.strip().splitlines()[-1] if code == 0 and text.strip() else None
    versions = "import torch; print(torch.__version__, torch.version.cuda)"
    code, text = run_command([sys.executable, "-c", versions], 120, {})
    found["torch"] = text.strip().splitlines()[-1] if code == 0 and text.strip() else None
    found["missing"] = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    found["missing"] += [name for name in ("cmake", "ninja", "nvcc", "compute-sanitizer") if shutil.which(name) is None]
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        found["missing"].append("Python.h")
    return found


def _commit() -> str | None:
    code, text = run_command(["git", "describe", "--always", "--dirty", "--abbrev=40"], 30, {})
    return text.strip() if code == 0 else os.environ.get("COMMIT")


def _sources_hash() -> str:
    """Returns a hash of the native sources and of ops, which names the checked state if there is no repository."""
    digest = hashlib.sha256()
    for folder, pattern in ((ROOT / "csrc", "*"), (ROOT / "jkoflow" / "ops", "*.py")):
        for path in sorted(path for path in folder.rglob(pattern) if path.is_file()):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def stages(outdir: Path, capability: str, benchmark_arguments: Sequence[str] = ()) -> list[Stage]:
    """Returns the stages on a GPU of some compute capability ("9.0")."""
    architecture = capability.replace(".", "")
    python = [sys.executable, "-P"]  # -P: imports come from SITE, not from the checkout
    imports = {
        "PYTHONPATH": str(SITE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "JKOFLOW_REQUIRE_GPU": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the machine's plugins are no part of the check
        # What they keep would otherwise go to /tmp and to the home directory.
        "TORCHINDUCTOR_CACHE_DIR": str(BUILD / "cache" / "inductor"),
        "TRITON_CACHE_DIR": str(BUILD / "cache" / "triton"),
        "CUDA_CACHE_PATH": str(BUILD / "cache" / "cuda"),
        "MPLCONFIGDIR": str(BUILD / "cache" / "matplotlib"),
    }
    # Every allocation its own, so that an access beyond it is seen.
    watched = imports | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--print-limit", "20", "--report-api-errors", "no"]
    sanitizer += ["--kernel-name", "kns=jkoflow"]
    small = [*python, "scripts/gpu_small.py", "--seconds", "50"]
    faulty = str(BUILD / "faulty")

    def watch(tool: str, fault: str, *more: str) -> list[list[str]]:
        """Returns commands that run a tool on a program with a fault, which it has to see, and on the small cases."""
        seen = f"{shlex.join([*sanitizer, '--tool', tool, faulty, fault])}; test $? -eq 9 && echo {tool} sees the fault"
        return [["sh", "-c", seen], [*sanitizer, "--tool", tool, *small, *more]]

    cmake = [
        *("cmake", "-S", ".", "-B", str(BUILD), "-G", "Ninja", "-DJKOFLOW_CUDA=ON", "-DCMAKE_BUILD_TYPE=Release"),
        *(f"-DCMAKE_CUDA_ARCHITECTURES={architecture}-real", f"-DPython_EXECUTABLE={sys.executable}"),
        "-DCMAKE_CUDA_FLAGS=-lineinfo",  # for compute-sanitizer; the code stays the same
    ]
    layout = str(BUILD / "mma_layout")
    return [
        Stage(
            "build",
            [
                cmake,
                ["cmake", "--build", str(BUILD), "--target", "_C"],
                [sys.executable, "-B", __file__, "--stage-site"],
            ],
            260,
            makes=(SITE / "jkoflow",),
        ),
        Stage(
            "faulty",
            [
                ["mkdir", "-p", str(BUILD)],
                ["nvcc", f"-arch=sm_{architecture}", "-o", faulty, "tests/native/cuda/faulty.cu"],
            ],
            30,
            makes=(Path(faulty),),
        ),
        Stage(
            "layout",
            [
                [
                    "nvcc",
                    "-std=c++17",
                    f"-arch=sm_{architecture}",
                    "-Icsrc",
                    "-Icsrc/cuda",
                    "-o",
                    layout,
                    "tests/native/cuda/mma_layout.cu",
                ],
                [layout],
            ],
            60,
        ),
        Stage(
            "tests",
            [
                [
                    *(*python, "-m", "pytest", "tests/test_gpu.py", "--noconftest", "-p", "no:cacheprovider", "-q"),
                    *("-o", "addopts=", "-o", "filterwarnings=default", "--maxfail", "40", "--tb", "short", "-rfE"),
                    *("--basetemp", str(BUILD / "pytest")),
                ]
            ],
            200,
            ("build",),
            environment=imports,
            least=90,
        ),
        Stage("memcheck", watch("memcheck", "memory"), 80, ("build", "faulty"), environment=watched, least=30),
        Stage(
            "racecheck", watch("racecheck", "race", "--fewer"), 80, ("build", "faulty"), environment=watched, least=30
        ),
        Stage(
            "benchmark",
            [
                [
                    *(*python, "-m", "jkoflow", "bench", "--device", "cuda", "--compile"),
                    *("--seconds", "{seconds}", "--out", str(outdir), *benchmark_arguments),
                ]
            ],
            260,
            ("build",),
            environment=imports,
            least=110,
        ),
    ]


def stage_site() -> None:
    """Puts the package with the built extension, and the wheels' contents, into the folder that stages import from."""
    shutil.rmtree(SITE, ignore_errors=True)
    SITE.mkdir(parents=True)
    shutil.copytree(ROOT / "jkoflow", SITE / "jkoflow", ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
    (extension,) = BUILD.glob("_C*.so")
    shutil.copy2(extension, SITE / "jkoflow")
    if wheels := os.environ.get("WHEELS"):
        for wheel in sorted(Path(wheels).glob("*.whl")):
            zipfile.ZipFile(wheel).extractall(SITE)


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
        report["problem"] = "nvidia-smi finds no GPU: " + report["machine"]["gpu_problem"]
    _write(report, outdir)
    if gpu is None:
        return report
    known = {stage.name: stage for stage in stages(outdir, gpu["compute_cap"], benchmark_arguments)}
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
            # the benchmark is told to end in time, with what it has
            told = f"{max(limit - ENDING, 1):.0f}"
            stage.commands = [[part.replace("{seconds}", told) for part in command] for command in stage.commands]
            entry = run_stage(stage, limit, log)
        report["stages"][stage.name] = entry
        if stage.name == "benchmark":
            report["benchmark"] = _read(outdir / "bench.json")
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
    return f"{needed.name} was not chosen and there is no {', '.join(missing)}" if missing else None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return {"problem": str(error)}


def _write(report: dict[str, Any], outdir: Path) -> None:
    part = outdir / "report.json.part"
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.replace(outdir / "report.json")


def table(report: dict[str, Any]) -> str:
    """Returns the closing table: machine, stages, and the benchmark's most important lines."""
    machine = report["machine"]
    gpu = machine["gpu"] or {"name": "no GPU", "compute_cap": "-", "driver_version": "-"}
    lines = [
        "",
        f"{gpu['name']} (compute capability {gpu['compute_cap']}), driver {gpu['driver_version']}, "
        f"torch {machine['torch']}",
        f"commit {machine['commit']}, sources {machine['sources'][:12]}",
    ]
    if machine["missing"]:
        lines.append(f"missing: {', '.join(machine['missing'])}")
    if "problem" in report:
        lines.append(report["problem"])
    for name, entry in report["stages"].items():
        output = entry.get("output_end", "")
        cases = re.findall(r"^\d+ of \d+ cases$", output, re.MULTILINE)  # of gpu_small.py; the tool has the last line
        what = entry.get("reason") or ", ".join([*cases, _last_line(output)])
        lines.append(f"{name:<10} {entry['result']:<10} {entry['seconds']:7.1f} s  {what[:100]}")
    return "\n".join([*lines, *benchmark_lines(report.get("benchmark", {}))])


def benchmark_lines(record: dict[str, Any]) -> list[str]:
    """Returns the lines on the first shape of `jkoflow bench`: times, errors and shares of the ceilings."""
    if not record.get("shapes"):
        return [f"benchmark: {record['problem']}"] if "problem" in record else []
    entry = record["shapes"][0]
    shape = ", ".join(f"{name} {value}" for name, value in entry["shape"].items())
    rates = ", ".join(f"{unit} {rate / 1e3:.1f} TFLOP/s" for unit, rate in entry["ceilings_gflops"].items())
    lines = [f"{shape}: us forward | forward+backward | largest error | of the ceiling, likewise ({rates})"]
    for result in entry["peers"]:
        figures = [result.get(direction, {}) for direction in ("forward", "forward+backward")]
        if not any(figures):
            lines.append(f"{result['peer']:<44} {result['status']}: {result['note']}")
            continue
        times = [f"{1e3 * found['ms']:10.1f}" if found else f"{'-':>10}" for found in figures]
        shares = [f"{found['of_floor']:5.0%}" if "of_floor" in found else f"{'-':>5}" for found in figures]
        error = max((error for error in result["errors"].values() if error is not None), default=float("nan"))
        note = "" if result["status"] == "measured" else f" | {result['status']}: {result['note']}"
        lines.append(f"{result['peer']:<44} {' | '.join(times)} | {error:.1e} | {' | '.join(shares)}{note}")
    return lines


def _last_line(text: str) -> str:
    return ([line for line in text.splitlines() if line.strip()] or [""])[-1].strip()


def main() -> int:
    """Checks, prints the table and returns 0 if every stage passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", nargs="?", type=Path, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="when everything has ended")
    parser.add_argument("--stages", help="some of the stages, such as build,tests")
    parser.add_argument("--benchmark-arguments", default="", help='such as "--peers closed-form"')
    parser.add_argument("--stage-site", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage_site:
        stage_site()
        return 0
    if arguments.outdir is None:
        parser.error("OUTDIR is needed")
    extend_path()
    chosen = arguments.stages.split(",") if arguments.stages else None
    report = check(
        arguments.outdir.resolve(), 60 * arguments.minutes, chosen, shlex.split(arguments.benchmark_arguments)
    )
    print(table(report))
    passed = report["stages"] and all(entry["result"] == "passed" for entry in report["stages"].values())
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
