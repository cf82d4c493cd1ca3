"""What the CUDA compiler says of the kernels: scripts/cuda_report.py compiles them, docs/cuda_kernels.json keeps it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from jkoflow.ops.extension import C

ROOT = Path(__file__).parent.parent
AGAIN = "run `python scripts/cuda_report.py` where nvcc is"
with_plans = pytest.mark.skipif(C is None, reason="no compiled extension")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("cuda_report", ROOT / "scripts" / "cuda_report.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_report"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["cuda_report"]


@pytest.fixture(scope="module")
def report():
    return json.loads((ROOT / "docs" / "cuda_kernels.json").read_text())


def test_the_report_is_of_these_sources(script, report):
    assert report["sources"] == script.digest(), f"csrc/cuda has changed since docs/cuda_kernels.json: {AGAIN}"


def test_every_kernel_is_reported(report):
    names = {(k["task"], k["H"], k["precision"], k["tangents"], k["architecture"]) for k in report["kernels"]}
    assert len(names) == len(report["kernels"]) == 4 * 3 * 3 * 2 * 2


@with_plans
def test_registers_allow_the_thread_blocks_that_plans_count_on(script, report):
    for kernel in report["kernels"]:
        names = ("task", "H", "tangents", "architecture")
        planned = script.plan(*(kernel[name] for name in names), precision=kernel["precision"])
        assert kernel["blocks_per_multiprocessor"] == planned["resident"], kernel
        assert kernel["shared_bytes"] == planned["shared_bytes"], f"{kernel}: {AGAIN}"


def test_registers_hardly_spill(report):
    for kernel in report["kernels"]:
        warp_groups = (kernel["architecture"], kernel["precision"], kernel["tangents"]) == ("90", "tf32x3", False)
        forward = 40 if warp_groups else 8  # whose weights lie in registers, split, beside those that come next
        assert kernel["spill_stores"] <= (forward if kernel["task"].endswith("forward") else 64), kernel
        assert kernel["stack"] <= 64, kernel


@with_plans
def test_the_documentation_shows_the_report(script, report):
    page = (ROOT / "docs" / "cuda.md").read_text()
    assert script.table(report) in page, AGAIN
    assert script.bounds_table() in page, f"{AGAIN} with --tables"


@with_plans
def test_least_times_follow_from_the_shares(script):
    """Twice the tile halves what comes from the L2 cache and leaves the tensor cores' work as it is."""
    built, larger = (script.bounds("forward", 105_600, tile, 16, 1) for tile in (40, 80))
    assert larger.l2 == pytest.approx(built.l2 / 2)
    assert larger.tensor == pytest.approx(built.tensor)
    hidden, others = 2 * 128 * 128 / script.GROUP_RATE, (8 * 128 + 16 * 128) / script.TENSOR_RATE
    assert built.tensor == pytest.approx(3 * 2 * 105_600 * 12 * (hidden + others))
