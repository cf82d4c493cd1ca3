"""Adaptive steps: kernels against the reference, torchdiffeq and equal steps, and rows that do not come to an end."""

import math

import pytest
import torch
from torch import nn

import jkoflow
from jkoflow.ops import Adaptive, IntegrationError, library, native
from jkoflow.ops.embedded import EMBEDDED
from oracles import random_velocity

NETWORKS = {
    "one layer, linear": {"dim": 2, "hidden": (17,), "linear": True},
    "two layers": {"dim": 3, "hidden": (32, 40), "scale": 2.0},
    "no time": {"dim": 3, "hidden": (16, 16), "time": False},
    "context": {"dim": 4, "hidden": (20, 24), "context_dim": 2, "activation": "silu", "scale": 1.5},
    "three layers": {"dim": 3, "hidden": (16, 12, 20), "context_dim": 1, "activation": "softplus(3)", "scale": 1.5},
}
TIMES = [1.0, 0.63, 0.61, 0.1, -0.5]


def case(network, batch, dtype=torch.float64):
    velocity = random_velocity(**network, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batch, velocity.dim, generator=generator, dtype=torch.float64).to(dtype)
    context = torch.randn(batch, velocity.context_dim, generator=generator, dtype=torch.float64).to(dtype)
    noise = torch.randn(batch, velocity.dim, generator=generator, dtype=torch.float64).to(dtype)
    return velocity, x, context if velocity.context_dim else None, noise


def solve(network, batch, backend, divergence="exact", tol=1e-6, dtype=torch.float64, **options):
    velocity, x, context, noise = case(network, batch, dtype)
    leaves = [x.requires_grad_()] + ([] if context is None else [context.requires_grad_()])
    result = jkoflow.integrate(
        velocity,
        x,
        context=context,
        rtol=tol,
        atol=tol,
        divergence=divergence,
        noise=noise if divergence == "hutchinson" else None,
        backend=backend,
        **options,
    )
    parts = {"x": result.x, "logdet": result.logdet}
    if result.path is not None:
        parts |= {"path": result.path, "logdet_path": result.logdet_path}
    loss = sum((part * torch.sin(part + i)).sum() for i, part in enumerate(parts.values()))
    gradients = torch.autograd.grad(loss, [*leaves, *velocity.parameters()], allow_unused=True, materialize_grads=True)
    return {name: part.detach() for name, part in parts.items()}, gradients, result.evaluations


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
@pytest.mark.parametrize("method", EMBEDDED)
def test_kernel_takes_the_steps_of_the_reference(network, divergence, method):
    got, gradients, evaluations = solve(network, 77, "cpu", divergence, method=method, times=TIMES)
    expected, others, counts = solve(network, 77, "reference", divergence, method=method, times=TIMES)
    assert torch.equal(evaluations, counts)
    # steps differ in their last digits, by which x may differ at the scale of the tolerance times those digits
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9)
    for value, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-9 * (1 + float(other.abs().max())))


@pytest.mark.parametrize("batch", [1, 5, 16, 17, 33, 48, 49, 100, 1003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_does_not_depend_on_its_neighbours(batch, dtype):
    network = NETWORKS["two layers"]
    velocity, x, *_ = case(network, batch, dtype)
    whole = jkoflow.integrate(velocity, x, method="dopri5", times=TIMES)
    for row in {0, batch // 2, batch - 1}:
        alone = jkoflow.integrate(velocity, x[row : row + 1], method="dopri5", times=TIMES)
        assert torch.equal(alone.path[:, 0], whole.path[:, row])
        assert torch.equal(alone.logdet_path[:, 0], whole.logdet_path[:, row])
        assert alone.evaluations[0] == whole.evaluations[row]


@pytest.mark.parametrize("times", [None, TIMES])
def test_gradient_of_a_row_does_not_depend_on_its_neighbours(times):
    velocity, x, *_ = case(NETWORKS["two layers"], 101)

    def gradient(rows):
        rows = rows.clone().requires_grad_()
        result = jkoflow.integrate(velocity, rows, method="tsit5", times=times)
        loss = result.x.sum() + result.logdet.sum() + (0 if times is None else result.path.sum())
        return torch.autograd.grad(loss, rows)[0]

    assert torch.equal(gradient(x)[60:61], gradient(x[60:61]))


def test_threads_do_not_matter_to_rows():
    velocity, x, *_ = case(NETWORKS["two layers"], 300, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = jkoflow.integrate(velocity, x, method="dopri5")
        torch.set_num_threads(2)
        two = jkoflow.integrate(velocity, x, method="dopri5")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.logdet, two.logdet)


@pytest.mark.parametrize("method", EMBEDDED)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (0.25, 2.0)])
def test_work_and_precision(method, t0, t1):
    """Errors fall with the tolerance, and the cost rises as the order of the method says."""
    velocity, x, *_ = case(NETWORKS["two layers"], 40)
    exact = jkoflow.integrate(velocity, x, t0=t0, t1=t1, method="dopri5", num_steps=400)
    tolerances = [1e-4, 1e-6, 1e-8]
    errors, costs = [], []
    for tol in tolerances:
        result = jkoflow.integrate(velocity, x, t0=t0, t1=t1, method=method, rtol=tol, atol=tol)
        errors.append(float((result.logdet - exact.logdet).detach().abs().mean()))
        costs.append(float(result.evaluations.double().mean()))
    order = EMBEDDED[method].order
    slope = math.log(errors[0] / errors[2]) / math.log(costs[2] / costs[0])
    assert slope > 0.75 * order
    assert errors[2] < 1e-6
    assert all(error < 100 * tol for error, tol in zip(errors, tolerances, strict=True))


@pytest.mark.parametrize("dim", [2, 6])
def test_no_less_accurate_than_torchdiffeq_at_the_same_tolerance(dim):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    velocity = random_velocity(dim, (32, 32), scale=1.5)
    x = torch.randn(64, dim).double()
    exact = jkoflow.integrate(velocity, x, method="dopri5", num_steps=300)

    def augmented(t, state):
        return jkoflow.velocity_and_divergence(velocity, state[0], t)

    zero = torch.zeros(64).double()
    span = torch.tensor([0.0, 1.0]).double()
    for tol in (1e-4, 1e-6):
        _, theirs = torchdiffeq.odeint(augmented, (x, zero), span, rtol=tol, atol=tol, method="dopri5")
        ours = jkoflow.integrate(velocity, x, method="dopri5", rtol=tol, atol=tol)
        their_error = (theirs[-1] - exact.logdet).square().mean()
        assert (ours.logdet - exact.logdet).square().mean() <= 2 * their_error


def test_values_at_times_are_as_accurate_as_the_end():
    velocity, x, *_ = case(NETWORKS["two layers"], 30)
    times = torch.linspace(0, 1, 41).double()
    result = jkoflow.integrate(velocity, x, method="dopri5", rtol=1e-8, atol=1e-8, times=times)
    exact = jkoflow.integrate(velocity, x, method="dopri5", num_steps=8, times=times)
    torch.testing.assert_close(result.path, exact.path, rtol=0, atol=2e-6)
    torch.testing.assert_close(result.logdet_path, exact.logdet_path, rtol=0, atol=2e-5)
    assert torch.equal(result.path[-1], result.x)
    assert torch.equal(result.path[0], x)
    assert int(result.evaluations.min()) < 6 * 40  # steps do not stop at the times


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_equal_steps_between_times(method):
    velocity, x, *_ = case(NETWORKS["two layers"], 6)
    result = jkoflow.integrate(velocity, x, method=method, num_steps=2, times=[0.0, 0.1, 0.5])
    first = jkoflow.integrate(velocity, x, method=method, num_steps=2, t1=0.1)
    second = jkoflow.integrate(velocity, first.x, method=method, num_steps=2, t0=0.1, t1=0.5)
    assert torch.equal(result.path, torch.stack([x, first.x, second.x]))
    torch.testing.assert_close(result.logdet_path[2], first.logdet + second.logdet)
    assert result.evaluations == first.evaluations + second.evaluations


def test_gradcheck():
    velocity, x, context, _ = case(NETWORKS["context"], 3)

    def flat(x, context, *parameters):
        found = torch.func.functional_call(_Wrapped(velocity), dict(zip(names, parameters, strict=True)), (x, context))
        return found

    # Steps depend on x, but are held fixed: with tolerances this tight the difference is below the check's.
    class _Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, context):
            result = jkoflow.integrate(self.inner, x, context=context, method="dopri5", rtol=1e-11, atol=1e-11)
            return result.x, result.logdet

    names = [f"inner.{name}" for name, _ in velocity.named_parameters()]
    parameters = [parameter.detach().clone().requires_grad_() for parameter in velocity.parameters()]
    assert torch.autograd.gradcheck(flat, (x.requires_grad_(), context.requires_grad_(), *parameters), atol=1e-6)


def test_no_rows_no_interval_and_one_step():
    velocity, x, *_ = case(NETWORKS["two layers"], 4, torch.float32)
    empty = jkoflow.integrate(velocity, x[:0], method="dopri5", times=TIMES)
    assert empty.path.shape == (5, 0, 3)
    still = jkoflow.integrate(velocity, x.requires_grad_(), method="dopri5", t0=0.4, t1=0.4)
    assert torch.equal(still.x, x)
    assert torch.equal(still.logdet, torch.zeros(4))
    assert torch.equal(torch.autograd.grad(still.x.sum(), x)[0], torch.ones_like(x))


def test_evaluations_of_equal_steps():
    velocity, x, *_ = case(NETWORKS["no time"], 4)
    assert jkoflow.integrate(velocity, x, num_steps=5).evaluations == 20
    assert jkoflow.integrate(velocity, x, num_steps=5, method="dopri5").evaluations == 30


def test_jko_loss_with_adaptive_steps():
    velocity, x, *_ = case(NETWORKS["two layers"], 40)
    terms = jkoflow.jko_loss(velocity, x, 0.5, method="dopri5", rtol=1e-9, atol=1e-9)
    exact = jkoflow.jko_loss(velocity, x, 0.5, num_steps=200)
    torch.testing.assert_close(terms.total, exact.total, rtol=0, atol=1e-7)
    gradients = torch.autograd.grad(terms.total, list(velocity.parameters()))
    expected = torch.autograd.grad(exact.total, list(velocity.parameters()))
    for got, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, other, rtol=0, atol=1e-6)


# ---- What does not end


BACKENDS = ["cpu", "reference"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_many_steps(backend):
    velocity, x, *_ = case(NETWORKS["two layers"], 20)
    with pytest.raises(IntegrationError, match=r"row 0 stops at t = 0\.\d+: max_steps = 3 steps are taken; ") as e:
        jkoflow.integrate(velocity, x, method="bosh3", rtol=1e-9, atol=1e-9, max_steps=3, backend=backend)
    assert e.value.reason == "max_steps"
    assert e.value.row == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite(backend, value):
    velocity, x, *_ = case(NETWORKS["two layers"], 60)
    x[17, 1] = value
    x[41, 0] = value
    with pytest.raises(IntegrationError, match="row 17 stops at t = 0: the velocity or its divergence is not finite"):
        jkoflow.integrate(velocity, x, method="dopri5", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_velocity_that_becomes_infinite(backend):
    velocity = random_velocity(2, (8, 8), linear=True)
    with torch.no_grad():
        velocity.linear.weight.copy_(1e300 * torch.eye(2))
    with pytest.raises(IntegrationError) as error:
        jkoflow.integrate(velocity, torch.ones(3, 2).double(), method="dopri5", backend=backend)
    assert error.value.row == 0
    assert error.value.reason in ("not_finite", "underflow", "max_steps")


def test_a_pole_in_a_velocity_of_ones_own():
    def pole(x, t, context):
        return x / (0.5 - t).unsqueeze(1)

    with pytest.raises(IntegrationError, match=r"row 0 stops at t = 0\.(5|49)"), pytest.warns(jkoflow.FallbackWarning):
        jkoflow.integrate(pole, torch.ones(3, 2).double(), method="dopri5", max_steps=10_000)


def test_other_rows_are_not_lost_in_other_calls():
    """The kernel's memory is used again after a failure."""
    velocity, x, *_ = case(NETWORKS["two layers"], 60)
    expected = jkoflow.integrate(velocity, x, method="dopri5")
    bad = x.clone()
    bad[3] = math.nan
    with pytest.raises(IntegrationError):
        jkoflow.integrate(velocity, bad, method="dopri5")
    assert torch.equal(jkoflow.integrate(velocity, x, method="dopri5").x, expected.x)


# ---- As an operator


def test_operator_passes_torch_checks():
    velocity, x, context, _ = case(NETWORKS["context"], 5)
    field = velocity.field()
    settings = native.Settings("exact", True, field.activation.text, 0.0, 1.0, Adaptive(1e-6, 1e-6, 100), "dopri5")
    assert library.decode(library.encode(settings)) == settings
    times = torch.tensor([0.5], dtype=torch.float64)
    arguments = [x.requires_grad_(), context, *library.slots_of(field), None, library.encode(settings), times, True]
    torch.library.opcheck(torch.ops.jkoflow.integrate_adaptive.default, arguments)


def test_compiles_in_one_graph():
    velocity, x, *_ = case(NETWORKS["two layers"], 9)

    def loss(x):
        result = jkoflow.integrate(velocity, x, method="dopri5", times=TIMES)
        return result.logdet_path.sum() + result.x.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for rows in (x, x[:4]):
        got, expected = compiled(rows.requires_grad_()), loss(rows)
        torch.testing.assert_close(got, expected)
        for a, b in zip(torch.autograd.grad(got, rows), torch.autograd.grad(expected, rows), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:using the PyTorch reference. the kernels differentiate once")
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("times", [None, [0.0, 0.1, 0.4, 1.0]])
def test_second_derivatives_are_those_of_the_accepted_steps(network, divergence, times):
    velocity, x, context, *_ = case(NETWORKS[network], 3)
    x.requires_grad_()
    noise = torch.randn_like(x) if divergence == "hutchinson" else None
    inputs, found = [x, *velocity.parameters()], []
    for backend in ("cpu", "reference"):
        result = jkoflow.integrate(
            velocity,
            x,
            context=context,
            method="dopri5",
            times=times,
            divergence=divergence,
            noise=noise,
            backend=backend,
        )
        value = result.x.sin().sum() + result.logdet.square().sum()
        if times is not None:
            value = value + result.path.cos().sum() + result.logdet_path.square().sum()
        gradients = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
        value = sum(gradient.sin().sum() for gradient in gradients)
        found.append(torch.autograd.grad(value, inputs, materialize_grads=True))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_records_of_another_call_are_refused():
    velocity, x, *_ = case(NETWORKS["two layers"], 5)
    field = velocity.field()
    text = library.encode(
        native.Settings("exact", True, field.activation.text, 0.0, 1.0, Adaptive(1e-6, 1e-6, 100), "dopri5")
    )
    request = [x, None, *library.slots_of(field), None, text, torch.zeros(0, dtype=torch.float64)]
    *_, last_step, records = torch.ops.jkoflow.integrate_adaptive.default(*request, True)
    backward = torch.ops.jkoflow.integrate_adaptive_backward.default
    bars = [torch.ones_like(x), None, None, None, True]
    assert backward(*request, last_step, records, *bars)[0].shape == x.shape
    with pytest.raises(ValueError, match="records must be those of the forward pass"):
        backward(*request, last_step + len(records), records, *bars)
    outputs = (1 << 32, -1)  # up to the first of none; from the one before the first
    for column, value in ((2, len(records) + 7), (2, -2), *((3, value) for value in outputs)):
        broken = records.clone()
        broken[-1, column] = value
        with pytest.raises(ValueError, match="records must be those of the forward pass"):
            backward(*request, last_step, broken, *bars)
    with pytest.raises(ValueError, match="records must hold"):
        backward(*request, last_step, records[:, :-1], *bars)
