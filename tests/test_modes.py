"""Autocast, the default type, inference mode and PyTorch's other modes change no bit of a result."""

import contextlib

import pandas as pd
import pytest
import torch

import jkoflow
from jkoflow import Block, HyperMLP, JKOFlow, MLPVelocity, TrainConfig
from jkoflow.initial_map import InitialMap
from jkoflow.velocity import ConcatSquashMLP, FourierTimeMLP, ResidualMLP

pytestmark = pytest.mark.filterwarnings("ignore::jkoflow.ops.FallbackWarning")


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "deterministic algorithms": deterministic,
}


@pytest.fixture(scope="module")
def velocities():
    torch.manual_seed(0)
    linear = MLPVelocity(3, (16, 16), linear=True)
    torch.nn.init.normal_(linear.linear.weight)
    deep = MLPVelocity(3, (8, 8, 8))
    return [linear, deep, ConcatSquashMLP(3), FourierTimeMLP(3), ResidualMLP(3), HyperMLP(3)]


@pytest.fixture(scope="module")
def flows():
    torch.manual_seed(1)
    rows, found = torch.randn(400, 3) @ torch.randn(3, 3), []
    for recipe in ("none", "whiten", "marginals+whiten+radial"):
        for context_dim in (0, 2):
            blocks = [Block(MLPVelocity(3, (16, 16), linear=True, context_dim=context_dim)) for _ in range(2)]
            scale = (torch.zeros(2), torch.ones(2)) if context_dim else (None, None)
            mean, std = rows.mean(0), rows.std(0)
            initial_map = InitialMap.fit((rows - mean) / std, recipe)
            found.append(JKOFlow(3, blocks, mean, std, 4, *scale, initial_map).requires_grad_(False).eval())
    return found


@pytest.fixture(scope="module")
def table():
    frame = pd.DataFrame({"kind": [0, 1, 2] * 100, "level": torch.randn(300, generator=torch.manual_seed(2)).numpy()})
    config = TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=10, batch_size=50)
    return jkoflow.train(frame, config, columns={"kind": "category"}), frame


def of_integrals(velocities):
    generator = torch.Generator().manual_seed(3)
    x, e = (torch.randn(40, 3, generator=generator, dtype=torch.float32) for _ in range(2))
    for velocity in velocities:
        for divergence in ("exact", "hutchinson", "none"):
            how = {"divergence": divergence, "noise": e if divergence == "hutchinson" else None}
            yield from jkoflow.integrate(velocity, x, **how)[:2]
            yield from jkoflow.integrate(velocity, x, method="dopri5", **how)[:2]
            yield from jkoflow.integrate(velocity, x, backend="reference", **how)[:2]
            yield from jkoflow.velocity_and_divergence(velocity, x, 0.3, **how)


def of_flows(flows):
    generator = torch.Generator().manual_seed(4)
    x, c = (torch.randn(40, n, generator=generator, dtype=torch.float32) for n in (3, 2))
    for flow in flows:
        context = c if flow.context_dim else None
        yield flow.log_prob(x, context)
        yield flow.log_prob(x, context, tol=1e-2)
        yield flow.log_prob(x, context, precision="float64")
        yield flow.log_prob(x, context, discrete=True)
        yield from flow.sample_and_log_prob(40, context, generator=torch.Generator().manual_seed(5))
        yield flow.sample(40, context, generator=torch.Generator().manual_seed(5), exact=True)
        yield from flow.trajectory(x, context)


def same_bits(found, expected):
    found, expected = list(found), list(expected)
    return len(found) == len(expected) and all(
        one.dtype == other.dtype and torch.equal(one.detach(), other.detach())
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("mode", MODES)
def test_integrals(velocities, mode):
    with torch.no_grad():
        expected = list(of_integrals(velocities))
    with MODES[mode]():
        assert same_bits(of_integrals(velocities), expected)


@pytest.mark.parametrize("mode", MODES)
def test_flows(flows, mode):
    expected = list(of_flows(flows))
    with MODES[mode]():
        assert same_bits(of_flows(flows), expected)


@pytest.mark.parametrize("mode", MODES)
def test_tables(table, mode):
    model, frame = table
    expected = [model.log_prob(frame)]
    with MODES[mode]():
        assert same_bits([model.log_prob(frame)], expected)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("gradients", "inference mode")])
def test_the_loss_with_its_gradient(velocities, mode):
    """The backward pass stands outside, as PyTorch asks for with autocast."""
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(6))
    for velocity in velocities:
        expected = jkoflow.jko_loss(velocity, x, 0.5).total
        with MODES[mode]():
            found = jkoflow.jko_loss(velocity, x, 0.5).total
        gradients = [torch.autograd.grad(total, list(velocity.parameters())) for total in (found, expected)]
        assert same_bits([found, *gradients[0]], [expected, *gradients[1]])


@pytest.mark.parametrize("mode", MODES)
def test_training(mode):
    rows = torch.randn(200, 2, generator=torch.Generator().manual_seed(7))
    config = TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=10, batch_size=50)
    expected = jkoflow.train(rows, config).state_dict()
    with MODES[mode]():
        found = jkoflow.train(rows, config).state_dict()
    assert same_bits(found.values(), expected.values())
