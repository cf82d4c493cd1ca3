"""Builds and checks the CUDA kernels on a bare machine with an NVIDIA GPU and no network: gpu_check.sh OUTDIR.

The stages, each with a time limit and some time that the stages before it leave to it; one that fails is recorded, and
the next one runs all the same:

    build      the extension, for this machine's GPU only
    layout     how one mma instruction spreads its operands over the threads (tests/native/cuda/mma_layout.cu)
    tests      tests/test_gpu.py
    memcheck   compute-sanitizer on small cases (scripts/gpu_small.py): addresses; first on a kernel with a fault
    racecheck  compute-sanitizer on small cases: shared memory; likewise
    benchmark  benchmarks/gpu.py

OUTDIR/report.json is written before the first stage and anew after every stage: device, driver, commit, versions, and
of every stage its result, seconds and the end of its output; benchmark.json holds the figures and is written after
every measurement; log.txt takes all output as it comes. A table comes last. A stage whose time is up is interrupted, so
that it can say what it has, and then killed.

It needs python3 (3.11 or newer) with torch for CUDA, numpy, safetensors, pytest and pybind11, and cmake, ninja, nvcc,
on PATH, beside python3 or in CUDA_HOME; wheels of what is missing may lie in the folder that the environment variable
WHEELS names, and COMMIT names the commit where there is no repository. It writes to OUTDIR and below build/ only, and
leaves the settings of the GPU alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu_check"
SITE = BUILD / "site"
"""What the stages import: the package with the extension of this build, and unpacked wheels."""
REQUIRED = ("torch", "numpy", "safetensors", "pytest", "pybind11")
TAIL = 6000
"""Characters of a stage's output that the report keeps."""
RESERVE = 15
"""Seconds that are kept for the end."""
GRACE = 10
"""Seconds of a command's time that are for ending after an interrupt."""


@dataclass
class Stage:
    """One step of the check."""

    name: str
    commands: list[list[str]]
    limit: float
    """Seconds that it may take."""
    needs: tuple[str, ...] = ()
    """Stages without whose success it cannot run."""
    environment: dict[str, str] = field(default_factory=dict)
    least: float = 0
    """Seconds of these that stages before it must leave to it."""


def run_stage(stage: Stage, limit: float, log: Path) -> dict[str, Any]:
    """Runs a stage's commands in turn, for ``limit`` seconds at most; returns its entry of the report."""
    started = time.monotonic()
    entry: dict[str, Any] = {"result": "passed", "limit": round(limit, 1)}
    output = ""
    for command in stage.commands:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n==== {stage.name}: {' '.join(command)}\n")
        code, text = _run(command, limit - (time.monotonic() - started), stage.environment, log)
        output += text
        if code != 0:
            entry["result"] = "timed out" if code is None else "failed"
            entry["status"], entry["command"] = code, command
            break
    return entry | {"seconds": round(time.monotonic() - started, 1), "output_end": output[-TAIL:]}


def _run(
    command: list[str], seconds: float, environment: dict[str, str], log: Path | None = None
) -> tuple[int | None, str]:
    """Status (None if the time was up) and output of a command, which goes to the log, too.

    The output goes through a file: a pipe would have to be read to its end, which never comes if a process in a session
    of its own holds it.
    """
    if seconds <= 0:
        return None, "no time left\n"
    with tempfile.TemporaryFile() if log is None else log.open("ab+") as output:
        begin = output.seek(0, os.SEEK_END)
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return 127, f"{command[0]} cannot be started: {error}\n"
        code = _wait(process, seconds)
        output.seek(begin)
        text = output.read().decode(errors="replace")
    return code, text if code is not None else text + f"\nstopped after {seconds:.0f} s\n"


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """A command's status, or None if its time was up; what is left of its process group is killed."""
    grace = min(GRACE, seconds / 4)
    code = None
    try:
        code = process.wait(seconds - grace)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)  # pytest then reports its failures so far
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # what hangs in the driver cannot be killed
        process.wait(5)
    return code


def extend_path() -> None:
    """Adds folders where tools often are to the end of PATH: beside this Python, of CUDA, of the driver."""
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    driver = Path("/usr/local/nvidia/bin")
    for folder in (Path(sys.executable).parent, cuda / "bin", cuda / "compute-sanitizer", driver):
        os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{folder}"


def describe_machine() -> dict[str, Any]:
    """Device, driver, versions and what is being checked."""
    found: dict[str, Any] = {"python": platform.python_version(), "commit": _commit(), "sources": _sources_hash()}
    fields = ("name", "driver_version", "compute_cap", "memory.total", "clocks.max.sm")
    code, text = _run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], 30, {})
    if code == 0 and text.strip():
        values = [value.strip() for value in text.strip().splitlines()[0].split(",")]
        found["gpu"] = dict(zip(fields, values, strict=True))
        found["gpus"] = len(text.strip().splitlines())
    else:
        found["gpu"], found["gpu_problem"] = None, text.strip()[-500:]
    code, text = _run(["nvcc", "--version"], 30, {})
    found["nvcc"] = text.strip().splitlines()[-1] if code == 0 and text.strip() else None
    versions = "import torch; print(torch.__version__, torch.version.cuda)"
    code, text = _run([sys.executable, "-c", versions], 120, {})
    found["torch"] = text.strip().splitlines()[-1] if code == 0 and text.strip() else None
    found["missing"] = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    found["missing"] += [name for name in ("cmake", "ninja", "nvcc", "compute-sanitizer") if shutil.which(name) is None]
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        found["missing"].append("Python.h")
    return found


def _commit() -> str | None:
    code, text = _run(["git", "describe", "--always", "--dirty", "--abbrev=40"], 30, {})
    return text.strip() if code == 0 else os.environ.get("COMMIT")


def _sources_hash() -> str:
    """Names what is checked where there is no repository: a hash of the native sources and of ops."""
    digest = hashlib.sha256()
    for folder, pattern in ((ROOT / "csrc", "*"), (ROOT / "jkoflow" / "ops", "*.py")):
        for path in sorted(path for path in folder.rglob(pattern) if path.is_file()):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def stages(outdir: Path, capability: str, benchmark_arguments: Sequence[str] = ()) -> list[Stage]:
    """The stages on a GPU of some compute capability ("9.0")."""
    architecture = capability.replace(".", "")
    python = [sys.executable, "-P"]  # -P: imports come from SITE, not from the checkout
    imports = {
        "PYTHONPATH": str(SITE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "JKOFLOW_REQUIRE_GPU": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the machine's plugins are no part of the check
        # What torch.compile, Triton and the driver keep would otherwise go to /tmp and to the home directory.
        "TORCHINDUCTOR_CACHE_DIR": str(BUILD / "cache" / "inductor"),
        "TRITON_CACHE_DIR": str(BUILD / "cache" / "triton"),
        "CUDA_CACHE_PATH": str(BUILD / "cache" / "cuda"),
    }
    # Every allocation its own, so that an access beyond it is seen.
    watched = imports | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--print-limit", "20", "--report-api-errors", "no"]
    sanitizer += ["--kernel-name", "kns=jkoflow"]
    small = [*python, "scripts/gpu_small.py", "--seconds", "50"]
    faulty = str(BUILD / "faulty")

    def watch(tool: str, fault: str, *more: str) -> list[list[str]]:
        """The tool on a program with a fault, which it has to see, then on the small cases."""
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
            [cmake, ["cmake", "--build", str(BUILD), "--target", "_C"], [*python, __file__, "--stage-site"]],
            260,
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
                ["nvcc", f"-arch=sm_{architecture}", "-o", faulty, "tests/native/cuda/faulty.cu"],
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
            imports,
            90,
        ),
        Stage("memcheck", watch("memcheck", "memory"), 80, ("build",), watched, 30),
        Stage("racecheck", watch("racecheck", "race", "--fewer"), 80, ("build",), watched, 30),
        Stage(
            "benchmark",
            [
                [
                    *python,
                    "benchmarks/gpu.py",
                    "--out",
                    str(outdir / "benchmark.json"),
                    "--seconds",
                    "{seconds}",
                    *benchmark_arguments,
                ]
            ],
            260,
            ("build",),
            imports,
            110,
        ),
    ]


def stage_site() -> None:
    """Puts the package with the built extension, and the wheels' contents, where the stages import from."""
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
    wanted = [
        stage
        for stage in stages(outdir, gpu["compute_cap"], benchmark_arguments)
        if chosen is None or stage.name in chosen
    ]
    for i, stage in enumerate(wanted):
        lacking = [
            name for name in stage.needs if report["stages"].get(name, {"result": "passed"})["result"] != "passed"
        ]
        left = seconds - RESERVE - (time.monotonic() - started) - sum(later.least for later in wanted[i + 1 :])
        limit = left if stage.name == "benchmark" else min(stage.limit, left)
        if lacking:
            entry: dict[str, Any] = {
                "result": "not run",
                "reason": f"{', '.join(lacking)} did not pass",
                "seconds": 0.0,
            }
        elif limit < 5:
            entry = {"result": "not run", "reason": "no time left", "seconds": 0.0}
        else:
            print(f"{stage.name} (at most {limit:.0f} s) ...", flush=True)
            # the benchmark is told to end in time, with what it has
            stage.commands = [[part.replace("{seconds}", f"{limit - 10:.0f}") for part in c] for c in stage.commands]
            entry = run_stage(stage, limit, log)
        report["stages"][stage.name] = entry
        if stage.name == "benchmark":
            report["benchmark"] = _read(outdir / "benchmark.json")
        report["seconds"] = round(time.monotonic() - started, 1)
        _write(report, outdir)
        if entry["result"] in ("failed", "timed out"):
            print("\n".join(entry["output_end"].strip().splitlines()[-15:]), flush=True)
    return report


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
    """What a reader sees last: machine, stages, and the benchmark's most important lines."""
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
    for line in (report.get("benchmark") or {}).get("summary", []):
        lines.append(line)
    return "\n".join(lines)


def _last_line(text: str) -> str:
    return ([line for line in text.splitlines() if line.strip()] or [""])[-1].strip()


def main() -> int:
    """Checks, prints the table and returns 0 if every stage passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", nargs="?", type=Path, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="when everything has ended")
    parser.add_argument("--stages", help="some of the stages, such as build,tests")
    parser.add_argument("--benchmark-arguments", default="", help='such as "--groups ours,compiled"')
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
