"""The stages of gpu_check.py as commands, in the order of what they teach."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_build import BUILD, PROGRAMS, SITE
from supervision import Stage

WORKERS = 10
"""Processes that share the GPU in the tests, whose cases are too small to fill it, where pytest-xdist is installed."""
TEST_SECONDS = 75
"""Seconds after which a test counts as hanging, where pytest-timeout is installed; torch.compile takes the longest."""
CORE = "(networks or batches or graph or stream or written or bits or nan or wait or return) and not adaptive"
"""What of tests/test_gpu.py comes first, as pytest's -k has it."""
SHAPES = "6,128,2,10000,3 6,128,2,250,3 63,256,2,10000,3"
PEERS = "closed-form,torchdiffeq"

_PYTHON = [sys.executable, "-P"]  # -P: imports come from SITE, not from the checkout
_IMPORTS = {
    "PYTHONPATH": str(SITE),
    "PYTHONSAFEPATH": "1",  # -P for the processes that they start
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "JKOFLOW_REQUIRE_GPU": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # the machine's plugins are no part of the check, save those asked for
    # What they keep would otherwise go to /tmp and to the home directory.
    "TORCHINDUCTOR_CACHE_DIR": str(BUILD / "cache" / "inductor"),
    "TRITON_CACHE_DIR": str(BUILD / "cache" / "triton"),
    "CUDA_CACHE_PATH": str(BUILD / "cache" / "cuda"),
    "MPLCONFIGDIR": str(BUILD / "cache" / "matplotlib"),
}


def stages(outdir: Path, capability: str, benchmark_arguments: Sequence[str] = ()) -> list[Stage]:
    """Returns the stages on a GPU of some compute capability ("9.0").

    Arguments:
        outdir: Folder for what the stages write.
        capability: Compute capability of the GPU.
        benchmark_arguments: More arguments for ``jkoflow bench``, of which the last of each kind holds.
    """
    architecture = capability.replace(".", "")
    build = Stage(
        "build",
        [[sys.executable, "-B", "scripts/gpu_build.py", architecture]],
        240,
        makes=(SITE / "jkoflow", PROGRAMS / "faulty"),
    )
    layout = Stage("layout", [[str(PROGRAMS / "mma_layout")]], 20, least=5)
    smoke = [*_PYTHON, "scripts/gpu_small.py", "--compare", "--seconds", "15"]
    profile = [*_PYTHON, "scripts/gpu_profile.py", str(outdir / "profile.json")]
    train = [*_PYTHON, "scripts/gpu_train.py", str(outdir / "train.json")]
    benchmark = [*_PYTHON, "-m", "jkoflow", "bench", "--device", "cuda", "--compile", "--seconds", "{seconds}"]
    benchmark += ["--shapes", SHAPES, "--peers", PEERS, "--out", str(outdir), *benchmark_arguments]
    return [
        build,
        layout,
        _on_gpu("smoke", [smoke], 40, least=15),
        _on_gpu("core", [_tests("core", "tests/test_gpu.py", CORE)], 100, least=35),
        _watched("memcheck", "memory", least=40),
        _watched("racecheck", "race", "--fewer", least=40),
        _watched("synccheck", "sync", "--fewer", least=35),
        _on_gpu("profile", [profile], 90, least=40),
        _on_gpu("train", [train], 50, least=20),
        _on_gpu("rest", [_tests("rest", "tests/test_gpu.py", f"not ({CORE})")], 150, least=35),
        _on_gpu("plans", [_tests("plans", "tests/test_cuda_plan.py", None)], 40, least=10),
        _on_gpu("benchmark", [benchmark], 260, least=50),
    ]


def _on_gpu(name: str, commands: list[list[str]], limit: float, least: float) -> Stage:
    return Stage(name, commands, limit, ("build",), environment=_IMPORTS, least=least)


def _tests(name: str, file: str, chosen: str | None) -> list[str]:
    """Returns pytest's command for those tests of a file that an expression chooses, on the plugins that are there."""
    command = [*_PYTHON, "-m", "pytest", file, "--noconftest", "-p", "no:cacheprovider", "-q", "-o", "addopts="]
    command += ["-o", "filterwarnings=default", "--maxfail", "40", "--tb", "short", "-rfE", "--durations", "5"]
    command += ["--basetemp", str(BUILD / f"pytest-{name}"), *(["-k", chosen] if chosen else [])]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-p", "xdist", "-n", str(WORKERS), "--max-worker-restart", "4"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        # a thread: what waits in the driver hears no signal, so its process has to end
        command += ["-p", "pytest_timeout", "--timeout", str(TEST_SECONDS), "--timeout-method", "thread"]
    return command


def _watched(tool: str, fault: str, *more: str, least: float) -> Stage:
    """Returns the stage of a tool, which first has to see the fault of a program that has one."""
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--print-limit", "20", "--report-api-errors", "no"]
    sanitizer += ["--kernel-name", "kns=jkoflow", "--tool", tool]
    seen = f"{shlex.join([*sanitizer, str(PROGRAMS / 'faulty'), fault])}; test $? -eq 9 && echo {tool} sees the fault"
    small = [*sanitizer, *_PYTHON, "scripts/gpu_small.py", "--seconds", "{seconds}", *more]
    stage = _on_gpu(tool, [["sh", "-c", seen], small], 60, least)
    # Every allocation its own, so that an access beyond it is seen.
    stage.environment = _IMPORTS | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return stage
