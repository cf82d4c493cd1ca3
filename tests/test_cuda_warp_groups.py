"""The kernels with warp groups, as sm_90a has them, on the emulator against the reference in float64."""

import copy

import pytest
import torch

import emulation as emulation_build
from emulation import EmulatedKernels
from jkoflow.ops import native, native_rows
from test_cuda_adaptive import NETWORKS, TIGHT, inputs, run
from test_cuda_emulation import FUSED, check

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")

HIDDEN = [(40,), (50, 64), (100,), (128, 70), (129,), (200, 256)]


@pytest.fixture(scope="module")
def module():
    return emulation_build.load(90)


@pytest.fixture
def warp_groups(module):
    module.configure()
    module.set()
    return module


def test_layout_of_operands(warp_groups):
    assert warp_groups.warp_group_layout_errors() == 0


@pytest.mark.parametrize("task", ["forward", "backward", "loss"])
@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_every_width(warp_groups, monkeypatch, hidden, task):
    network = {"dim": 3, "hidden": hidden, "context_dim": 1, "linear": True}
    batch = 53 if max(hidden) <= 128 else 37  # on one multiprocessor: large tiles, then a small one
    check(warp_groups, monkeypatch, network, batch, task, "tf32x3", method="heun", num_steps=2)


@pytest.mark.parametrize("hidden", [(50, 64), (128, 70), (200, 256)], ids=str)
def test_small_batches_are_spread(warp_groups, monkeypatch, hidden):
    warp_groups.configure(multiprocessors=8)
    for task in ("forward", "loss"):
        network = {"dim": 18, "hidden": hidden, "linear": True}
        check(warp_groups, monkeypatch, network, 35, task, "tf32x3", method="midpoint", num_steps=1)


@pytest.mark.parametrize("divergence", ["hutchinson", "none"])
def test_divergences(warp_groups, monkeypatch, divergence):
    network = {"dim": 3, "hidden": (50, 64), "context_dim": 2}
    check(warp_groups, monkeypatch, network, 19, "backward", "tf32x3", divergence=divergence, num_steps=1)


@pytest.mark.parametrize("activation", FUSED)
def test_activations(warp_groups, monkeypatch, activation):
    network = {"dim": 3, "hidden": (30, 20), "activation": activation}
    check(warp_groups, monkeypatch, network, 19, "loss", "tf32x3", num_steps=1)


@pytest.mark.parametrize("dim", [1, 17, 64, 128])
def test_dimensions(warp_groups, monkeypatch, dim):
    network = {"dim": dim, "hidden": (24, 40), "context_dim": 5}
    for task in ("forward", "loss"):
        check(warp_groups, monkeypatch, network, 9, task, "tf32x3", method="midpoint", num_steps=1)


def test_three_layers_have_none(warp_groups, monkeypatch):
    network = {"dim": 3, "hidden": (20, 64, 33)}
    check(warp_groups, monkeypatch, network, 19, "loss", "tf32x3", num_steps=1)


def test_adaptive_steps(warp_groups, monkeypatch):
    """As accurate as asked for: rounding may decide on a step more or less."""
    velocity, tensors = inputs(NETWORKS["two layers"], 40)
    exact = run(copy.deepcopy(velocity).double(), {k: v.double() for k, v in tensors.items()}, "reference")
    monkeypatch.setattr(native, "_C", EmulatedKernels(warp_groups, "tf32x3"))
    monkeypatch.setattr(native_rows, "on_gpu", lambda x: True)
    got = run(velocity, tensors, "cpu")
    for name in exact.keys() - {"evaluations"}:
        scale = max(1.0, exact[name].abs().max().item())
        torch.testing.assert_close(got[name].double(), exact[name], rtol=0, atol=20 * TIGHT["atol"] * scale, msg=name)
