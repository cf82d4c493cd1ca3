"""CNFFunc alone: what it returns, FFJORD's conventions, context, and the integrals of the regularizers."""

import copy
import pickle

import pytest
import torch
import torchdiffeq

import jkoflow
from jkoflow.interop import torchdiffeq as ours
from jkoflow.interop.torchdiffeq import CNFFunc, unfused
from oracles import autograd_divergence, autograd_jacobian, random_velocity

# PyTorch's own forward mode, with which regularizers multiply by the Jacobian, scripts its rules
pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script` is deprecated:DeprecationWarning")

TIMES = torch.tensor([0.0, 1.0], dtype=torch.float64)


def case(batch=5, **network):
    velocity = random_velocity(**({"dim": 3, "hidden": (12, 8)} | network))
    return velocity, torch.randn(batch, velocity.dim, dtype=torch.float64)


def close(got, expected, **tolerances):
    torch.testing.assert_close(got, expected, **({"rtol": 1e-10, "atol": 1e-10} | tolerances))


# ---- The right-hand side


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("layout", [(), (1,)])
def test_velocity_and_divergence(layout, sign):
    velocity, z = case()
    states = (z, torch.zeros(5, *layout, dtype=z.dtype), torch.ones(2, dtype=z.dtype))
    for t in (0.3, torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64)):
        v, change, rest = CNFFunc(velocity, sign=sign)(t, states)
        close(v, velocity(z, float(t)))
        close(change, sign * autograd_divergence(lambda x, t=t: velocity(x, float(t)), z).reshape(5, *layout))
        close(rest, torch.zeros(2, dtype=z.dtype))


def test_times_of_integers():
    velocity, z = case()
    v, _ = CNFFunc(velocity)(torch.tensor(1), (z, torch.zeros(5)))
    close(v, velocity(z, 1.0))


def test_leading_axes_of_positions():
    velocity, z = case(batch=24, context_dim=2)
    context = torch.randn(6, 2, dtype=z.dtype)
    flat, change, _ = CNFFunc(velocity)(0.3, (z, torch.zeros(24), context.repeat_interleave(4, 0)))
    for shape in ((6, 4), (6, 4, 1)):  # PointFlow's clouds of points, each with a context of its own
        v, other, zero = CNFFunc(velocity)(0.3, (z.view(6, 4, 3), torch.zeros(shape, dtype=z.dtype), context))
        close(v, flat.view(6, 4, 3))
        close(other, change.view(shape))
        close(zero, torch.zeros_like(context))


def test_without_divergence():
    velocity, z = case()
    func = CNFFunc(velocity, divergence="none")
    close(func(0.3, z), velocity(z, 0.3))
    close(func(0.3, (z,))[0], velocity(z, 0.3))
    v, zero = func(0.3, (z, torch.ones(4, 2)))
    close(v, velocity(z, 0.3))
    assert torch.equal(zero, torch.zeros(4, 2))


@pytest.mark.filterwarnings("ignore:using the PyTorch reference")
def test_callables_in_either_order_of_arguments():
    velocity, z = case(context_dim=2)
    context = torch.randn(5, 2, dtype=z.dtype)
    states = (z, torch.zeros(5, dtype=z.dtype), context)
    expected = CNFFunc(velocity)(0.3, states)
    for func in (
        CNFFunc(lambda x, t, c: velocity(x, t, c), context=True),
        CNFFunc(lambda t, x, c: velocity(x, t, c), context=True, time_first=True),
    ):
        for got, other in zip(func(0.3, states), expected, strict=True):
            close(got, other)
    alone = CNFFunc(lambda t, x: velocity(x, t, context), time_first=True)(0.3, states[:2])
    close(alone[1], expected[1])


def test_a_velocity_takes_positions_first():
    with pytest.raises(ValueError, match="time_first must be False for MLPVelocity"):
        CNFFunc(case()[0], time_first=True)


# ---- Context


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_context_as_third_state_or_fixed(method):
    velocity, z = case(context_dim=2)
    context = torch.randn(5, 2, dtype=z.dtype, requires_grad=True)
    logp = torch.zeros(5, 1, dtype=z.dtype)
    num_steps = 1 if method == "rk4" else None
    x, logdet, _ = jkoflow.integrate(velocity, z, context=context, method=method, num_steps=num_steps)
    third, fixed = (z, logp, context), (z, logp)
    settings = {"method": method, "rtol": 1e-5, "atol": 1e-5}
    for func, states in ((CNFFunc(velocity), third), (CNFFunc(velocity, context=context), fixed)):
        assert unfused(func, states, TIMES, **settings) is None
        solution = ours.odeint(func, states, TIMES, **settings)
        close(solution[0][-1], x, rtol=1e-4, atol=1e-4)
        close(solution[1][-1, :, 0], -logdet, rtol=1e-4, atol=1e-4)
        (gradient,) = torch.autograd.grad(solution[1][-1].sum(), context)
        (expected,) = torch.autograd.grad(-logdet.sum(), context, retain_graph=True)
        close(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ((torch.zeros(5, 3), torch.zeros(5)), r"must begin with \(z, logp, context\), got 2 of them"),
        ((torch.zeros(5, 3), torch.zeros(5), torch.zeros(4, 2)), r"context must have shape \(\*, c\) with leading"),
        (torch.zeros(5, 3), r"must be a tuple \(z, logp, context\) with divergence='exact', got one tensor"),
        ((torch.zeros(5, 3), torch.zeros(5, 2), torch.zeros(5, 2)), r"logp must have shape \(5,\) or \(5, 1\), got"),
        ((), r"must begin with positions of shape \(\*, d\), got None"),
    ],
)
def test_states_that_do_not_fit(states, message):
    velocity = random_velocity(3, context_dim=2, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        CNFFunc(velocity)(0.0, states)


# ---- FFJORD's conventions


def test_the_probe_is_fixed_until_before_odeint():
    velocity, z = case()
    func, states = CNFFunc(velocity, divergence_fn="approximate"), (z, torch.zeros(5, 1, dtype=z.dtype))
    first = func(0.3, states)[1]
    assert torch.equal(func(0.3, states)[1], first)
    jacobian = autograd_jacobian(lambda x: velocity(x, 0.3), z)
    close(first[:, 0], -torch.einsum("bi,bij,bj->b", func._e, jacobian, func._e))
    func.before_odeint()
    assert not torch.equal(func(0.3, states)[1], first)
    func.before_odeint(e=torch.ones_like(z))
    close(func(0.3, states)[1][:, 0], -jacobian.sum((1, 2)))


def test_the_probe_of_another_batch_is_refused():
    velocity, z = case()
    func = CNFFunc(velocity, divergence="hutchinson")
    func(0.3, (z, torch.zeros(5)))
    with pytest.raises(ValueError, match=r"must have the shape of z, \(4, 3\).*call before_odeint\(\) before every"):
        func(0.3, (z[1:], torch.zeros(4)))


def test_probes_of_signs():
    velocity, z = case(batch=50)
    func = CNFFunc(velocity, divergence="hutchinson", rademacher=True)
    func(0.3, (z, torch.zeros(50)))
    assert set(func._e.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(("name", "exact"), [("approximate", True), ("hutchinson", False)])
def test_evaluation_in_two_dimensions_is_exact_as_in_ffjord(name, exact):
    velocity, z = case(dim=2)
    func = CNFFunc(velocity, name).eval()
    change = func(0.3, (z, torch.zeros(5, dtype=z.dtype)))[1]
    divergence = autograd_divergence(lambda x: velocity(x, 0.3), z)
    assert torch.allclose(change, -divergence) is exact
    velocity, z = case(dim=3)
    change = CNFFunc(velocity, name).eval()(0.3, (z, torch.zeros(5, dtype=z.dtype)))[1]
    assert not torch.allclose(change, -autograd_divergence(lambda x: velocity(x, 0.3), z))


def test_evaluations_are_counted():
    velocity, z = case()
    func, states = CNFFunc(velocity), (z, torch.zeros(5, dtype=z.dtype))
    for solve in (ours.odeint, torchdiffeq.odeint):
        func.before_odeint()
        assert func.num_evals() == 0
        solve(func, states, TIMES, method="rk4", options={"step_size": 0.3})
        assert func.num_evals() == func._num_evals.item() == 16
    func.before_odeint()
    ours.odeint(func, states, TIMES)
    expected = jkoflow.integrate(velocity, z, method="dopri5", rtol=1e-7, atol=1e-9).evaluations.max()
    assert func.num_evals() == expected
    ours.odeint(func, tuple(state[:0] for state in states), TIMES)
    assert func.num_evals() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"divergence": "trace"}, "divergence must be one of exact, hutchinson, none, brute_force, approximate, got"),
        ({"divergence_fn": "exakt"}, "divergence must be one of"),
        ({"divergence": "none", "divergence_fn": "approximate"}, "divergence must be left out beside divergence_fn"),
        ({"sign": 2}, "sign must be -1 or 1, got 2"),
        ({"regularizers": ("l2",)}, "regularizers must be names among kinetic, jacobian, frobenius"),
        ({"regularizers": "kinetic"}, "regularizers must be names among"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        CNFFunc(jkoflow.MLPVelocity(2), **arguments)


def test_copies_and_parameters():
    velocity, z = case()
    func = CNFFunc(velocity, divergence="hutchinson", regularizers=("kinetic",))
    states = (z, torch.zeros(5, dtype=z.dtype))
    expected = func(0.3, states)[1]
    for other in (copy.deepcopy(func), pickle.loads(pickle.dumps(func))):
        assert torch.equal(other(0.3, states)[1], expected)
    assert {name.removeprefix("velocity.") for name in func.state_dict()} == set(velocity.state_dict())
    assert "regularizers=('kinetic',)" in repr(func)


# ---- Regularizers


def integrands(velocity, x, t, e):
    jacobian = autograd_jacobian(lambda x: velocity(x, t), x)
    return {
        "kinetic": velocity(x, t).square().sum(1),
        "jacobian": torch.einsum("bij,bj->bi", jacobian, e).square().sum(1),
        "frobenius": jacobian.square().sum((1, 2)),
    }


@pytest.mark.parametrize("shape", [(), (5,), (5, 1)])
def test_integrands_of_regularizers(shape):
    velocity, z = case()
    names = ("frobenius", "kinetic", "jacobian")
    func = CNFFunc(velocity, regularizers=names)
    func.before_odeint(torch.randn_like(z))
    integrals = [torch.zeros(shape, dtype=z.dtype)] * 3
    v, change, *got, last = func(0.3, (z, torch.zeros(5, dtype=z.dtype), *integrals, torch.zeros(2)))
    expected = integrands(velocity, z, 0.3, func._e)
    for name, integrand in zip(names, got, strict=True):
        close(integrand, expected[name].mean() if shape == () else expected[name].reshape(shape))
    close(v, velocity(z, 0.3))
    close(change, -autograd_divergence(lambda x: velocity(x, 0.3), z))
    assert torch.equal(last, torch.zeros(2))


def test_regularizers_come_after_a_context():
    velocity, z = case(context_dim=2)
    context = torch.randn(5, 2, dtype=z.dtype)
    states = (z, torch.zeros(5, dtype=z.dtype), context, torch.zeros(5, dtype=z.dtype))
    *_, zero, kinetic = CNFFunc(velocity, regularizers=("kinetic",))(0.3, states)
    assert torch.equal(zero, torch.zeros_like(context))
    close(kinetic, velocity(z, 0.3, context).square().sum(1))


@pytest.mark.parametrize("solve", [ours.odeint, ours.odeint_adjoint])
def test_integrals_of_regularizers_and_their_gradients(solve):
    velocity, z = case()
    func = CNFFunc(velocity, regularizers=("kinetic", "jacobian"))
    e = torch.randn_like(z)
    func.before_odeint(e)
    zeros = [torch.zeros(5, dtype=z.dtype) for _ in range(3)]
    assert "kinetic, jacobian are among the states" in unfused(func, (z, *zeros), TIMES)
    assert unfused(func, (z, zeros[0]), TIMES) is None
    t = torch.linspace(0, 1, 11, dtype=z.dtype)
    *_, kinetic, jacobian = solve(func, (z, *zeros), t, method="rk4")
    path = ours.odeint(CNFFunc(velocity, "none"), z, t)
    along = [integrands(velocity, x, float(time), e) for x, time in zip(path, t, strict=True)]
    for name, integral in (("kinetic", kinetic), ("jacobian", jacobian)):
        values = torch.stack([point[name] for point in along])
        weights = torch.tensor([1.0, *[4.0, 2.0] * 4, 4.0, 1.0], dtype=z.dtype) / 30  # Simpson's rule
        close(integral[-1], (weights[:, None] * values).sum(0), rtol=1e-3, atol=1e-3)
    parameters = list(velocity.parameters())
    got = torch.autograd.grad((kinetic[-1] + jacobian[-1]).sum(), parameters)
    direction = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum((one * other).sum() for one, other in zip(got, direction, strict=True))
    values = []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            for parameter, change in zip(parameters, direction, strict=True):
                parameter.add_(change, alpha=step if not values else 2 * step)  # from one side to the other
            *_, kinetic, jacobian = ours.odeint(func, (z, *zeros), t, method="rk4")
            values.append((kinetic[-1] + jacobian[-1]).sum())
    close(slope, (values[0] - values[1]) / 2e-4, rtol=1e-3, atol=1e-3)


def test_an_integral_too_few():
    velocity, z = case()
    func = CNFFunc(velocity, regularizers=("kinetic", "jacobian"))
    states = (z, torch.zeros(5, dtype=z.dtype), torch.zeros(5, dtype=z.dtype))
    with pytest.raises(ValueError, match="one integral for each of kinetic, jacobian, or none, got 1 of 2"):
        func(0.3, states)
    with pytest.raises(ValueError, match=r"state of 'kinetic' must have shape \(\), \(5,\) or \(5, 1\), got \(3,\)"):
        func(0.3, (*states[:2], torch.zeros(3), torch.zeros(())))
