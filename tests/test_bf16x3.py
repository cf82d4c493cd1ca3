"""precision="bf16x3": split products on AMX against float64, and its refusals where there is no AMX."""

import os
import subprocess
import sys

import pytest
import torch

import jkoflow
from jkoflow.ops import jko_loss, native
from oracles import random_velocity

needs_amx = pytest.mark.skipif(native.capabilities()["bf16x3"] is not None, reason="no AMX")


def results(velocity, x, noise, precision):
    """x, logdet and all gradients by the two operators, then the gradients by the fused loss."""
    options = {"precision": precision} | ({"divergence": "hutchinson", "noise": noise} if noise is not None else {})
    leaf = x.clone().requires_grad_()
    out = jkoflow.integrate(velocity, leaf, backend="cpu", **options)
    loss = (0.5 * out.x.square().sum(1) - out.logdet).mean()
    parameters = list(velocity.parameters())
    gradients = torch.autograd.grad(loss, [leaf, *parameters])
    total = jko_loss(velocity, x, 0.5, backend="cpu", **options).total
    return [out.x.detach(), out.logdet.detach(), *gradients, *torch.autograd.grad(total, parameters)]


def assert_close_to_float64(network, batch, hutchinson=False, tolerance=2e-5):
    velocity = random_velocity(**network, dtype=torch.float32, seed=1)
    x = torch.randn(batch, velocity.dim, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) if hutchinson else None
    got = results(velocity, x, noise, "bf16x3")
    plain = results(velocity, x, noise, "fp32")
    exact = results(velocity.double(), x.double(), None if noise is None else noise.double(), "fp32")
    different = False
    for ours, float32, reference in zip(got, plain, exact, strict=True):
        scale = reference.abs().max()
        float32_error = (float32.double() - reference).abs().max() / scale
        assert (ours.double() - reference).abs().max() / scale <= tolerance + 4 * float32_error
        different |= not torch.equal(ours, float32)
    assert different == (
        len(network["hidden"]) > 1
    )  # it is not float32 in disguise; one hidden layer has none of these


@needs_amx
@pytest.mark.parametrize(
    ("dim", "width", "layers"), [(2, 128, 2), (2, 128, 3), (6, 128, 2), (43, 128, 2), (63, 256, 2)]
)
def test_errors_at_the_benchmark_shapes(dim, width, layers):
    assert_close_to_float64({"dim": dim, "hidden": (width,) * layers}, 500)


@needs_amx
@pytest.mark.parametrize("batch", [1, 15, 16, 17, 47, 48, 49])
@pytest.mark.parametrize("hidden", [(40,), (33, 70), (1, 1), (16, 48, 20), (9, 17, 33, 65)])
def test_sizes(batch, hidden):
    assert_close_to_float64({"dim": 3, "hidden": hidden, "linear": True}, batch, tolerance=1e-4)


@needs_amx
@pytest.mark.parametrize("activation", ["tanh", "softplus(3)", "silu", "elu", "selu", "gelu"])
@pytest.mark.parametrize("hutchinson", [False, True])
def test_activations_and_divergences(activation, hutchinson):
    assert_close_to_float64({"dim": 4, "hidden": (48, 40), "activation": activation}, 50, hutchinson, 1e-4)


@needs_amx
def test_compiles_and_passes_opcheck():
    velocity = random_velocity(3, (20, 20), dtype=torch.float32)
    x = torch.randn(5, 3)
    compiled = torch.compile(
        lambda x: jkoflow.integrate(velocity, x, precision="bf16x3").x, fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), jkoflow.integrate(velocity, x, precision="bf16x3").x)


def test_is_for_float32_on_the_cpu():
    velocity = jkoflow.MLPVelocity(2, (8, 8))
    with pytest.raises(ValueError, match=r"'bf16x3' is for float32 .*, got torch.float64 on cpu with backend='auto'"):
        jkoflow.integrate(velocity.double(), torch.zeros(3, 2, dtype=torch.float64), precision="bf16x3")
    with pytest.raises(ValueError, match="backend='reference'"):
        jkoflow.integrate(velocity.float(), torch.zeros(3, 2), precision="bf16x3", backend="reference")


def test_is_refused_without_amx():
    program = (
        "import torch, jkoflow\n"
        "from jkoflow.ops import native\n"
        "print(native.capabilities()['bf16x3'])\n"
        "jkoflow.integrate(jkoflow.MLPVelocity(2), torch.zeros(1, 2), precision='bf16x3')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JKOFLOW_ISA": "baseline"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "AMX" in done.stdout
    assert "UnsupportedError: precision 'bf16x3' cannot be had: " in done.stderr
    assert "use precision='auto'" in done.stderr
