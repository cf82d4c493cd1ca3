"""What the CUDA compiler says of the kernels: scripts/cuda_report.py compiles them, docs/cuda_kernels.json keeps it."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
AGAIN = "run `python scripts/cuda_report.py` where nvcc is"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("cuda_report", ROOT / "scripts" / "cuda_report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report():
    return json.loads((ROOT / "docs" / "cuda_kernels.json").read_text())


def test_the_report_is_of_these_sources(script, report):
    assert report["sources"] == script.digest(), f"csrc/cuda has changed since docs/cuda_kernels.json: {AGAIN}"


def test_every_kernel_is_reported(report):
    names = {(k["task"], k["H"], k["precision"], k["tangents"], k["architecture"]) for k in report["kernels"]}
    assert len(names) == len(report["kernels"]) == 2 * 3 * 3 * 2 * 2


def test_registers_do_not_spill(report):
    for kernel in report["kernels"]:
        assert kernel["spill_stores"] <= (0 if kernel["task"] == "forward" else 64), kernel
        assert kernel["stack"] <= 64, kernel


def test_the_documentation_shows_the_report(script, report):
    assert script.table(report) in (ROOT / "docs" / "cuda.md").read_text(), AGAIN
