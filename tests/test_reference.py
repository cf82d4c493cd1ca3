"""The PyTorch reference is the oracle of every kernel, so it is checked against answers that share no code with it."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jkoflow
from jkoflow.ops import reference
from jkoflow.ops.tableau import TABLEAUX
from oracles import autograd_divergence, random_velocity, torchdiffeq_solution

HIDDEN = [(16,), (12, 16), (9, 8, 7)]
ACTIVATIONS = ["tanh", "softplus(5)", "silu", "elu", "selu", "gelu", "sin"]


def integrate(velocity, x, **options):
    return jkoflow.integrate(velocity, x, backend="reference", **options)


def linear_velocity(matrix):
    """v(x) = A x through the linear term, with an MLP that is zero."""
    velocity = jkoflow.MLPVelocity(matrix.shape[0], hidden=(4,), linear=True).to(matrix.dtype)
    with torch.no_grad():
        for parameter in velocity.layers[-1].parameters():
            parameter.zero_()
        velocity.linear.weight.copy_(matrix)
    return velocity


def some_matrix(dim=3, dtype=torch.float64):
    return torch.randn(dim, dim, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype) / dim


@pytest.mark.parametrize("hidden", HIDDEN, ids=len)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("time", "context_dim", "linear"), [(False, 0, False), (True, 0, True), (True, 2, True), (False, 3, False)]
)
def test_velocity_and_divergence(hidden, activation, time, context_dim, linear):
    velocity = random_velocity(4, hidden, activation, time=time, context_dim=context_dim, linear=linear)
    x = torch.randn(6, 4).double()
    context = torch.randn(6, context_dim).double() if context_dim else None
    v, divergence = reference.mlp_rhs(velocity.field(), context, "exact", None)(x, 0.7)
    torch.testing.assert_close(v, velocity(x, 0.7, context), rtol=1e-12, atol=1e-13)
    expected = autograd_divergence(lambda rows: velocity(rows, 0.7, context), x)
    torch.testing.assert_close(divergence, expected, rtol=1e-12, atol=1e-13)


@given(
    dim=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    batch=st.integers(1, 4),
    time=st.booleans(),
    linear=st.booleans(),
    context_dim=st.integers(0, 2),
    t=st.floats(-2, 2),
    seed=st.integers(0, 99),
)
def test_divergence_of_any_shape(dim, hidden, batch, time, linear, context_dim, t, seed):
    velocity = random_velocity(dim, hidden, time=time, linear=linear, context_dim=context_dim, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, dim, generator=generator).double()
    context = torch.randn(batch, context_dim, generator=generator).double() if context_dim else None
    _, divergence = reference.mlp_rhs(velocity.field(), context, "exact", None)(x, t)
    expected = autograd_divergence(lambda rows: velocity(rows, t, context), x)
    torch.testing.assert_close(divergence, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("hidden", HIDDEN, ids=len)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
def test_mlp_and_autograd_right_hand_sides_agree(hidden, divergence):
    velocity = random_velocity(3, hidden, context_dim=2, linear=True)
    x, context = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    noise = torch.randn(5, 3).double() if divergence == "hutchinson" else None
    ours = integrate(velocity, x, context=context, divergence=divergence, noise=noise)
    generic = integrate(
        lambda x, t, c: velocity(x, t, c), x, context=context, divergence=divergence, noise=noise, num_steps=3
    )
    for got, expected in zip(ours, generic, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("hidden", HIDDEN, ids=len)
def test_hutchinson_is_the_quadratic_form_of_the_jacobian(hidden):
    velocity = random_velocity(3, hidden, linear=True)
    x, noise = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    _, got = reference.mlp_rhs(velocity.field(), None, "hutchinson", noise)(x, 0.2)
    _, product = torch.autograd.functional.jvp(lambda rows: velocity(rows, 0.2), x, noise)
    torch.testing.assert_close(got, (noise * product).sum(1), rtol=1e-12, atol=1e-13)


def test_hutchinson_averages_to_the_exact_divergence():
    velocity = random_velocity(2, (8, 8, 8))
    x = torch.randn(1, 2).double().expand(4, 2)
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]).double()  # every Rademacher probe of two dimensions
    _, probes = reference.mlp_rhs(velocity.field(), None, "hutchinson", signs)(x, 0.0)
    _, exact = reference.mlp_rhs(velocity.field(), None, "exact", None)(x[:1], 0.0)
    torch.testing.assert_close(probes.mean(0, keepdim=True), exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("ours", ["rk4", "midpoint", "euler", "heun"])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (0.25, 2.0)])
def test_same_numbers_as_torchdiffeq(ours, t0, t1):
    theirs = {"heun": "heun2"}.get(ours, ours)
    velocity = random_velocity(3, context_dim=2, linear=True)
    x, context = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    path, logdet = torchdiffeq_solution(velocity, x, theirs, 5, t0=t0, t1=t1, context=context)
    result = integrate(velocity, x, context=context, t0=t0, t1=t1, num_steps=5, method=ours)
    torch.testing.assert_close(result.path, path, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(result.logdet, logdet, rtol=1e-13, atol=1e-13)


@torch.no_grad()
@pytest.mark.parametrize("method", TABLEAUX)
def test_order_of_convergence(method):
    velocity = random_velocity(2, (8, 8), linear=True, scale=0.8)
    x = torch.randn(16, 2).double()
    exact = integrate(velocity, x, num_steps=512, method="dopri5")
    steps = [16, 32, 64]
    for part in ("x", "logdet"):
        errors = [
            (getattr(integrate(velocity, x, num_steps=n, method=method), part) - getattr(exact, part)).abs().mean()
            for n in steps
        ]
        slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
        assert slopes == pytest.approx([TABLEAUX[method].order] * 2, abs=0.5), part


@pytest.mark.parametrize("method", TABLEAUX)
@pytest.mark.parametrize("t1", [1.0, -0.5])
def test_logdet_of_a_linear_field_is_time_times_trace(method, t1):
    matrix = some_matrix()
    result = integrate(linear_velocity(matrix), torch.randn(4, 3).double(), t1=t1, method=method)
    torch.testing.assert_close(result.logdet, (t1 * matrix.trace()).expand(4), rtol=1e-13, atol=1e-14)


def test_linear_field_is_the_matrix_exponential():
    matrix, x = some_matrix(), torch.randn(6, 3).double()
    result = integrate(linear_velocity(matrix), x, t0=0.3, t1=1.7, num_steps=200)
    torch.testing.assert_close(result.x, x @ torch.matrix_exp(1.4 * matrix).T, rtol=1e-9, atol=1e-10)


def test_generic_callable():
    matrix, x = some_matrix(), torch.randn(6, 3).double()
    result = integrate(lambda x, t, context: x @ matrix.T + 2 * t, x, num_steps=3)
    assert result.path is not None
    torch.testing.assert_close(result.logdet, matrix.trace().expand(6), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("hidden", HIDDEN, ids=len)
def test_backwards_in_time_returns_to_the_start(hidden):
    velocity = random_velocity(3, hidden, linear=True)
    x = torch.randn(6, 3).double()
    there = integrate(velocity, x, num_steps=100)
    back = integrate(velocity, there.x, t0=1.0, t1=0.0, num_steps=100)
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(back.logdet, -there.logdet, rtol=0, atol=1e-7)


def test_path_holds_every_step():
    velocity, x = random_velocity(2), torch.randn(5, 2).double()
    result = integrate(velocity, x, num_steps=4)
    assert result.path.shape == (5, 5, 2)
    assert torch.equal(result.path[0], x)
    assert torch.equal(result.path[-1], result.x)
    half = integrate(velocity, x, t1=0.5, num_steps=2)
    torch.testing.assert_close(result.path[2], half.x, rtol=1e-14, atol=1e-15)
    assert integrate(velocity, x, keep_path=False).path is None


def test_intervals_compose():
    velocity, x = random_velocity(2, linear=True), torch.randn(5, 2).double()
    whole = integrate(velocity, x, num_steps=6)
    first = integrate(velocity, x, t1=0.5, num_steps=3)
    second = integrate(velocity, first.x, t0=0.5, num_steps=3)
    torch.testing.assert_close(second.x, whole.x, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(first.logdet + second.logdet, whole.logdet, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("hidden", [(5,), (5, 4), (4, 3, 5)], ids=len)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson", "none"])
def test_gradcheck(hidden, divergence):
    velocity = random_velocity(2, hidden, "silu", context_dim=1, linear=True)
    x, context = (torch.randn(3, n).double().requires_grad_() for n in (2, 1))
    noise = torch.randn(3, 2).double() if divergence == "hutchinson" else None

    def solve(x, context, *parameters):
        result = integrate(velocity, x, context=context, num_steps=2, divergence=divergence, noise=noise)
        return tuple(result) if divergence != "none" else (result.x, result.path)

    assert torch.autograd.gradcheck(solve, (x, context, *velocity.parameters()))


def test_gradients_of_the_generic_path():
    velocity = random_velocity(2, (5, 4), "silu", context_dim=1, linear=True)
    x, context = (torch.randn(3, n).double().requires_grad_() for n in (2, 1))
    inputs = [x, context, *velocity.parameters()]
    gradients = []
    for field in (velocity, lambda x, t, c: velocity(x, t, c)):
        result = integrate(field, x, context=context)
        gradients.append(torch.autograd.grad(result.x.square().sum() + result.logdet.sin().sum(), inputs))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_generic_divergence_does_not_vanish_without_gradients(mode):
    velocity = random_velocity(2, context_dim=1)
    x, context = torch.randn(3, 2).double(), torch.randn(3, 1).double()
    expected = integrate(velocity, x, context=context).logdet.detach()
    with mode():
        # copies made here are inference tensors, on which autograd records nothing
        got = integrate(lambda x, t, c: velocity(x, t, c), x.clone(), context=context.clone())
    assert not got.logdet.requires_grad
    torch.testing.assert_close(got.logdet.clone(), expected, rtol=1e-12, atol=1e-13)
