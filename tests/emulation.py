"""Builds the CUDA kernels as C++ against the emulator in tests/native/emulation, and runs the operators on them."""

import fcntl
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from jkoflow.ops import native

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "emulation"


def build(target: str, architecture: int = 80) -> Path:
    """Compiles a target of the emulation; later calls compile only what has changed."""
    folder = BUILD if architecture == 80 else BUILD.with_name(f"{BUILD.name}_{architecture}")
    if shutil.which("c++") is None or shutil.which("cmake") is None or shutil.which("ninja") is None:
        pytest.skip("the emulation of the CUDA kernels needs a C++ compiler, cmake and ninja")
    source = ROOT / "tests" / "native" / "emulation"
    configure = ["cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
    configure.append(f"-DEMULATED_ARCHITECTURE={architecture}")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:  # tests run in several processes, which share the build
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, ["cmake", "--build", str(folder), "--target", target]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return folder


def load(architecture: int = 80) -> ModuleType:
    """The module _emulation."""
    (path,) = build("_emulation", architecture).glob("_emulation.*.so")
    spec = importlib.util.spec_from_file_location("_emulation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emulation_module():
    return load()


@pytest.fixture
def emulation(emulation_module):
    """The emulated kernels, on the usual device and in the usual order."""
    emulation_module.configure()
    emulation_module.set()
    return emulation_module


def problem_of(**changes: Any) -> Any:
    """A description without tensors, of a small problem but for the changes: enough to plan for."""
    problem = native._C.Problem()
    problem.batch, problem.dim, problem.hidden, problem.num_steps = 5, 3, [64, 64], 1
    problem.tableau = native._C.Tableau([[]], [1.0], [0.0])
    for name, value in changes.items():
        setattr(problem, name, value)
    return problem


class EmulatedKernels:
    """Stands in for jkoflow._C: its CPU kernels are the emulated CUDA kernels at one precision."""

    def __init__(self, emulation: ModuleType, precision: str) -> None:
        self._emulation = emulation
        self._precision = getattr(native._C.Precision, precision)
        self._real = native._C

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _run(self, name: str, *descriptions: Any) -> None:
        reason = self._real.cuda_unsupported(descriptions[0], self._precision)
        assert reason == "", reason
        # A workspace of NaN, with some behind it that must stay: contents are anything, the size is exact.
        words = getattr(self._emulation, f"{name}_bytes")(descriptions[0], self._precision) // 4
        workspace = torch.full((words + 64,), float("nan"))
        getattr(self._emulation, name)(*descriptions, self._precision, workspace.data_ptr())
        assert workspace[words:].isnan().all(), "the kernels wrote behind their workspace"

    def cpu_forward(self, problem: Any) -> None:
        self._run("forward", problem)

    def cpu_backward(self, problem: Any, adjoint: Any) -> None:
        self._run("backward", problem, adjoint)

    def cpu_evaluate(self, problem: Any) -> None:
        self._run("evaluate", problem)

    def cpu_evaluate_backward(self, problem: Any, adjoint: Any) -> None:
        self._run("evaluate_backward", problem, adjoint)

    def cpu_adaptive(self, problem: Any, control: Any, rows: Any) -> None:
        self._run("adaptive", problem, control, rows)

    def cpu_adaptive_backward(self, problem: Any, control: Any, rows: Any, adjoint: Any) -> None:
        self._run("adaptive_backward", problem, control, rows, adjoint)

    def cpu_jko_loss(self, problem: Any, loss: Any, adjoint: Any) -> None:
        self._run("jko_loss", problem, loss, adjoint)
