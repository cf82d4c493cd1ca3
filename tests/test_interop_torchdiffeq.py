"""torchdiffeq's interface: the same values, shapes and gradients, fused where it can be, and torchdiffeq where not."""

import sys

import pytest
import torch
import torchdiffeq
from hypothesis import given
from hypothesis import strategies as st

import jkoflow
from jkoflow.interop import fused_odeint
from jkoflow.interop import torchdiffeq as ours
from jkoflow.interop.torchdiffeq import CNFFunc, unfused
from oracles import autograd_divergence, random_velocity

FIXED = ["euler", "midpoint", "heun2", "rk4"]
TIMES = {
    "one step": [0.0, 1.0],
    "backwards": [1.0, 0.0],
    "uneven": [0.0, 0.1, 0.55, 0.9],
    "uneven, backwards": [2.0, 1.9, 0.3, -0.4],
    "even": [0.0, 0.25, 0.5, 0.75, 1.0],
}
OPTIONS = {
    "none": None,
    "divides": {"step_size": 0.25},
    "does not divide": {"step_size": 0.3},
    "longer than the interval": {"step_size": 7.0},
    "cubic": {"step_size": 0.3, "interp": "cubic"},
}


class Published(torch.nn.Module):
    """The flow as users write it: the divergence by autograd, a row of the Jacobian at a time."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity

    def forward(self, t, states):
        z, logp, *rest = states
        recorded = torch.is_grad_enabled() and z.requires_grad
        with torch.enable_grad():
            z = z if recorded else z.detach().requires_grad_()
            v = self.velocity(z, t)
            rows = [torch.autograd.grad(v[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(z.shape[1])]
        return (v, -sum(rows).reshape(logp.shape), *(torch.zeros_like(state) for state in rest))


def case(layout=(), dtype=torch.float64, batch=7, extra=(), **network):
    """A velocity and states whose log p has the shape (B, *layout)."""
    velocity = random_velocity(**({"dim": 3, "hidden": (8, 6)} | network), dtype=dtype)
    z = torch.randn(batch, velocity.dim, dtype=dtype)
    return velocity, (
        z,
        torch.randn(batch, *layout, dtype=dtype),
        *(torch.randn(shape, dtype=dtype) for shape in extra),
    )


def equal(got, expected, **tolerances):
    assert type(got) is type(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **tolerances)


@pytest.fixture
def never_torchdiffeq(monkeypatch):
    """What is fused needs no torchdiffeq: the test's own calls of it use names that were bound before."""
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)


# ---- Values and shapes


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("layout", [(), (1,)])
def test_fixed_methods_take_torchdiffeqs_steps(layout, times, options, never_torchdiffeq):
    velocity, y0 = case(layout)
    t = torch.tensor(times, dtype=torch.float64)
    for method in FIXED if layout else FIXED[1:2]:
        got = ours.odeint(CNFFunc(velocity), y0, t, method=method, options=options)
        expected = torchdiffeq.odeint(Published(velocity), y0, t, method=method, options=options)
        equal(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("method", FIXED)
def test_fixed_methods_in_float32(method, options, never_torchdiffeq):
    velocity, y0 = case((1,), torch.float32)
    for times in (TIMES["uneven"], TIMES["uneven, backwards"]):
        t = torch.tensor(times)
        got = ours.odeint(CNFFunc(velocity), y0, t, method=method, options=options)
        equal(got, torchdiffeq.odeint(Published(velocity), y0, t, method=method, options=options), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("step_size", [0.1, 0.3, torch.tensor(0.1)])
@pytest.mark.parametrize("end", [0.3, 0.7, 2.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_times_decides_on_the_number_of_steps(dtype, end, step_size, never_torchdiffeq):
    velocity, y0 = case()
    for t in (torch.tensor([0.0, end], dtype=dtype), torch.tensor([end, 0.1, 0.0], dtype=dtype)):
        got = ours.odeint(CNFFunc(velocity), y0, t, method="euler", options={"step_size": step_size})
        expected = torchdiffeq.odeint(Published(velocity), y0, t, method="euler", options={"step_size": step_size})
        equal(got, expected, rtol=1e-6, atol=1e-6)


@st.composite
def grids(draw):
    steps = draw(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6))
    times = torch.tensor([draw(st.floats(-3.0, 3.0)), *steps], dtype=torch.float64).cumsum(0)
    times = times.flip(0) if draw(st.booleans()) else times
    return times.to(draw(st.sampled_from([torch.float32, torch.float64])))


@given(
    grids(),
    st.sampled_from(FIXED),
    st.one_of(st.none(), st.floats(0.02, 2.0)),
    st.sampled_from(["linear", "cubic"]),
)
def test_random_grids(t, method, step_size, interp):
    velocity, y0 = case(batch=3, dim=2, hidden=(8,))
    options = {"step_size": step_size, "interp": interp}
    assert unfused(CNFFunc(velocity), y0, t, method=method, options=options) is None
    got = ours.odeint(CNFFunc(velocity), y0, t, method=method, options=options)
    equal(got, torchdiffeq.odeint(Published(velocity), y0, t, method=method, options=options), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize(("dtype", "layout"), [(torch.float32, (1,)), (torch.float64, ())])
def test_adaptive_methods_keep_the_tolerance(dtype, layout, times, never_torchdiffeq):
    velocity, y0 = case(layout, dtype)
    t = torch.tensor(times, dtype=dtype)
    exact = tuple(state.double() for state in y0)
    expected = torchdiffeq.odeint(Published(velocity.double()), exact, t.double(), rtol=1e-10, atol=1e-10)
    for method, rtol in ((None, 1e-7), ("dopri5", 1e-5), ("bosh3", 1e-5), ("tsit5", 1e-6)):
        got = ours.odeint(CNFFunc(velocity.to(dtype)), y0, t, rtol=rtol, atol=rtol / 100, method=method)
        for one, other in zip(got, expected, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.double(), other, rtol=100 * rtol, atol=100 * rtol)


def test_defaults_are_torchdiffeqs(never_torchdiffeq):
    velocity, y0 = case()
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    got = ours.odeint(CNFFunc(velocity), y0, t)
    equal(got, ours.odeint(CNFFunc(velocity), y0, t, rtol=1e-7, atol=1e-9, method="dopri5"), rtol=0.0, atol=0.0)
    equal(got, ours.odeint_adjoint(CNFFunc(velocity), y0, t), rtol=0.0, atol=0.0)
    equal(got, torchdiffeq.odeint(Published(velocity), y0, t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_further_states_stay_as_they_are(method, never_torchdiffeq):
    velocity, y0 = case((1,), extra=[(7, 2), (), (4,)])
    t = torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64)
    got = ours.odeint(CNFFunc(velocity), y0, t, method=method)
    equal(got, torchdiffeq.odeint(Published(velocity), y0, t, method=method), rtol=1e-6, atol=1e-6)
    got[3].add_(1)  # of its own memory, as torchdiffeq's is
    assert not torch.equal(got[3][0], y0[3])


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3)])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_tensor_states(method, wrapped, shape, never_torchdiffeq):
    velocity, _ = case()
    y0, t = torch.randn(shape, dtype=torch.float64), torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    func = CNFFunc(velocity, divergence="none") if wrapped else velocity
    got = ours.odeint(func, y0, t, method=method)
    expected = torchdiffeq.odeint(lambda t, y: velocity(y, t), y0, t, method=method)
    equal((got,), (expected,), rtol=1e-6, atol=1e-6)


def test_a_velocity_cannot_move_several_states():
    velocity, y0 = case()
    with pytest.raises(ValueError, match=r"func must be a CNFFunc for several states.*pass CNFFunc\(velocity\)"):
        ours.odeint(velocity, y0, torch.tensor([0.0, 1.0]))


FIELDS = {
    "hyper": lambda: jkoflow.HyperMLP(3, hidden=(12,), hyper="gated", hyper_hidden=(8,)),
    "blend": lambda: jkoflow.HyperMLP(3, hidden=(12, 8), hyper="blend"),
    "concat-squash": lambda: jkoflow.ConcatSquashMLP(3, hidden=(12, 8)),
    "fourier": lambda: jkoflow.FourierTimeMLP(3, hidden=(12, 8), activation="elu"),
    "residual": lambda: jkoflow.ResidualMLP(3, hidden=(12, 12)),
}


@pytest.mark.parametrize("method", ["midpoint", "dopri5"])
@pytest.mark.parametrize("kind", FIELDS)
def test_every_kind_of_velocity_is_fused(kind, method):
    velocity, (_, y0) = FIELDS[kind]().double(), case((1,))
    t = torch.tensor([10.0, 9.5, 9.0], dtype=torch.float64)
    assert unfused(CNFFunc(velocity), y0, t, method=method) is None
    got = ours.odeint(CNFFunc(velocity), y0, t, method=method)
    expected = torchdiffeq.odeint(Published(velocity), y0, t, method=method)
    equal(got, expected, rtol=1e-9 if method == "midpoint" else 1e-5, atol=1e-9 if method == "midpoint" else 1e-5)


# ---- Gradients


def gradients(solve, func, y0, t, **settings):
    y0 = tuple(state.detach().requires_grad_() for state in y0)
    outputs = solve(func, y0, t, **settings)
    loss = sum((output * torch.sin(output + i)).sum() for i, output in enumerate(outputs))
    wanted = [*y0, *func.parameters(), *([t] if t.requires_grad else [])]
    return torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("solve", [ours.odeint, ours.odeint_adjoint])
@pytest.mark.parametrize("settings", [{"method": "rk4"}, {"method": "euler", "options": {"step_size": 0.3}}])
def test_gradients_of_fixed_methods_are_those_of_the_discrete_map(settings, solve, never_torchdiffeq):
    velocity, y0 = case((1,), extra=[(2,)])
    t = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    got = gradients(solve, CNFFunc(velocity), y0, t, **settings)
    equal(got, gradients(torchdiffeq.odeint, Published(velocity), y0, t, **settings), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solve", [ours.odeint, ours.odeint_adjoint])
@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_gradients_of_adaptive_methods(method, solve, never_torchdiffeq):
    velocity, y0 = case((1,), extra=[(2,)])
    t = torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64)
    got = gradients(solve, CNFFunc(velocity), y0, t, method=method, rtol=1e-8, atol=1e-9)
    expected = gradients(torchdiffeq.odeint, Published(velocity), y0, t, rtol=1e-9, atol=1e-10)
    equal(got, expected, rtol=1e-5, atol=1e-5)


def trained(times):
    return torch.tensor(times, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0, 0.6, 0.0]])
@pytest.mark.parametrize("options", [None, {"step_size": 0.3}, {"step_size": 0.3, "interp": "cubic"}])
@pytest.mark.parametrize("method", ["midpoint", "rk4"])
def test_trained_times_of_fixed_methods(method, options, times, never_torchdiffeq):
    velocity, y0 = case((1,))
    got, expected = (
        gradients(solve, func, y0, trained(times), method=method, options=options)
        for solve, func in ((ours.odeint, CNFFunc(velocity)), (torchdiffeq.odeint, Published(velocity)))
    )
    equal(got, expected, rtol=1e-8, atol=1e-8)
    assert got[-1].abs().min() > 1e-3


@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0, 0.6, 0.0]])
@pytest.mark.parametrize("solve", [ours.odeint, ours.odeint_adjoint])
def test_trained_times_of_adaptive_methods(solve, times, never_torchdiffeq):
    velocity, y0 = case((1,))
    got, expected = (
        gradients(solve, func, y0, trained(times), rtol=1e-9, atol=1e-10)
        for solve, func in ((solve, CNFFunc(velocity)), (torchdiffeq.odeint, Published(velocity)))
    )
    equal(got, expected, rtol=1e-5, atol=1e-5)
    assert got[-1].abs().min() > 1e-3
    with torch.no_grad():
        (solution, _) = solve(CNFFunc(velocity), y0, trained(times))
    equal((solution,), (solve(CNFFunc(velocity), y0, torch.tensor(times))[0],), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solve", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", ["rk4", "dopri5", "heun3"])
def test_torchdiffeq_itself_takes_a_cnf_func(method, solve):
    velocity, y0 = case((1,), extra=[(2,)])
    t = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    solve = getattr(torchdiffeq, solve)
    got = gradients(solve, CNFFunc(velocity), y0, t, method=method)
    equal(got, gradients(solve, Published(velocity), y0, t, method=method), rtol=1e-8, atol=1e-8)


# ---- What is handed on


def spied(monkeypatch):
    """The calls that torchdiffeq gets, by the names of its functions."""
    calls = []

    def spy(name, true):
        def called(*args, **settings):
            calls.append((name, args, settings))
            return true(*args, **settings)

        return called

    for name in ("odeint", "odeint_adjoint", "odeint_event", "odeint_dense"):
        monkeypatch.setattr(torchdiffeq, name, spy(name, getattr(torchdiffeq, name)))
    return calls


class Wrapped(CNFFunc):
    def forward(self, t, states):
        return super().forward(t, states)


def with_callback(func):
    func.callback_step = lambda t, y, dt: None
    return func


def with_hook(func):
    func.register_forward_hook(lambda module, inputs, outputs: None)
    return func


HANDED_ON = {
    "method": (CNFFunc, {"method": "heun3"}, "no method 'heun3'"),
    "dopri8": (CNFFunc, {"method": "dopri8"}, "no method 'dopri8'"),
    "perturb": (CNFFunc, {"method": "rk4", "options": {"perturb": True}}, "no option perturb"),
    "first step": (CNFFunc, {"method": "dopri5", "options": {"first_step": 0.1}}, "no option first_step"),
    "grid": (CNFFunc, {"method": "euler", "options": {"grid_constructor": lambda f, y, t: t}}, "grid_constructor"),
    "norm": (CNFFunc, {"method": "dopri5", "options": {"norm": lambda y: y[0].abs().max()}}, "no option norm"),
    "tolerances": (CNFFunc, {"rtol": (1e-5, 1e-3, 1e-5)}, "rtol is not one number"),
    "tolerance for each": (CNFFunc, {"atol": (torch.full((21,), 1e-6), 1e-6, 1e-6)}, "atol is not one positive"),
    "zero": (CNFFunc, {"atol": 0.0}, "atol is not one positive"),
    "own forward": (Wrapped, {}, "Wrapped has a forward of its own"),
    "callback": (lambda velocity: with_callback(CNFFunc(velocity)), {}, "callback_step"),
    "hook": (lambda velocity: with_hook(CNFFunc(velocity)), {}, "hook"),
    "not ours": (lambda velocity: CNFFunc(lambda x, t, c: velocity(x, t)), {}, "func has another"),
    "no CNFFunc": (Published, {}, "func is no CNFFunc"),
}


@pytest.mark.filterwarnings("ignore:using the PyTorch reference")
@pytest.mark.parametrize("kind", HANDED_ON)
def test_handed_on(kind, monkeypatch):
    wrap, settings, reason = HANDED_ON[kind]
    velocity, y0 = case(extra=[(2,)])
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    expected = torchdiffeq.odeint(Published(velocity), y0, t, **settings)
    calls, func = spied(monkeypatch), wrap(velocity)
    assert reason in unfused(func, y0, t, **settings)
    equal(ours.odeint(func, y0, t, **settings), expected, rtol=1e-8, atol=1e-8)
    ((name, args, passed),) = calls
    assert name == "odeint"
    assert args[0] is func
    assert {key: passed[key] for key in settings} == settings


@pytest.mark.parametrize(
    "tolerances",
    [
        {"rtol": torch.tensor(1e-6), "atol": torch.tensor(1e-6)},
        {"rtol": (1e-6, 1e-6, 9.0), "atol": [1e-6, torch.tensor(1e-6, dtype=torch.float64), 0.0]},
        {"rtol": 1e-6, "atol": torch.full((3,), 1e-6)},
    ],
)
def test_tolerances_that_are_one_number_are_fused(tolerances):
    velocity, y0 = case(extra=[(2,)])
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert unfused(CNFFunc(velocity), y0, t, **tolerances) is None
    expected = ours.odeint(CNFFunc(velocity), y0, t, rtol=1e-6, atol=1e-6)
    equal(ours.odeint(CNFFunc(velocity), y0, t, **tolerances), expected, rtol=1e-6, atol=1e-6)


def test_what_the_adjoint_equation_needs_is_passed_on(monkeypatch):
    calls = spied(monkeypatch)
    velocity, y0 = case()
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    adjoint = {"adjoint_rtol": 1e-4, "adjoint_atol": 1e-4, "adjoint_method": "bosh3", "adjoint_options": {}}
    ours.odeint_adjoint(CNFFunc(velocity), y0, t, method="dopri5", **adjoint)
    assert calls == []  # no adjoint equation is solved
    some = [velocity.layers[0].weight]
    ours.odeint_adjoint(Published(velocity), y0, t, method="dopri8", adjoint_params=some, **adjoint)
    ours.odeint_adjoint(CNFFunc(velocity), y0, t, adjoint_params=iter(some))
    assert [name for name, *_ in calls] == ["odeint_adjoint"] * 2
    assert {key: calls[0][2][key] for key in adjoint} == adjoint
    assert all(passed["adjoint_params"] == tuple(some) for *_, passed in calls)
    ours.odeint_adjoint(CNFFunc(velocity), y0, t, adjoint_params=velocity.parameters())
    assert len(calls) == 2


def test_events_are_torchdiffeqs(monkeypatch):
    calls = spied(monkeypatch)
    velocity, (z, _) = case()
    t0 = torch.tensor(0.0, dtype=torch.float64)
    func = CNFFunc(velocity, divergence="none")

    def event(t, y):
        return t - 0.25

    time, states = ours.odeint_event(func, z, t0, event_fn=event, odeint_interface=ours.odeint)
    assert [name for name, *_ in calls] == ["odeint_event", "odeint"]
    torch.testing.assert_close(time, torch.tensor(0.25, dtype=torch.float64), rtol=0.0, atol=1e-8)
    expected = ours.odeint(func, z, torch.tensor([0.0, 0.25], dtype=torch.float64))
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    dense = ours.odeint_dense(velocity, z, t0, t0 + 1)
    torch.testing.assert_close(dense(torch.tensor(0.25, dtype=torch.float64)), expected[1], rtol=1e-5, atol=1e-5)


def test_torchdiffeqs_errors_are_its_own():
    velocity, y0 = case()
    with pytest.raises(ValueError, match="Invalid method"):
        ours.odeint(CNFFunc(velocity), y0, torch.tensor([0.0, 1.0]), method="rk5")
    with pytest.raises(AssertionError, match="strictly increasing"):
        ours.odeint(CNFFunc(velocity), y0, torch.tensor([0.0, 1.0, 0.5]))
    with pytest.raises(AssertionError, match="must be either"):
        ours.odeint(CNFFunc(velocity), list(y0), torch.tensor([0.0, 1.0]))
    equal(ours.odeint(CNFFunc(velocity), y0, torch.tensor([0.5])), tuple(state[None] for state in y0))


@pytest.mark.parametrize("solve", [ours.odeint, ours.odeint_adjoint])
def test_without_torchdiffeq_the_error_says_what_needs_it(solve, never_torchdiffeq):
    velocity, y0 = case()
    t = torch.tensor([0.0, 1.0])
    with pytest.raises(jkoflow.errors.UserError, match=r"no method 'heun3'.*needs torchdiffeq; install it with: pip"):
        solve(CNFFunc(velocity), y0, t, method="heun3")
    with pytest.raises(ImportError, match="func is no CNFFunc"):
        solve(Published(velocity), y0, t)


def test_the_kernels_are_asked_once_for_equal_steps(monkeypatch):
    calls = []

    def counted(*args, **settings):
        calls.append(settings["num_steps"])
        return jkoflow.integrate(*args, **settings)

    monkeypatch.setattr(fused_odeint, "integrate", counted)
    velocity, y0 = case()
    t = torch.tensor([0.0, 0.25, 1.03], dtype=torch.float64)
    ours.odeint(CNFFunc(velocity), y0, t, method="rk4", options={"step_size": 0.1})
    assert calls == [2, 1, 7, 1]  # to 0.2, 0.3, 1.0 and 1.03


def test_max_num_steps_ends_a_solve():
    velocity, y0 = case(scale=3.0)
    t, options = torch.tensor([0.0, 1.0], dtype=torch.float64), {"max_num_steps": 3}
    with pytest.raises(jkoflow.ops.IntegrationError, match="max_steps = 3 steps are taken"):
        ours.odeint(CNFFunc(velocity), y0, t, method="dopri5", options=options)
    with pytest.raises(AssertionError, match="max_num_steps exceeded"):
        torchdiffeq.odeint(Published(velocity), y0, t, method="dopri5", options=options)


def test_the_divergence_of_the_peer_is_right():
    velocity, (z, logp) = case()
    change = Published(velocity)(torch.tensor(0.3), (z, logp))[1]
    torch.testing.assert_close(change, -autograd_divergence(lambda x: velocity(x, 0.3), z), rtol=1e-6, atol=1e-6)
