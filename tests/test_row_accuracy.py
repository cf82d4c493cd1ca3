"""Rows in float32: many steps and expanding maps do not make them worse; and float64 on request."""

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import emulation as emulation_build
from emulation import EmulatedKernels
from jkoflow import Block, JKOFlow, integrate, jko_loss
from jkoflow.ops import native
from oracles import random_velocity

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "row_accuracy.py"
with_kernels = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")

BOUND = 2.5e-7
"""Mean error of x and of logdet, both of the size of 1, after any number of steps. After 1000 steps these velocities
err by 5e-7 to 1.1e-6 without compensation, and with it by 3e-8 to 1.3e-7."""
HIDDEN = {"one layer": (16,), "two layers": (16, 16), "three layers": (8, 8, 8)}


def expanding(hidden, dtype):
    velocity = random_velocity(3, hidden, scale=2.0, seed=3, dtype=torch.float32)
    return velocity.to(dtype).requires_grad_(False)


def rows(count):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


def check_sums(hidden, backend, num_steps, count=64, **options):
    """The error of float32 against float64 on the same grid."""
    x, options = rows(count), {"num_steps": num_steps, "method": "midpoint", **options}
    with torch.no_grad():
        got = integrate(expanding(hidden, torch.float32), x, backend=backend, **options)
        exact = integrate(expanding(hidden, torch.float64), x.double(), backend="reference", **options)
    for name in ("x", "logdet"):
        error = (getattr(got, name).double() - getattr(exact, name)).abs().mean()
        assert error < BOUND, f"{name} after {num_steps} steps errs by {error:.1e} ({backend}, {hidden})"
    middle = (got.path[num_steps // 2].double() - exact.path[num_steps // 2]).abs().mean()
    assert middle < BOUND, f"the path errs by {middle:.1e} ({backend}, {hidden})"


def check_loss(hidden, backend, num_steps, count=12):
    """The error of the logdet in the fused loss of single rows."""
    x, options = rows(count), {"num_steps": num_steps, "method": "midpoint"}
    with torch.no_grad():
        exact = integrate(expanding(hidden, torch.float64), x.double(), backend="reference", **options).logdet
    velocity, errors = expanding(hidden, torch.float32), []
    for row, logdet in zip(x.split(1), exact.tolist(), strict=True):
        got = jko_loss(velocity, row.clone().requires_grad_(), 1.0, backend=backend, **options)
        errors.append(abs(float(got.divergence.detach().double()) + logdet))
    assert sum(errors) / count < BOUND, f"the fused loss errs by {sum(errors) / count:.1e} ({backend}, {hidden})"


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN.keys())
def test_sums_of_the_reference_are_compensated(hidden):
    check_sums(hidden, "reference", 1000)


ISA_PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import test_row_accuracy as test
from jkoflow.ops import native
print(native.capabilities()["isa"])
for hidden in test.HIDDEN.values():
    test.check_sums(hidden, "cpu", 1000)
    test.check_loss(hidden, "cpu", 1000)
    test.check_sums(hidden, "cpu", 100, method="rk4", t0=0.7, t1=-0.2)
test.check_flow("cpu")
"""


@with_kernels
@pytest.mark.parametrize("isa", native.capabilities()["isas"])
def test_sums_of_every_instruction_set_are_compensated(isa):
    done = subprocess.run(
        [sys.executable, "-c", ISA_PROGRAM.format(tests=str(Path(__file__).parent))],
        env={**os.environ, "JKOFLOW_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]


@pytest.fixture(scope="module")
def emulated():
    module = emulation_build.load()
    module.configure()
    module.set()
    return EmulatedKernels(module, "fp32")


@with_kernels
@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN.keys())
def test_sums_of_the_cuda_kernels_are_compensated(emulated, monkeypatch, hidden):
    monkeypatch.setattr(native, "_C", emulated)
    check_sums(hidden, "cpu", 500, count=16)
    check_loss(hidden, "cpu", 250, count=4)


# ---- A flow that expands


def expanding_flow():
    """Two blocks with weights far from those of a flow that has not been trained."""
    blocks = [
        Block(random_velocity(3, (32, 32), scale=2.5, seed=seed, linear=True, dtype=torch.float32), num_steps=4)
        for seed in (5, 6)
    ]
    return JKOFlow(3, blocks).requires_grad_(False).eval()


def errors_by_steps(backend, counts, count=200):
    """Mean error of a row's log-density against float64 on the same grid, by the number of steps."""
    found, flow, x = [], expanding_flow(), rows(count)
    for steps in counts:
        z, logdet = x, torch.zeros(count)
        exact_z, exact_logdet = x.double(), torch.zeros(count, dtype=torch.float64)
        for block in flow.stack:
            end = integrate(block.velocity, z, num_steps=steps, backend=backend, keep_path=False)
            z, logdet = end.x, logdet + end.logdet
            end = integrate(copy.deepcopy(block.velocity).double(), exact_z, num_steps=steps, backend="reference")
            exact_z, exact_logdet = end.x, exact_logdet + end.logdet
        got = logdet.double() - 0.5 * z.double().square().sum(1)
        found.append(float((got - exact_logdet + 0.5 * exact_z.square().sum(1)).abs().mean()))
    return found


def check_flow(backend, counts=(16, 64, 256), count=200):
    errors = errors_by_steps(backend, counts, count)
    assert max(errors) < 2e-5, errors  # without compensation 1e-4 after 256 steps, and 4e-5 after 64
    assert errors[-1] < 1.5 * errors[0], errors


def test_more_steps_do_not_make_rows_worse_in_the_reference():
    check_flow("reference")


@with_kernels
def test_more_steps_do_not_make_rows_worse_in_the_cuda_kernels(emulated, monkeypatch):
    monkeypatch.setattr(native, "_C", emulated)
    check_flow("cpu", (8, 64), count=24)


# ---- What is asked for in float64


def test_float64_is_the_converted_flow():
    flow, x = expanding_flow(), rows(20).double() * (1 + 1e-9)
    exact = copy.deepcopy(flow).double().log_prob(x, num_steps=8)
    got = flow.log_prob(x, num_steps=8, precision="float64")
    assert got.dtype is torch.float64
    assert torch.equal(got, exact)
    assert flow.stack[0].velocity.layers[0].weight.dtype is torch.float32
    assert flow.log_prob(x, num_steps=8).dtype is torch.float32
    discrete = copy.deepcopy(flow).double().log_prob(x, num_steps=8, discrete=True)
    flow.requires_grad_()  # the discrete map has no gradients, and does not mind parameters that want some
    assert torch.equal(flow.log_prob(x, num_steps=8, discrete=True, precision="float64"), discrete)
    flow.log_prob(x, num_steps=8, precision="float64").sum().backward()
    assert flow.stack[0].velocity.layers[0].weight.grad.dtype is torch.float32
    with pytest.raises(ValueError, match="precision must be auto or float64, got 'double'"):
        flow.log_prob(x, precision="double")


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_float64_of_an_integration(backend, divergence):
    velocity = random_velocity(3, (16, 12), context_dim=2, linear=True, dtype=torch.float32)
    x, context = rows(9), torch.ones(9, 2)
    noise = rows(9).sign() if divergence == "hutchinson" else None
    options = {"backend": backend, "divergence": divergence}
    got = integrate(velocity, x, context=context, noise=noise, precision="float64", **options)
    wide = None if noise is None else noise.double()
    exact = integrate(copy.deepcopy(velocity).double(), x.double(), context=context.double(), noise=wide, **options)
    for name, value in exact._asdict().items():
        assert torch.equal(getattr(got, name), value), name
    (gradient,) = torch.autograd.grad(got.logdet.sum(), velocity.layers[0].weight)
    assert gradient.dtype is torch.float32
    assert gradient.abs().max() > 0


def test_float64_of_the_objective():
    velocity, x = random_velocity(3, dtype=torch.float32), rows(9)
    got = jko_loss(velocity, x, 0.5, precision="float64")
    exact = jko_loss(copy.deepcopy(velocity).double(), x.double(), 0.5)
    assert got.total.dtype is torch.float64
    assert torch.equal(got.total.detach(), exact.total.detach())
    got.total.backward()
    assert velocity.layers[0].weight.grad.dtype is torch.float32


def test_float64_of_what_cannot_be_converted():
    with pytest.raises(ValueError, match="this velocity can only be called; give a velocity and x in float64"):
        integrate(lambda x, t, context: -x, rows(2), precision="float64")


# ---- The benchmark


def test_the_benchmark_finds_what_float32_costs(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    spec = importlib.util.spec_from_file_location("row_accuracy", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    flow, x = expanding_flow(), rows(30)
    x[3] = torch.inf  # such a row is left out
    who = {"float64", "reference"} | ({"kernel"} if native.capabilities()["cpu"] is None else set())
    monkeypatch.setattr(benchmark, "WHO", {name: value for name, value in benchmark.WHO.items() if name in who})
    found = {(errors.who, errors.num_steps): errors for errors in benchmark.compare(flow, x, (8, 32), 32)}
    assert set(found) == {(name, steps) for name in who for steps in (8, 32)}
    for name in who:
        assert 1e-4 < found[name, 8].mean <= found[name, 8].largest  # what 8 steps cost anybody
        assert abs(found[name, 8].bias) <= found[name, 8].mean
        assert found[name, 8].mean == pytest.approx(found["float64", 8].mean, rel=0.1)
        assert found[name, 32].mean < 2e-5
    assert found["float64", 32] == ("float64", 32, 0.0, 0.0, 0.0, found["float64", 32].rows_per_second)
    assert found["reference", 32].mean > 1e-8  # what float32 costs
