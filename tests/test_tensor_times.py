"""Tensors for the ends of an interval: read as numbers, or parameters with the gradient of the discrete map."""

import pytest
import torch
from torch import nn

import jkoflow
from jkoflow import Block, HyperMLP
from jkoflow.ops import native
from jkoflow.velocity.time_change import change_time
from oracles import random_velocity
from test_time_dependent import CASES, case

pytestmark = pytest.mark.filterwarnings("ignore:using the PyTorch reference")
FUSED = native.capabilities()["cpu"] is None
BACKENDS = ["reference", *(["cpu"] if FUSED else [])]
T0, T1 = 0.2, 1.1


def field(name):
    """A velocity, x (5, 3) and context, of every kind there is."""
    if name in CASES:
        velocity, _, x, context = case(name)
        return velocity, x, context
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    if name == "callable":
        matrix = torch.randn(3, 3, dtype=torch.float64, generator=generator)

        def column(t):
            return torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1)

        return lambda x, t, context: torch.sin(x @ matrix + column(t)) + x / 2, x, None
    options = {
        "one layer": {"hidden": (7,)},
        "linear": {"hidden": (7, 6), "linear": True},
        "steady": {"hidden": (7, 6), "time": False},
        "deep with context": {"hidden": (5, 6, 4), "context_dim": 2},
    }[name]
    velocity = random_velocity(3, **options)
    context = torch.randn(5, 2, dtype=torch.float64, generator=generator) if velocity.context_dim else None
    return velocity, x, context


KINDS = ["one layer", "linear", "steady", "deep with context", *CASES, "callable"]
RUNS = [(name, backend) for name in KINDS for backend in BACKENDS if (name, backend) != ("callable", "cpu")]


def ends(**options):
    return [torch.tensor(value, dtype=torch.float64, **options) for value in (T0, T1)]


def mixed(results):
    """One number in which every entry of the results has a weight of its own."""
    flat = torch.cat([result.flatten() for result in results])
    return flat @ torch.linspace(-1, 2, len(flat), dtype=flat.dtype).cos()


@pytest.mark.parametrize(("name", "backend"), RUNS)
def test_gradients_of_both_ends_are_those_of_the_discrete_map(name, backend):
    velocity, x, context = field(name)

    def solve(t0, t1):
        found = jkoflow.integrate(velocity, x, context=context, t0=t0, t1=t1, num_steps=2, backend=backend)
        return found.x, found.logdet, found.path

    assert torch.autograd.gradcheck(lambda *times: mixed(solve(*times)), ends(requires_grad=True))
    for got, expected in zip(solve(*ends(requires_grad=True)), solve(T0, T1), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_the_loss(name, backend):
    if (name, backend) == ("callable", "cpu"):
        pytest.skip("a callable has no kernel")
    velocity, x, context = field(name)

    def loss(t0, t1):
        return jkoflow.jko_loss(velocity, x, 0.7, context=context, t0=t0, t1=t1, method="heun", backend=backend).total

    assert torch.autograd.gradcheck(loss, ends(requires_grad=True))


@pytest.mark.parametrize("divergence", ["hutchinson", "none"])
@pytest.mark.parametrize("name", ["linear", "concatsquash, 3 hidden", "fourier", "gated"])
def test_gradients_with_other_divergences(name, divergence):
    velocity, x, context = field(name)
    noise = torch.randn(x.shape, dtype=x.dtype) if divergence == "hutchinson" else None

    def solve(t0, t1):
        return jkoflow.integrate(
            velocity, x, context=context, t0=t0, t1=t1, num_steps=2, divergence=divergence, noise=noise
        )[:2]

    assert torch.autograd.gradcheck(lambda *times: mixed(solve(*times)), ends(requires_grad=True))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("name", "backend"), RUNS)
def test_adaptive_steps_are_those_between_numbers_and_their_gradient_is_the_velocity(name, backend, backward):
    velocity, x, context = field(name)
    options = {"context": context, "method": "dopri5", "rtol": 1e-9, "atol": 1e-9}
    chosen = {} if isinstance(velocity, HyperMLP) else {"backend": backend}
    t0, t1 = reversed(ends(requires_grad=True)) if backward else ends(requires_grad=True)
    got = jkoflow.integrate(velocity, x, t0=t0, t1=t1, **options, **chosen)
    numbers = jkoflow.integrate(velocity, x, t0=float(t0.detach()), t1=float(t1.detach()), **options, **chosen)
    torch.testing.assert_close(got.x, numbers.x, rtol=0, atol=1e-13)
    assert torch.equal(got.evaluations, numbers.evaluations)
    (slope,) = torch.autograd.grad(got.x[:, 0].sum() + got.logdet.sum(), t1, retain_graph=True)
    v, divergence = jkoflow.velocity_and_divergence(velocity, got.x.detach(), t1.detach(), context)
    torch.testing.assert_close(slope, v[:, 0].sum() + divergence.sum(), rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(got.x[:, 0].sum(), t0)
    step = 1e-4  # d x(t1) / d t0 = - d x(t1) / d x(t0) v(x, t0)
    v = jkoflow.velocity_and_divergence(velocity, x, float(t0.detach()), context)[0]
    sides = [
        jkoflow.integrate(
            velocity, x - sign * step * v, t0=float(t0.detach()), t1=float(t1.detach()), **options, **chosen
        ).x[:, 0]
        for sign in (1, -1)
    ]
    torch.testing.assert_close(slope, (sides[0] - sides[1]).sum() / (2 * step), rtol=1e-5, atol=1e-5)


def test_one_end_may_be_a_number_and_float32_and_a_vector_of_one():
    velocity, x, _ = field("linear")
    for t0, t1 in ((0, torch.tensor([T1], requires_grad=True)), (torch.tensor(T0, requires_grad=True), 2)):
        found = jkoflow.integrate(velocity, x, t0=t0, t1=t1)
        end = t1 if isinstance(t1, torch.Tensor) else t0
        (slope,) = torch.autograd.grad(found.logdet.sum(), end)
        assert slope.shape == end.shape
        assert slope.dtype == torch.float32
        assert slope != 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_constant_tensor_is_the_number_it_holds(dtype):
    velocity, x, _ = field("linear")
    start, end = torch.tensor(0.25, dtype=dtype), torch.tensor([1.5], dtype=dtype)
    expected = jkoflow.integrate(velocity, x, t0=0.25, t1=1.5)
    assert torch.equal(jkoflow.integrate(velocity, x, t0=start, t1=end).x, expected.x)
    with torch.no_grad():
        parameter = nn.Parameter(end)
        assert torch.equal(jkoflow.integrate(velocity, x, t0=start, t1=parameter).x, expected.x)
    loss = jkoflow.jko_loss(velocity, x, 1.0, t0=start, t1=end).total
    assert torch.equal(loss, jkoflow.jko_loss(velocity, x, 1.0, t0=0.25, t1=1.5).total)


def test_an_interval_without_length():
    velocity, x, _ = field("linear")
    for options in ({"num_steps": 3}, {"method": "dopri5"}):
        t1 = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        found = jkoflow.integrate(velocity, x, t0=0.4, t1=t1, **options)
        assert torch.equal(found.x, x)
        (slope,) = torch.autograd.grad(found.logdet.sum(), t1)
        torch.testing.assert_close(slope, jkoflow.velocity_and_divergence(velocity, x, 0.4)[1].sum().detach())


@pytest.mark.parametrize("name", ["linear", "concatsquash, 2 hidden", "gated", "callable"])
def test_gradients_of_times_between_equal_steps(name):
    velocity, x, context = field(name)
    times = torch.tensor([T0, 0.5, T1], dtype=torch.float64, requires_grad=True)

    def solve(times):
        found = jkoflow.integrate(velocity, x, context=context, times=times, num_steps=2)
        return found.path, found.logdet_path

    assert torch.autograd.gradcheck(lambda times: mixed(solve(times)), times)
    for given in (times, [T0, *times[1:]]):
        for got, expected in zip(solve(given), solve(times.tolist()), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match=r"constants with adaptive steps.*times.detach\(\), or num_steps"):
        jkoflow.integrate(velocity, x, context=context, times=[*times], method="dopri5")


def test_other_gradients_do_not_change():
    velocity, x, _ = field("concatsquash, 2 hidden")
    x.requires_grad_()
    context = torch.zeros(5, velocity.context_dim, dtype=torch.float64) if velocity.context_dim else None
    inputs = [x, *velocity.parameters()]
    results = []
    for t0, t1 in ((T0, T1), ends(requires_grad=True)):
        found = jkoflow.integrate(velocity, x, context=context, t0=t0, t1=t1)
        results.append(torch.autograd.grad(found.x.square().sum() + found.logdet.sum(), inputs))
    for numbers, tensors in zip(*results, strict=True):
        torch.testing.assert_close(tensors, numbers, rtol=1e-12, atol=1e-12)


def test_second_derivatives():
    velocity, x, _ = field("linear")

    def solve(t0, t1):
        return jkoflow.integrate(velocity, x, t0=t0, t1=t1, num_steps=2).logdet

    assert torch.autograd.gradgradcheck(lambda *times: mixed([solve(*times)]), ends(requires_grad=True))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # from within torch
def test_transforms_and_modes():
    velocity, x, _ = field("linear")

    def total(t1):
        return jkoflow.integrate(velocity, x, t1=t1).logdet.sum()

    t1 = ends(requires_grad=True)[1]
    (expected,) = torch.autograd.grad(total(t1), t1)
    end = t1.detach()
    torch.testing.assert_close(torch.func.grad(total)(end), expected)
    torch.testing.assert_close(torch.func.jvp(total, (end,), (torch.ones_like(end),))[1], expected)
    several = torch.stack([end, end + 0.5])
    alone = torch.stack([total(time) for time in several])
    torch.testing.assert_close(torch.func.vmap(total)(several), alone)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(several)[0], expected)
    with torch.inference_mode():
        torch.testing.assert_close(total(end), alone[0])


@pytest.mark.skipif(not FUSED, reason="no compiled extension")
@pytest.mark.parametrize("name", ["linear", "concatsquash, 2 hidden", "fourier"])
def test_the_kernels_run(name, monkeypatch):
    velocity, x, context = field(name)
    calls = []
    monkeypatch.setattr(native, "forward", lambda *a, run=native.forward: calls.append(a) or run(*a))
    t1 = torch.tensor(T1, requires_grad=True)
    jkoflow.integrate(velocity, x, context=context, t1=t1).logdet.sum().backward()
    assert len(calls) == 1
    assert t1.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_within_rounding_of_float64(dtype):
    velocity, x, context = field("concatsquash, 2 hidden")
    context = None if context is None else context.to(dtype)
    t0, t1 = ends(requires_grad=True)
    found = jkoflow.integrate(velocity.to(dtype), x.to(dtype), context=context, t0=t0, t1=t1)
    got = torch.autograd.grad(found.logdet.sum(), (t0, t1))
    found = jkoflow.integrate(velocity.to(dtype), x.to(dtype), t0=t0, t1=t1, precision="float64")
    exact = torch.autograd.grad(found.logdet.sum(), (t0, t1))
    torch.testing.assert_close(torch.stack(got), torch.stack(exact), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("t0", "t1", "message"),
    [
        (torch.zeros(2), 1.0, r"t0 must be a number or a floating-point tensor of one number, got shape \(2,\)"),
        (0.0, torch.tensor(1), "t1 must be a number or a floating-point tensor of one number, got shape .*int64"),
        (0.0, torch.tensor(float("nan")), "t0 and t1 must be finite numbers, got 0.0 and nan"),
        (0.0, torch.tensor(float("inf"), requires_grad=True), "t0 and t1 must be finite numbers, got 0.0 and inf"),
        ("0", torch.tensor(1.0, requires_grad=True), "t0 and t1 must be finite numbers, got '0'"),
    ],
)
def test_ends_that_are_refused(t0, t1, message):
    velocity, x, _ = field("linear")
    with pytest.raises(ValueError, match=message):
        jkoflow.integrate(velocity, x, t0=t0, t1=t1)
    with pytest.raises(ValueError, match=message):
        jkoflow.jko_loss(velocity, x, 1.0, t0=t0, t1=t1)


def test_the_interval_of_a_block_is_saved_as_numbers():
    block = Block(random_velocity(2), t0=torch.tensor(0.5), t1=torch.tensor([2.0]))
    assert (block.t0, block.t1) == (0.5, 2.0)
    assert isinstance(block.describe()["t1"], float)
    with pytest.raises(ValueError, match=r"t1 of a block is saved as a number.*pass float\(t1\), or train"):
        Block(random_velocity(2), t1=nn.Parameter(torch.tensor(1.0)))


@pytest.mark.parametrize("name", [name for name in KINDS if isinstance(field(name)[0], jkoflow.velocity.Velocity)])
def test_the_change_of_time_itself(name):
    velocity, x, context = field(name)
    a, r, tau = torch.tensor(0.3).double(), torch.tensor(-0.7).double(), 0.4
    weights = velocity.field() or velocity.field_at(float(a + r * tau))
    changed = jkoflow.ops.reference.mlp_rhs(change_time(weights, a, r), context, "exact", None)
    plain = jkoflow.ops.reference.mlp_rhs(weights, context, "exact", None)
    for got, expected in zip(changed(x, tau), plain(x, float(a + r * tau)), strict=True):
        torch.testing.assert_close(got, float(r) * expected)
