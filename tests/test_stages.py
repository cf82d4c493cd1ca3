"""Steps whose stages have networks of their own, in the fused kernels, against the PyTorch reference in float64."""

from contextlib import nullcontext

import pytest
import torch

import jkoflow
from jkoflow import FallbackWarning, HyperMLP
from jkoflow.ops import IntegrationError, jko_loss, native
from jkoflow.ops.embedded import EMBEDDED
from jkoflow.velocity import Velocity

pytestmark = pytest.mark.skipif(native.capabilities()["cpu"] is not None, reason="no compiled extension")

VELOCITIES = {
    "gated": lambda: HyperMLP(2, (9,), hyper="gated", hyper_hidden=(6, 5)),
    "gated, context": lambda: HyperMLP(3, (17,), "silu", hyper="gated", hyper_hidden=(6,), context_dim=2),
    "layers": lambda: HyperMLP(3, (7, 6), "softplus", hyper_hidden=(4,), context_dim=1),
    "layers, tanh": lambda: HyperMLP(2, (16, 20), hyper_hidden=(4,)),
    "deep": lambda: HyperMLP(3, (5, 6, 4), "elu", hyper_hidden=()),
    "blend": lambda: HyperMLP(1, (7,), "gelu", hyper="blend", context_dim=2),
}
CASES = [(name, divergence) for name in VELOCITIES for divergence in ("exact", "hutchinson", "none")]


ROUNDING = 1e-14
"""Relative change of x that shows what adaptive steps make of rounding. An estimate of an error is a difference of
large numbers: where it is small, the next step follows its last digits."""

CONDITION_SLACK = 100
"""How much farther a kernel may be from the reference than the reference is from itself after that change."""


def build(name, divergence="exact", batch=21, dtype=torch.float64):
    """A velocity of which every parameter matters, x, and the options of a call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(name))
        velocity = VELOCITIES[name]()
        with torch.no_grad():
            for parameter in velocity.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        velocity = velocity.to(dtype)
        x = torch.randn(batch, velocity.dim).to(dtype)
        context = torch.randn(batch, velocity.context_dim).to(dtype) if velocity.context_dim else None
        noise = torch.randn(batch, velocity.dim).to(dtype) if divergence == "hutchinson" else None
    return velocity, x, {"context": context, "noise": noise, "divergence": divergence}


def loss_of(result):
    rows = torch.linspace(0.5, 1.5, len(result.x), dtype=result.x.dtype)
    loss = (rows * result.logdet).sum() + (result.x.sin().sum(1) * rows).sum()
    if result.logdet_path is not None:
        loss = loss + (result.path.cos() * rows.unsqueeze(1)).sum() + (result.logdet_path.square() * rows).sum()
    elif result.path is not None:
        loss = loss + (result.path.cos() * rows.unsqueeze(1)).sum()
    return loss


def solve(backend, velocity, x, given, **options):
    """Results, and the gradients of x, context and all parameters."""
    x, given = x.clone().requires_grad_(), dict(given)
    leaves = [x, *velocity.parameters()]
    if given["context"] is not None:
        given["context"] = given["context"].clone().requires_grad_()
        leaves.append(given["context"])
    result = jkoflow.integrate(velocity, x, **given, **options, backend=backend)
    gradients = torch.autograd.grad(loss_of(result), leaves, materialize_grads=True)
    return result, gradients


def compare(velocity, x, given, **options):
    (got, ours), (expected, theirs) = (
        solve(backend, velocity, x, given, **options) for backend in ("cpu", "reference")
    )
    nearby = [None] * len((*expected, *theirs))
    if options.get("method") in EMBEDDED and "num_steps" not in options:
        moved, gradients = solve("reference", velocity, x * (1 + ROUNDING * torch.randn_like(x)), given, **options)
        nearby = [*moved, *gradients]
    for one, other, near in zip((*got, *ours), (*expected, *theirs), nearby, strict=True):
        if other is None:
            assert one is None
        elif isinstance(other, torch.Tensor) and other.is_floating_point() and other.numel():
            tolerance = 1e-12 * max(1.0, float(other.detach().abs().max()))
            if near is not None:
                tolerance = 10 * tolerance + CONDITION_SLACK * float((near - other).detach().abs().max())
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
        else:
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    return got


@pytest.mark.parametrize(("name", "divergence"), CASES)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.5, -0.5)])
def test_equal_steps_are_those_of_the_reference(name, divergence, interval):
    velocity, x, given = build(name, divergence)
    for method, steps in (("rk4", 3), ("midpoint", 2), ("dopri5", 1)):
        compare(velocity, x, given, t0=interval[0], t1=interval[1], method=method, num_steps=steps)


@pytest.mark.parametrize(("name", "divergence"), CASES)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (1.5, -0.5)])
def test_adaptive_steps_are_those_of_the_reference(name, divergence, interval):
    velocity, x, given = build(name, divergence)
    for method in EMBEDDED:
        options = {"t0": interval[0], "t1": interval[1], "method": method, "rtol": 1e-4, "atol": 1e-6}
        got = compare(velocity, x, given, **options)
        assert (got.evaluations == got.evaluations[0]).all()


@pytest.mark.parametrize(("name", "divergence"), CASES)
def test_times_are_those_of_the_reference(name, divergence):
    velocity, x, given = build(name, divergence)
    times = [1.2, 1.19, 0.6, 0.1, 0.05, -0.3]
    for method in EMBEDDED:
        compare(velocity, x, given, times=times, method=method, rtol=1e-3, atol=1e-4)
    compare(velocity, x, given, times=times, num_steps=2)


@pytest.mark.parametrize("batch", [0, 1, 15, 16, 17, 48, 49, 100])
def test_any_number_of_rows(batch):
    velocity, x, given = build("gated, context", batch=batch)
    compare(velocity, x, given, num_steps=2)
    if batch:
        compare(velocity, x, given, method="dopri5", times=[0.0, 0.3, 1.0])


def test_no_rows_take_no_steps():
    velocity, x, given = build("gated, context", batch=0)
    result = jkoflow.integrate(velocity, x, **given, method="dopri5", times=[0.0, 0.3, 1.0])
    assert result.x.shape == (0, 3)
    assert result.path.shape == (3, 0, 3)
    assert result.logdet_path.shape == (3, 0)
    assert result.evaluations.shape == (0,)


def test_nowhere_to_go():
    velocity, x, given = build("layers")
    result = compare(velocity, x, given, t0=0.3, t1=0.3, method="dopri5")
    assert torch.equal(result.x, x)


def rejecting():
    """A velocity that changes suddenly, so that steps are rejected on the way."""
    velocity, x, given = build("gated")
    with torch.no_grad():
        velocity.hypers[0][0].weight.mul_(40)
        velocity.hypers[0][0].bias.sub_(0.5 * velocity.hypers[0][0].weight.flatten())
    return velocity, x, given


def test_rejected_steps_leave_no_trace():
    velocity, x, given = rejecting()
    got = compare(velocity, x, given, method="dopri5", rtol=1e-6, atol=1e-8)
    steady, *_ = build("gated")
    smooth = jkoflow.integrate(steady, x, **given, method="dopri5", rtol=1e-6, atol=1e-8)
    assert got.evaluations[0] > 2 * smooth.evaluations[0]


@pytest.mark.parametrize("name", VELOCITIES)
@pytest.mark.parametrize("options", [{"num_steps": 3}, {"method": "tsit5", "times": [1.0, 0.4, 0.0], "rtol": 1e-5}])
def test_float32_errs_as_the_reference_does(name, options):
    exact, x, given = build(name)
    velocity, *_ = build(name, dtype=torch.float32)
    rows = {key: value.float() if isinstance(value, torch.Tensor) else value for key, value in given.items()}
    right, got, other = (
        [result.x, result.logdet, *gradients]
        for result, gradients in (
            solve("reference", exact, x, given, **options),
            solve("cpu", velocity, x.float(), rows, **options),
            solve("reference", velocity, x.float(), rows, **options),
        )
    )
    adaptive = 100 if "times" in options else 1  # whose steps follow rounding
    for one, theirs, value in zip(got, other, right, strict=True):
        scale = max(1.0, float(value.detach().abs().max()))
        error, allowed = float((one - value).detach().abs().max()), float((theirs - value).detach().abs().max())
        assert error <= 2 * allowed + 2e-6 * adaptive * scale


@pytest.mark.parametrize("options", [{"num_steps": 3}, {"method": "dopri5", "times": [0.0, 0.5, 1.0]}])
def test_results_do_not_depend_on_the_number_of_threads(options):
    velocity, x, given = build("layers", batch=200)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(solve("cpu", velocity, x, given, **options))
    finally:
        torch.set_num_threads(before)
    (one, ours), (other, theirs) = found
    for a, b in zip(
        (one.x, one.logdet, ours[0], ours[-1]), (other.x, other.logdet, theirs[0], theirs[-1]), strict=True
    ):
        assert torch.equal(a, b)  # values and the gradients of rows, bit for bit
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", [{"num_steps": 2}, {"method": "bosh3", "times": [0.0, 0.4, 1.0], "rtol": 1e-3}])
def test_second_derivatives_are_those_of_the_reference(options):
    velocity, x, given = build("layers", batch=3)
    found = []
    for backend in ("cpu", "reference"):
        leaves = [x.clone().requires_grad_(), *velocity.parameters()]
        result = jkoflow.integrate(velocity, leaves[0], **given, **options, backend=backend)
        first = torch.autograd.grad(loss_of(result), leaves, create_graph=True)
        with pytest.warns(FallbackWarning, match="differentiate once") if backend == "cpu" else nullcontext():
            found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_the_loss_and_its_gradient():
    velocity, x, given = build("gated, context")
    given = {"context": given["context"]}
    for options in ({"num_steps": 2}, {"method": "dopri5"}):
        found = []
        for backend in ("cpu", "reference"):
            total = jko_loss(velocity, x, 0.7, **given, **options, backend=backend).total
            found.append([total, *torch.autograd.grad(total, list(velocity.parameters()))])
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


class Turning(Velocity):
    """A velocity of somebody else's, with weights at one time alone."""

    dim, context_dim = 2, 0

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, t=0.0, context=None):
        return self.inner(x, t, context)

    def field_at(self, t):
        return self.inner.field_at(t)

    def describe(self):
        return {"kind": "turning"}

    def scale_output(self, factor):
        self.inner.scale_output(factor)

    def work(self):
        return self.inner.work()


@pytest.mark.parametrize("options", [{"num_steps": 2}, {"method": "dopri5"}])
def test_weights_at_one_time_are_enough(options):
    inner, x, given = build("gated")
    got, ours = solve("cpu", Turning(inner), x, given, **options)
    expected, theirs = solve("cpu", inner, x, given, **options)
    for one, other in zip((got.x, got.logdet, *ours), (expected.x, expected.logdet, *theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_networks_are_made_once_a_step_and_once_for_the_gradient():
    velocity, x, given = build("gated")
    calls = []
    velocity.hypers[0].register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    jkoflow.integrate(velocity, x, **given, num_steps=5)
    assert calls[-1] == 5 * 4
    calls.clear()
    result = jkoflow.integrate(velocity, x, **given, method="dopri5", rtol=1e-3, atol=1e-3)
    attempts = (int(result.evaluations[0]) - 2) // 6
    assert len(calls) <= attempts + 5  # with one at the start, two for the first step, and one for the gradient


def test_failures_say_where():
    velocity, x, given = build("gated")
    bad = x.clone()
    bad[3, 0] = float("nan")
    for backend in ("cpu", "reference"):
        with pytest.raises(IntegrationError, match=r"row 3 .*not finite"):
            jkoflow.integrate(velocity, bad, **given, method="dopri5", backend=backend)
    for backend in ("cpu", "reference"):
        with pytest.raises(IntegrationError, match="max_steps") as found:
            jkoflow.integrate(velocity, x, **given, method="dopri5", rtol=1e-9, atol=1e-9, max_steps=3, backend=backend)
        assert found.value.reason == "max_steps"
    with torch.no_grad():
        velocity.hypers[0][-1].bias[0] = float("inf")
    with pytest.raises(IntegrationError, match="not finite"):
        jkoflow.integrate(velocity, x, **given, method="dopri5")
