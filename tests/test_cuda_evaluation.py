"""Single evaluations by the CUDA kernels, every row at its own time: run by the emulator, against the reference."""

import pytest
import torch

from emulation import EmulatedKernels
from jkoflow.ops import native, velocity_and_divergence
from oracles import assert_within_twice, random_velocity

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")

FLOORS = {"fp32": 1.5e-6, "tf32x3": 4e-6}  # see test_cuda_emulation.py
NETWORKS = {
    "one layer": {"dim": 3, "hidden": (40,)},
    "two layers": {"dim": 3, "hidden": (50, 64), "linear": True, "context_dim": 2},
    "three layers": {"dim": 2, "hidden": (20, 64, 33), "context_dim": 1},
    "wide": {"dim": 17, "hidden": (129, 40), "linear": True},
    "no time": {"dim": 3, "hidden": (30, 20), "time": False, "context_dim": 1},
    "no time, no context": {"dim": 3, "hidden": (30,), "time": False},
}


def inputs(network, batch, dtype=torch.float32):
    velocity = random_velocity(**network, dtype=dtype, scale=0.8)
    generator = torch.Generator().manual_seed(1)
    columns = {"x": velocity.dim, "t": 1, "context": velocity.context_dim, "noise": velocity.dim}
    tensors = {name: torch.randn(batch, count, generator=generator).to(dtype) for name, count in columns.items()}
    return velocity, tensors | {"t": tensors["t"].squeeze(1)}


def values_and_gradients(velocity, tensors, divergence, backend):
    leaves = {name: tensors[name].detach().clone().requires_grad_() for name in ("x", "t", "context")}
    if velocity.context_dim == 0:
        del leaves["context"]
    noise = tensors["noise"] if divergence == "hutchinson" else None
    results = velocity_and_divergence(
        velocity, leaves["x"], leaves["t"], leaves.get("context"), divergence=divergence, noise=noise, backend=backend
    )
    found = dict(zip(("velocity", "divergence"), results, strict=True))
    bars = torch.Generator().manual_seed(7)
    loss = sum((part * torch.randn(part.shape, generator=bars).to(part.dtype)).sum() for part in results)
    wanted = leaves | dict(velocity.named_parameters())
    gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    return found | {f"gradient of {name}": value for name, value in zip(wanted, gradients, strict=True)}


def check(emulation, monkeypatch, network, batch, divergence, precision):
    case = inputs(network, batch)
    with monkeypatch.context() as patched:
        patched.setattr(native, "_C", EmulatedKernels(emulation, precision))
        got = values_and_gradients(*case, divergence, "cpu")
    peer = values_and_gradients(*case, divergence, "reference")
    velocity, tensors = case
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    exact = values_and_gradients(velocity.double(), tensors, divergence, "reference")
    for name, value in exact.items():
        scale = max(1.0, value.abs().max().item() if value.numel() else 0.0)
        assert_within_twice(got[name], peer[name], value, FLOORS[precision] * scale, f"{name}, {network}, {precision}")


@pytest.mark.parametrize("precision", FLOORS)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_against_the_reference(emulation, monkeypatch, network, divergence, precision):
    check(emulation, monkeypatch, network, 21, divergence, precision)


@pytest.mark.parametrize("batch", [0, 1, 16, 99])
def test_batches(emulation, monkeypatch, batch):
    emulation.configure(multiprocessors=2)
    check(emulation, monkeypatch, NETWORKS["two layers"], batch, "exact", "fp32")


@pytest.mark.parametrize("wanted", ["x", "t", "context", "layers.0.weight"])
def test_a_single_gradient(emulation, monkeypatch, wanted):
    velocity, tensors = inputs(NETWORKS["two layers"], 9)
    leaves = {name: tensors[name].detach().clone() for name in ("x", "t", "context")}
    for parameter in velocity.parameters():
        parameter.requires_grad_(False)
    leaf = (leaves | dict(velocity.named_parameters()))[wanted].requires_grad_()
    gradients = []
    for backend in ("cpu", "reference"):
        with monkeypatch.context() as patched:
            if backend == "cpu":
                patched.setattr(native, "_C", EmulatedKernels(emulation, "fp32"))
            v, divergence = velocity_and_divergence(velocity, *leaves.values(), backend=backend)
        gradients.append(torch.autograd.grad((v.sum() + divergence.sum()), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
