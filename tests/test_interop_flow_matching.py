"""flow_matching's ODESolver on the kernels: its own numbers, shapes and signs, and what is handed on to it."""

import itertools

import pytest
import torch
from torch import nn

import jkoflow
from jkoflow.ops import velocity_and_divergence

flow_matching = pytest.importorskip("flow_matching.solver")
from flow_matching.utils import ModelWrapper  # noqa: E402

from jkoflow.interop.flow_matching import ODESolver  # noqa: E402

FIXED = ["euler", "midpoint", "heun2", "rk4"]
GRIDS = {
    "forward": [0.0, 1.0],
    "backward": [1.0, 0.0],
    "several": [0.0, 0.13, 0.5, 0.95, 1.0],
    "even": [0.0, 0.25, 0.5, 0.75, 1.0],
    "down": [1.0, 0.81, 0.4, 0.0],
    "elsewhere": [-0.3, 0.2, 1.7],
}


def gaussian(z):
    return -0.5 * z.square().sum(1)


def problem(dim=3, context=0, dtype=torch.float64, kind=jkoflow.MLPVelocity, rows=5, **options):
    torch.manual_seed(0)
    velocity = kind(dim, hidden=(16, 16), context_dim=context, **options).to(dtype)
    c = torch.randn(rows, context, dtype=dtype) if context else None
    return velocity, torch.randn(rows, dim, dtype=dtype), {} if c is None else {"context": c}


@pytest.fixture
def theirs(monkeypatch):
    """The names of the methods of flow_matching's own solver that have been called."""
    calls = []
    for name in ("sample", "compute_likelihood"):
        own = getattr(flow_matching.ODESolver, name)

        def spy(self, *args, own=own, name=name, **kwargs):
            calls.append(name)
            return own(self, *args, **kwargs)

        monkeypatch.setattr(flow_matching.ODESolver, name, spy)
    return calls


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("step_size", [None, 0.1, 0.3, 0.25, 5.0])
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_give_the_same_samples(method, step_size, grid, theirs):
    velocity, x, extras = problem(context=2)
    arguments = dict(step_size=step_size, method=method, time_grid=torch.tensor(GRIDS[grid]), **extras)
    for intermediates in (False, True):
        ours = ODESolver(velocity).sample(x, return_intermediates=intermediates, **arguments)
        assert theirs == []
        wanted = flow_matching.ODESolver(velocity).sample(x, return_intermediates=intermediates, **arguments)
        theirs.clear()
        assert ours.shape == wanted.shape
        assert not ours.requires_grad
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)  # their times are float32


@pytest.mark.parametrize("grid", ["backward", "down"])
@pytest.mark.parametrize("step_size", [None, 0.05, 0.3])
@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("exact", [True, False])
def test_fixed_steps_give_the_same_likelihoods(exact, method, step_size, grid, theirs):
    velocity, x, extras = problem(context=2, dtype=torch.float32)
    arguments = dict(step_size=step_size, method=method, time_grid=torch.tensor(GRIDS[grid]), **extras)
    for intermediates in (False, True):
        options = dict(return_intermediates=intermediates, exact_divergence=exact, **arguments)
        results = []
        for solver in (ODESolver, flow_matching.ODESolver):
            torch.manual_seed(1)  # the probe of Hutchinson's estimate
            results.append(solver(velocity).compute_likelihood(x.clone(), gaussian, **options))
            assert theirs == ([] if solver is ODESolver else ["compute_likelihood"])
        theirs.clear()
        for ours, wanted in zip(*results, strict=True):
            assert ours.shape == wanted.shape
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("method", "within"), [("dopri5", 2e-6), ("bosh3", 1e-4)])  # torchdiffeq's bosh3 interpolates
@pytest.mark.parametrize("grid", ["backward", "down"])
def test_adaptive_steps_agree_within_the_tolerance(method, within, grid, theirs):
    velocity, x, _ = problem()
    options = dict(step_size=None, method=method, rtol=1e-7, atol=1e-7, time_grid=torch.tensor(GRIDS[grid]))
    options = dict(return_intermediates=True, exact_divergence=True, **options)
    ours = ODESolver(velocity).compute_likelihood(x.clone(), gaussian, **options)
    assert theirs == []
    for mine, wanted in zip(
        ours, flow_matching.ODESolver(velocity).compute_likelihood(x.clone(), gaussian, **options), strict=True
    ):
        assert mine.shape == wanted.shape
        torch.testing.assert_close(mine, wanted, rtol=within, atol=within)


def test_the_defaults_are_theirs():
    velocity, x, _ = problem(dtype=torch.float32)  # their probe has no other type
    ours = ODESolver(velocity).sample(x, 0.1)
    torch.testing.assert_close(ours, flow_matching.ODESolver(velocity).sample(x, 0.1), rtol=1e-5, atol=1e-5)
    torch.manual_seed(3)
    ours = ODESolver(velocity).compute_likelihood(x.clone(), gaussian, 0.1)
    torch.manual_seed(3)
    wanted = flow_matching.ODESolver(velocity).compute_likelihood(x.clone(), gaussian, 0.1)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [jkoflow.ConcatSquashMLP, jkoflow.FourierTimeMLP, jkoflow.HyperMLP, "wrapped"])
def test_every_velocity_of_ours_is_fused(kind, theirs):
    velocity, x, _ = problem(kind=jkoflow.MLPVelocity if kind == "wrapped" else kind)
    model = ModelWrapper(velocity) if kind == "wrapped" else velocity
    ours = ODESolver(model).sample(x, 0.2, "midpoint")
    assert theirs == []
    torch.testing.assert_close(ours, flow_matching.ODESolver(model).sample(x, 0.2, "midpoint"), rtol=1e-6, atol=1e-6)


def test_gradients_of_samples_are_theirs():
    velocity, x, extras = problem(context=2)
    inputs = [x.requires_grad_(), extras["context"].requires_grad_(), *velocity.parameters()]
    gradients = []
    for solver in (ODESolver, flow_matching.ODESolver):
        end = solver(velocity).sample(x, 0.3, "rk4", enable_grad=True, **extras)
        gradients.append(torch.autograd.grad(end.square().sum(), inputs))
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_gradients_of_likelihoods_are_those_of_the_discrete_map():
    velocity, x, _ = problem(rows=2)
    inputs = [x.requires_grad_(), velocity.layers[0].weight]
    options = dict(step_size=0.5, exact_divergence=True, enable_grad=True)
    ours = ODESolver(velocity).compute_likelihood(x, gaussian, **options)[1]
    point, logdet = x, 0.0
    for t in (1.0, 0.5):
        v, divergence = velocity_and_divergence(velocity, point, t, backend="reference")
        point, logdet = point - 0.5 * v, logdet - 0.5 * divergence
    wanted = gaussian(point) + logdet
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs), rtol=1e-9, atol=1e-9
    )


class OfTheirs(ModelWrapper):
    """A model whose forward is its own."""

    def forward(self, x, t, **extras):
        return self.model(x, t) * 2


def test_what_kernels_do_not_take_is_handed_on(theirs):
    velocity, x, _ = problem()
    hooked, *_ = problem()
    hooked.register_forward_hook(lambda module, args, output: 2 * output)
    linear = nn.Linear(3, 3).double()
    grid = torch.tensor([0.0, 1.0])
    cases = [
        (OfTheirs(velocity), {}),
        (hooked, {}),
        (ModelWrapper(hooked), {}),
        (lambda x, t: linear(x), {}),
        (velocity, {"method": "heun3"}),
        (velocity, {"method": "dopri8", "step_size": None}),
        (velocity, {"method": "dopri5", "step_size": None, "atol": 0.0}),
    ]
    for count, (model, options) in enumerate(cases, 1):
        arguments = {"step_size": 0.5, "time_grid": grid, **options}
        ours = ODESolver(model).sample(x, **arguments)
        assert len(theirs) == count, (model, options)
        torch.testing.assert_close(ours, flow_matching.ODESolver(model).sample(x, **arguments))
        theirs.pop()
    wrapper = ModelWrapper(velocity)
    wrapper.register_forward_hook(lambda module, args, output: 2 * output)
    theirs.clear()
    doubled = ODESolver(wrapper).sample(x, 0.5)
    assert theirs == ["sample"]
    torch.testing.assert_close(doubled, ODESolver(OfTheirs(velocity)).sample(x, 0.5))
    with pytest.raises(TypeError, match="label"):
        ODESolver(velocity).sample(x, 0.5, label=3)


def test_times_of_a_likelihood_go_from_one_to_zero():
    velocity, x, _ = problem()
    with pytest.raises(AssertionError, match="from 1 to 0"):
        ODESolver(velocity).compute_likelihood(x, gaussian, 0.1, time_grid=torch.tensor([0.0, 1.0]))


def test_one_condition_serves_all_rows(theirs):
    velocity, x, _ = problem(context=2)
    context = torch.randn(2, dtype=x.dtype)
    ours = ODESolver(velocity).sample(x, 0.5, context=context)
    assert theirs == []
    torch.testing.assert_close(ours, flow_matching.ODESolver(velocity).sample(x, 0.5, context=context))


@pytest.mark.parametrize("step_size", [0.001, 1 / 3, 0.07, 0.9999999, 1e-2])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0), (0.1, 0.7)])
def test_awkward_step_sizes(step_size, ends):
    velocity, x, _ = problem(dtype=torch.float32)
    grid = torch.tensor([ends[0], 0.37, ends[1]])
    options = dict(time_grid=grid, return_intermediates=True)
    ours, wanted = (s(velocity).sample(x, step_size, **options) for s in (ODESolver, flow_matching.ODESolver))
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


def test_pairs_of_options_do_not_disturb_each_other():
    velocity, x, _ = problem()
    solver = ODESolver(velocity)
    for method, intermediates in itertools.product(("euler", "dopri5"), (False, True)):
        step_size = None if method == "dopri5" else 0.25
        once = solver.sample(x, step_size, method, return_intermediates=intermediates)
        torch.testing.assert_close(once, solver.sample(x, step_size, method, return_intermediates=intermediates))
    assert isinstance(solver, flow_matching.ODESolver)
