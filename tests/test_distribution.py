"""Flows as torch.distributions, in PyTorch's own compositions and in Pyro."""

import copy
import math
import pickle

import pytest
import torch
from torch.distributions import Distribution, Independent, Normal, TransformedDistribution, biject_to
from torch.distributions.transforms import AffineTransform, ComposeTransform

from jkoflow import Block, JKOFlow, MLPVelocity
from jkoflow.arrays import InputError
from jkoflow.distribution import DistributionError, FlowDistribution, no_distribution
from jkoflow.links import Link, Links
from jkoflow.ops import Adaptive
from jkoflow.table_flow import TableFlow


@pytest.fixture(autouse=True)
def _validation(monkeypatch):
    monkeypatch.setattr(Distribution, "_validate_args", True)  # zuko, if it is imported, turns it off for everybody


def make_flow(dim=2, context_dim=0, **options):
    blocks = [Block(MLPVelocity(dim, (8, 8), context_dim=context_dim), num_steps=6) for _ in range(2)]
    return JKOFlow(dim, blocks, torch.arange(dim).float(), 1.0 + torch.arange(dim).float(), **options).double()


def linked():
    links = Links([Link("log", lower=1.0), Link("logit", lower=0.0, upper=2.0), Link("reflected", upper=0.0), Link()])
    return make_flow(4, links=links)


def gaussian(*shape):
    return Independent(Normal(torch.zeros(*shape).double(), torch.ones(*shape).double()), 1)


def test_shapes_without_context():
    flow = make_flow()
    density = flow.distribution()
    assert (density.batch_shape, density.event_shape, density.has_rsample) == ((), (2,), True)
    x = density.sample((5, 10))
    assert x.shape == (5, 10, 2)
    assert not x.requires_grad
    torch.testing.assert_close(density.log_prob(x), flow.log_prob(x))
    assert density.log_prob(x[0, 0]).shape == ()
    assert density.sample().shape == (2,)
    assert density.sample((0,)).shape == (0, 2)


def test_the_axes_of_the_context_are_batch_axes():
    flow = make_flow(context_dim=3)
    context = torch.randn(4, 5, 3).double()
    density = flow.distribution(context)
    assert density.batch_shape == (4, 5)
    x = density.sample((7,))
    assert x.shape == (7, 4, 5, 2)
    expected = torch.stack([flow.log_prob(rows.reshape(-1, 2), context.reshape(-1, 3)).reshape(4, 5) for rows in x])
    torch.testing.assert_close(density.log_prob(x), expected)
    torch.testing.assert_close(density.log_prob(x[0, 0, 0])[2, 3], flow.log_prob(x[0, 0, 0], context[2, 3]))
    one = flow.distribution(context[0, 0])
    assert one.batch_shape == ()
    torch.testing.assert_close(one.log_prob(x)[1, 2, 3], flow.log_prob(x[1, 2, 3], context[0, 0]))


@pytest.mark.parametrize(("shape", "batch"), [((), ()), ((1,), ()), ((5,), (5,)), ((5, 1), (5,)), ((5, 7), (5, 7))])
def test_a_single_conditioning_variable_needs_no_axis(shape, batch):
    assert make_flow(context_dim=1).distribution(torch.randn(shape)).batch_shape == batch


def test_one_column_is_an_event_axis():
    flow = make_flow(1)
    density = flow.distribution()
    assert density.sample().shape == (1,)
    assert density.log_prob(torch.zeros(1).double()).shape == ()
    with pytest.raises(ValueError, match="event_shape"):
        density.log_prob(torch.zeros(5).double())
    with pytest.raises(InputError, match=r"value must have shape \(\.\.\., 1\)"):
        flow.distribution(validate_args=False).log_prob(torch.zeros(5).double())


@pytest.mark.parametrize("context_dim", [0, 3])
def test_expand(context_dim):
    density = make_flow(context_dim=context_dim).distribution(torch.randn(5, 3) if context_dim else None)
    wide = density.expand((4, 5))
    assert wide.batch_shape == (4, 5)
    x = torch.randn(4, 5, 2).double()
    torch.testing.assert_close(wide.log_prob(x), density.log_prob(x))
    assert wide.log_prob(x[0, 0]).shape == (4, 5)
    assert wide.rsample((3,)).shape == (3, 4, 5, 2)
    assert Independent(wide, 1).log_prob(x).shape == (4,)
    with pytest.raises(RuntimeError, match="expanded size"):
        wide.expand((2, 5))


def test_densities_integrate_to_one():
    flow = make_flow().requires_grad_(False)
    axes = torch.linspace(-9.0, 9.0, 200).double()
    grid = torch.cartesian_prod(axes, 2 * axes)
    total = flow.distribution().log_prob(grid).exp().sum() * (axes[1] - axes[0]) ** 2 * 2
    assert abs(float(total) - 1) < 1e-3


def test_samples_carry_gradients_and_their_densities():
    flow = make_flow(context_dim=3)
    context = torch.randn(6, 3).double().requires_grad_()
    density = flow.distribution(context)
    torch.manual_seed(1)
    x, log_p = density.rsample_and_log_prob((4,))
    torch.manual_seed(1)
    torch.testing.assert_close(density.rsample((4,)), x)
    torch.testing.assert_close(density.log_prob(x), log_p, atol=1e-4, rtol=1e-5)
    (x.sum() + log_p.sum()).backward()
    assert context.grad.abs().min() > 0
    assert all(parameter.grad is not None for parameter in flow.parameters())
    x, log_p = density.sample_and_log_prob((4,))
    assert (x.requires_grad, log_p.requires_grad) == (False, False)


def test_steps_and_tolerances_are_those_of_the_flow():
    flow = make_flow()
    x = torch.randn(9, 2).double()
    torch.testing.assert_close(flow.distribution(num_steps=1).log_prob(x), flow.log_prob(x, num_steps=1))
    adaptive = Adaptive(1e-8, 1e-8)
    torch.testing.assert_close(flow.distribution(num_steps=adaptive).log_prob(x), flow.log_prob(x, num_steps=adaptive))
    within = flow.distribution(tol=1e-6)
    torch.testing.assert_close(within.log_prob(x), flow.log_prob(x, num_steps=200), atol=1e-6, rtol=0)
    drawn, log_p = within.sample_and_log_prob((9,))
    torch.testing.assert_close(log_p, flow.log_prob(drawn, num_steps=200), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.tensor([0.0, math.nan]), ValueError, "within the support"),
        (torch.tensor([0.0, math.inf]), InputError, "finite"),
        (torch.zeros(3), ValueError, "event_shape"),
        ([0.0, 0.0], ValueError, "must be a Tensor"),
    ],
)
def test_values_are_validated_as_everywhere(value, error, message):
    flow = make_flow()
    with pytest.raises(error, match=message):
        flow.distribution().log_prob(value)
    if isinstance(value, torch.Tensor) and value.shape == (2,):
        assert not flow.distribution(validate_args=False).log_prob(value).isfinite()


def test_the_default_of_validation_is_pytorchs(monkeypatch):
    nan = torch.full((3,), math.nan)
    flow = make_flow(context_dim=3)
    with pytest.raises(InputError, match="context must be finite"):
        flow.distribution(nan)
    Distribution.set_default_validate_args(False)
    assert flow.distribution(nan).log_prob(torch.zeros(2)).isnan()
    with pytest.raises(InputError, match="context must be finite"):
        flow.distribution(nan, validate_args=True)


@pytest.mark.parametrize(
    ("context_dim", "context", "message"),
    [(0, torch.zeros(3), "must be None"), (3, None, "got None"), (3, torch.zeros(5, 2), r"\(\.\.\., 3\)")],
)
def test_context_that_does_not_fit_is_refused(context_dim, context, message):
    for make in (make_flow(context_dim=context_dim).distribution, make_flow(context_dim=context_dim).transform):
        with pytest.raises(InputError, match=message):
            make(context)


@pytest.mark.parametrize("name", ["mean", "variance", "stddev"])
def test_what_nobody_knows_is_not_implemented(name):
    with pytest.raises(NotImplementedError):
        getattr(make_flow().distribution(), name)
    with pytest.raises(NotImplementedError):
        make_flow().distribution().entropy()


def test_the_support_is_that_of_the_links():
    flow = linked()
    density = flow.distribution()
    x = density.sample((100,))
    assert bool(density.support.check(x).all())
    assert density.support.event_dim == 1
    inside = torch.tensor([2.0, 1.0, -1.0, -7.0]).double()
    assert density.log_prob(inside).isfinite()
    for column, outside in ((0, 0.5), (1, 2.5), (2, 1.0)):
        bad = inside.clone()
        bad[column] = outside
        with pytest.raises(ValueError, match="within the support"):
            density.log_prob(bad)
    free = biject_to(density.support)  # what samplers move in
    torch.testing.assert_close(free(free.inv(x)), x)
    assert make_flow().distribution().support is torch.distributions.constraints.real_vector


@pytest.mark.parametrize("cache_size", [0, 1])
@pytest.mark.parametrize("flow", [make_flow(), linked()], ids=["plain", "linked"])
def test_a_transformed_gaussian_has_the_density_of_the_flow(flow, cache_size):
    density = TransformedDistribution(gaussian(flow.dim), flow.transform(cache_size=cache_size))
    assert density.event_shape == (flow.dim,)
    x = flow.distribution().sample((3, 4))
    torch.testing.assert_close(density.log_prob(x), flow.log_prob(x), atol=1e-12, rtol=1e-12)
    drawn = density.rsample((6,))
    torch.testing.assert_close(density.log_prob(drawn), flow.log_prob(drawn), atol=1e-4, rtol=1e-5)
    assert bool(density.support.check(drawn).all())


def test_transform_and_inverse():
    flow = make_flow(3, context_dim=2)
    context = torch.randn(4, 2).double()
    transform = flow.transform(context, num_steps=30)
    assert transform.bijective
    assert transform.inv.inv is transform
    assert transform.forward_shape(torch.Size((3,))) == (4, 3)
    z = torch.randn(3).double()
    x = transform(z)
    assert x.shape == (4, 3)
    torch.testing.assert_close(transform.inv(x), z.expand(4, 3), atol=1e-8, rtol=1e-8)
    jacobian = torch.autograd.functional.jacobian(transform, z)
    logdet = jacobian.det().abs().log()
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, x), logdet, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(transform.inv.log_abs_det_jacobian(x, z), -logdet, atol=1e-6, rtol=1e-6)
    moved, log_slope = transform.call_and_ladj(z)
    torch.testing.assert_close((moved, log_slope), (x, logdet), atol=1e-6, rtol=1e-6)


def test_the_cache_saves_integrations(monkeypatch):
    calls = []
    flow = make_flow()
    for name in ("forward", "inverse", "carry"):
        own = getattr(flow, name)
        monkeypatch.setattr(flow, name, lambda *a, own=own, name=name, **k: calls.append(name) or own(*a, **k))
    for cache_size, expected in ((0, ["carry", "forward"]), (1, ["forward"])):
        density = TransformedDistribution(gaussian(2), flow.transform(cache_size=cache_size))
        calls.clear()
        density.log_prob(torch.zeros(5, 2).double())
        assert calls == expected
    calls.clear()
    density.log_prob(density.rsample((5,)))
    assert calls == ["inverse"]
    assert flow.transform().with_cache(1).with_cache(1)._cache_size == 1
    other = torch.randn(5, 2).double()
    transform = flow.transform(cache_size=1)
    transform(other)
    x = transform(torch.zeros(5, 2).double())
    torch.testing.assert_close(transform.log_abs_det_jacobian(None, other), -flow(other)[1])  # of another point
    assert x.shape == (5, 2)


def test_a_flow_is_the_base_of_a_transformed_distribution():
    flow = make_flow()
    shifted = TransformedDistribution(flow.distribution(), [AffineTransform(1.0, 2.0, event_dim=1)])
    x = torch.randn(7, 2).double()
    torch.testing.assert_close(shifted.log_prob(x), flow.log_prob((x - 1) / 2) - 2 * math.log(2))
    assert shifted.rsample((3,)).shape == (3, 2)
    both = ComposeTransform([flow.transform(), AffineTransform(1.0, 2.0, event_dim=1)])
    torch.testing.assert_close(TransformedDistribution(gaussian(2), both).log_prob(x), shifted.log_prob(x))


def test_copies_and_pickles():
    flow = make_flow(context_dim=3)
    density = flow.distribution(torch.randn(4, 3), num_steps=2)
    x = torch.randn(4, 2).double()
    for other in (copy.copy(density), copy.deepcopy(density), pickle.loads(pickle.dumps(density))):
        assert isinstance(other, FlowDistribution)
        assert torch.equal(other.log_prob(x), density.log_prob(x))
    assert "batch_shape: torch.Size([4])" in repr(density)


def test_a_table_is_refused():
    assert TableFlow.distribution is TableFlow.transform is no_distribution
    with pytest.raises(DistributionError, match="call log_prob and sample"):
        no_distribution()
    assert issubclass(DistributionError, NotImplementedError)


# ---- Pyro


@pytest.fixture
def pyro():
    module = pytest.importorskip("pyro")
    module.clear_param_store()
    return module


def test_a_model_of_pyro_observes_a_flow(pyro):
    flow, data = make_flow(), torch.randn(50, 2).double()

    def model():
        with pyro.plate("rows", 50):
            return pyro.sample("x", flow.distribution(), obs=data)

    trace = pyro.poutine.trace(model).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), flow.log_prob(data).sum())
    assert flow.distribution().to_event(0).event_shape == (2,)
    assert flow.distribution().expand_by((3,)).batch_shape == (3,)
    masked = flow.distribution().expand((50,)).mask(torch.arange(50) < 10)
    torch.testing.assert_close(masked.log_prob(data)[:10], flow.log_prob(data[:10]))
    assert masked.log_prob(data)[10:].abs().max() == 0
    assert pickle.loads(pickle.dumps(flow.distribution())).to_event(0).event_shape == (2,)


def test_pyro_fits_a_flow_to_a_posterior(pyro):
    """A guide that is a flow finds the posterior of a Gaussian's mean, whose mean is 1.8."""
    guide_flow = JKOFlow(2, [Block(MLPVelocity(2, (8,)), num_steps=3)])

    def model():
        mean = pyro.sample("mean", pyro.distributions.Normal(torch.zeros(2), 3.0).to_event(1))
        pyro.sample("x", pyro.distributions.Normal(mean, 1.0).to_event(1), obs=torch.full((2,), 2.0))

    def guide():
        pyro.module("flow", guide_flow)
        pyro.sample("mean", guide_flow.distribution())

    elbo = pyro.infer.Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=0)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    losses = [svi.step() for _ in range(120)]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert (guide_flow.distribution().sample((2000,)).mean(0) - 1.8).abs().max() < 0.2


@pytest.mark.filterwarnings("ignore::FutureWarning:pyro")
def test_pyro_samples_a_flow_that_is_a_prior(pyro):
    """Hamiltonian Monte Carlo of a flow that is a Gaussian, mean 0 and 1, deviations 1 and 2."""
    flow = make_flow()
    for block in flow.stack:
        block.velocity.scale_output(0.0)
    flow.float()
    kernel = pyro.infer.HMC(lambda: pyro.sample("x", flow.distribution()), step_size=0.5, num_steps=4)
    chain = pyro.infer.MCMC(kernel, num_samples=400, warmup_steps=50, disable_progbar=True)
    chain.run()
    x = chain.get_samples()["x"]
    assert x.shape == (400, 2)
    assert (x.mean(0) - torch.tensor([0.0, 1.0])).abs().max() < 0.5
    assert (x.std(0) / torch.tensor([1.0, 2.0]) - 1).abs().max() < 0.3
