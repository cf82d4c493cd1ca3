"""`jkoflow.velocity_and_divergence`: one evaluation, every row at its own time."""

import pytest
import torch
from torch import nn

import jkoflow
from jkoflow.ops import library, native
from oracles import autograd_divergence, random_velocity

NETWORKS = {
    "one layer": {"dim": 2, "hidden": (17,)},
    "two layers, linear": {"dim": 5, "hidden": (33, 20), "linear": True},
    "context": {"dim": 3, "hidden": (24, 40), "context_dim": 3, "activation": "silu"},
    "no time": {"dim": 3, "hidden": (16, 16), "time": False},
    "three layers": {"dim": 3, "hidden": (16, 12, 20), "activation": "softplus(3)", "context_dim": 1},
}


def inputs(network, batch, dtype=torch.float64):
    velocity = random_velocity(**network, dtype=dtype)
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    context = normal(batch, velocity.context_dim) if velocity.context_dim else None
    return velocity, normal(batch, velocity.dim), normal(batch), context, normal(batch, velocity.dim)


def values_and_gradients(velocity, x, t, context, noise, backend, divergence, second=False):
    leaves = [x.clone().requires_grad_(), t.clone().requires_grad_()]
    if context is not None:
        leaves.append(context.clone().requires_grad_())
    v, div = jkoflow.velocity_and_divergence(
        velocity,
        leaves[0],
        leaves[1],
        leaves[2] if context is not None else None,
        divergence=divergence,
        noise=noise if divergence == "hutchinson" else None,
        backend=backend,
    )
    loss = (v * torch.cos(v)).sum() + (div.sin()).sum()
    inputs_ = leaves + list(velocity.parameters())
    gradients = torch.autograd.grad(loss, inputs_, create_graph=second, allow_unused=True, materialize_grads=True)
    if second:
        curvature = sum(gradient.square().sum() for gradient in gradients)
        gradients = torch.autograd.grad(curvature, inputs_, allow_unused=True, materialize_grads=True)
    return [v.detach(), div.detach(), *gradients]


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
@pytest.mark.parametrize("batch", [1, 23, 100])
def test_float64_against_the_reference(network, divergence, batch):
    case = inputs(network, batch)
    got = values_and_gradients(*case, "cpu", divergence)
    for value, expected in zip(got, values_and_gradients(*case, "reference", divergence), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_against_the_module_and_autograd(network):
    velocity, x, t, context, _ = inputs(network, 9)
    v, div = jkoflow.velocity_and_divergence(velocity, x, t, context)
    torch.testing.assert_close(v, velocity(x, t, context), rtol=1e-13, atol=1e-13)
    expected = autograd_divergence(lambda rows: velocity(rows, t, context), x)
    torch.testing.assert_close(div, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:using the PyTorch reference. the kernels differentiate once")
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_second_derivatives(divergence):
    case = inputs(NETWORKS["context"], 7)
    got = values_and_gradients(*case, "cpu", divergence, second=True)
    expected = values_and_gradients(*case, "reference", divergence, second=True)
    for value, other in zip(got, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", [0.3, torch.tensor(0.3), torch.tensor([0.3]), torch.full((6,), 0.3)])
def test_forms_of_time(form):
    velocity, x, *_ = inputs(NETWORKS["one layer"], 6, torch.float32)
    got = jkoflow.velocity_and_divergence(velocity, x, form)
    expected = jkoflow.velocity_and_divergence(velocity, x, torch.full((6,), 0.3))
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_gradient_of_one_time_for_all_rows_is_the_sum():
    velocity, x, *_ = inputs(NETWORKS["one layer"], 6)
    one, each = torch.tensor(0.3).double().requires_grad_(), torch.full((6,), 0.3).double().requires_grad_()
    for t in (one, each):
        sum(part.sum() for part in jkoflow.velocity_and_divergence(velocity, x, t)).backward()
    torch.testing.assert_close(one.grad, each.grad.sum())


def test_no_rows_and_many_threads():
    velocity, *_ = inputs(NETWORKS["two layers, linear"], 1, torch.float32)
    v, div = jkoflow.velocity_and_divergence(velocity, torch.zeros(0, 5), torch.zeros(0))
    assert v.shape == (0, 5)
    assert div.shape == (0,)
    x, t = torch.randn(1000, 5), torch.rand(1000)
    whole = jkoflow.velocity_and_divergence(velocity, x, t)
    part = jkoflow.velocity_and_divergence(velocity, x[137:138], t[137:138])
    assert torch.equal(whole[0][137], part[0][0])
    assert torch.equal(whole[1][137], part[1][0])


@pytest.mark.parametrize(
    ("t", "message"),
    [
        ("soon", "t must be a number or a tensor"),
        (True, "t must be a number or a tensor"),
        (torch.zeros(5), r"t must be a number or a tensor of shape \(\) or \(6,\), got \(5,\)"),
        (torch.zeros(6, 1), r"got \(6, 1\)"),
        (torch.zeros(6, dtype=torch.int64), "t must be a floating-point tensor on cpu, got torch.int64"),
    ],
)
def test_times_that_are_refused(t, message):
    velocity, x, *_ = inputs(NETWORKS["one layer"], 6, torch.float32)
    with pytest.raises(ValueError, match=message):
        jkoflow.velocity_and_divergence(velocity, x, t)


def test_other_velocities_run_in_the_reference():
    class Spiral(nn.Module):
        def forward(self, x, t, context):
            return torch.stack([-x[:, 1] * t, x[:, 0] * t + x[:, 1] ** 2], 1)

    x, t = torch.randn(4, 2).double(), torch.rand(4).double()
    with pytest.warns(jkoflow.FallbackWarning):
        v, div = jkoflow.velocity_and_divergence(Spiral(), x, t)
    torch.testing.assert_close(v[:, 0], -x[:, 1] * t)
    torch.testing.assert_close(div, 2 * x[:, 1])


def test_operators_pass_torch_checks():
    velocity, x, t, context, _ = inputs(NETWORKS["context"], 5)
    field = velocity.field()
    settings = native.Settings("exact", True, field.activation.text, 0.0, 1.0, jkoflow.ops.Fixed(1), "euler")
    text = library.encode(settings)
    arguments = [x.requires_grad_(), t.requires_grad_(), context, *library.slots_of(field), None, text]
    torch.library.opcheck(torch.ops.jkoflow.evaluate.default, arguments)


def test_compiles_in_one_graph():
    velocity, x, t, *_ = inputs(NETWORKS["one layer"], 5)
    compiled = torch.compile(jkoflow.velocity_and_divergence, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(velocity, x, t), jkoflow.velocity_and_divergence(velocity, x, t), strict=True):
        torch.testing.assert_close(got, expected)


def test_gradcheck():
    velocity, x, t, context, _ = inputs(NETWORKS["context"], 3)
    x, t, context = x.requires_grad_(), t.requires_grad_(), context.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *given: jkoflow.velocity_and_divergence(velocity, given[0], given[1], given[2]), (x, t, context)
    )
