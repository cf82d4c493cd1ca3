"""jkoflow.environment: what a run records about the machine."""

import getpass
import json
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

import jkoflow
from jkoflow import environment
from jkoflow.cli import console


def test_describes_versions_machine_and_kernels():
    found = environment.describe()
    assert found["jkoflow"] == jkoflow.__version__
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cpus"] >= 1
    assert found["cpu"]
    kernels = found["kernels"]
    assert kernels.keys() >= {"cpu", "cuda", "cuda_plan", "isa", "isas", "bf16x3", "openmp", "threads"}
    assert (kernels["cpu"] is None) == (kernels["isa"] is not None)
    assert json.loads(json.dumps(found)) == found


def test_doctor_shows_a_plan_of_the_cuda_kernels(capsys):
    shown = describe_with_plan({
        "gpu": "Some GPU", "batch": 100, "dim": 6, "hidden": [128, 64], "thread_blocks": 7, "share": 16, "tile": 32,
        "small_tile": 16, "shared_bytes": 2560,
    })  # fmt: skip
    console.show_environment(shown)
    line = (
        "Some GPU: loss of 100 samples, 6 features, 128 x 64 units: 7 thread blocks of 16 samples in tiles of 32 and 16"
    )
    assert f"{line}, 2.5 KB shared" in " ".join(capsys.readouterr().out.split())
    console.show_environment(describe_with_plan(None))
    assert "cuda plan" not in capsys.readouterr().out


def describe_with_plan(plan):
    found = environment.describe()
    return {**found, "kernels": {**found["kernels"], "cuda_plan": plan}}


def test_names_neither_machine_nor_user():
    text = json.dumps({name: value for name, value in environment.describe().items() if name != "kernels"})
    assert str(Path.home()) not in text
    assert platform.node() not in text
    user = getpass.getuser()
    assert user == "root" or user not in text


def test_processor_of_a_system_without_proc(monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert environment.cpu_model() == platform.machine()


def test_available_cpus_outside_linux(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert environment.available_cpus() == 1


@pytest.mark.parametrize(
    ("built_for", "available", "expected"),
    [
        (None, False, "no CUDA device: this PyTorch is built without CUDA"),
        ("12.8", False, "no CUDA device: PyTorch for CUDA 12.8 finds no driver or no GPU"),
        ("12.8", True, "Some GPU (sm_90), Some GPU (sm_90) (PyTorch for CUDA 12.8)"),
    ],
)
def test_cuda_status(monkeypatch, built_for, available, expected):
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert environment.cuda_status() == expected
