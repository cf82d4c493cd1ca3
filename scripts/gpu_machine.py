"""What a machine has for gpu_check.py: its GPU, driver, tools and versions."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import runpy
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from gpu_build import checked_digest
from supervision import run_command

REQUIRED = ("torch", "numpy", "safetensors", "pytest", "pybind11", "typer", "pandas", "matplotlib")

_ASK_TORCH = """
import json, torch
if not torch.cuda.is_available():
    raise SystemExit("torch finds no GPU either")
gpu = torch.cuda.get_device_properties(0)
print(json.dumps({
    "name": gpu.name, "driver_version": "not known, nvidia-smi did not say", "compute_cap": f"{gpu.major}.{gpu.minor}",
    "memory.total": f"{gpu.total_memory >> 20} MiB", "gpus": torch.cuda.device_count(),
}))
"""


def extend_path() -> None:
    """Adds folders where tools often are to the end of PATH: beside this Python, of CUDA, of the driver."""
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    driver = Path("/usr/local/nvidia/bin")
    for folder in (Path(sys.executable).parent, cuda / "bin", cuda / "compute-sanitizer", driver):
        os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{folder}"


def describe_machine() -> dict[str, Any]:
    """Returns device, driver, versions and the commit that is checked."""
    found: dict[str, Any] = {"python": platform.python_version(), "commit": _commit(), "sources": checked_digest()}
    found |= _describe_gpu()
    code, text = run_command(["nvcc", "--version"], 30, {})
    found["nvcc"] = text.strip().splitlines()[-1] if code == 0 and text.strip() else None
    found["torch"] = _torch_version()
    found["missing"] = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    tools = ("cmake", "ninja", "nvcc", "compute-sanitizer", "ncu")
    found["missing"] += [name for name in tools if shutil.which(name) is None]
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        found["missing"].append("Python.h")
    return found


def _describe_gpu() -> dict[str, Any]:
    """Returns what nvidia-smi says of the first GPU, or, where it says nothing, what torch does."""
    fields = ("name", "driver_version", "compute_cap", "memory.total", "clocks.max.sm")
    code, text = run_command(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], 30, {})
    rows = [[value.strip() for value in line.split(",")] for line in text.strip().splitlines()]
    if code == 0 and rows and len(rows[0]) == len(fields):
        return {"gpu": dict(zip(fields, rows[0], strict=True)), "gpus": len(rows)}
    code, said = run_command([sys.executable, "-c", _ASK_TORCH], 120, {})
    try:
        gpu = json.loads(said.strip().splitlines()[-1]) if code == 0 else None
    except (IndexError, ValueError):
        gpu = None
    if gpu is None:
        return {"gpu": None, "gpus": 0, "gpu_problem": f"{text.strip()[-500:]}; {said.strip()[-300:]}"}
    return {"gpus": gpu.pop("gpus"), "gpu": gpu}


def _torch_version() -> str | None:
    """Returns torch's version and the CUDA that it is for, without the seconds that importing it takes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return f"{version['__version__']} {version['cuda']}"


def _commit() -> str | None:
    """Returns the commit that the caller names, since a copy of a checkout may have another history, or that of git."""
    if named := os.environ.get("COMMIT"):
        return named
    code, text = run_command(["git", "describe", "--always", "--dirty", "--abbrev=40"], 30, {})
    return text.strip() if code == 0 else None
