"""sbi: density estimators with its shapes and roles, and its flow matching solved by jkoflow."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import jkoflow

pytest.importorskip("sbi")
from sbi.inference import FMPE, NLE, NPE, DirectPosterior
from sbi.inference.posteriors.posterior_parameters import VectorFieldPosteriorParameters
from sbi.inference.posteriors.vector_field_posterior import VectorFieldPosterior
from sbi.neural_nets import posterior_flow_nn
from sbi.neural_nets.net_builders.vector_field_nets import build_vector_field_estimator
from sbi.samplers.ode_solvers import ZukoNeuralODE
from sbi.utils import BoxUniform

from jkoflow.interop.sbi import (
    JKODensityEstimator,
    JKONeuralODE,
    MLPVectorField,
    build_jko,
    density_estimator,
    register_ode_backend,
)
from jkoflow.interop.sbi_fields import FoldedVelocity


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)  # where sbi leaves its logs


def wild(estimator):
    """Gives a fresh estimator, which is the identity, a velocity that moves and depends on the condition."""
    with torch.no_grad():
        for block in estimator.net.stack:
            for parameter in block.velocity.layers[-1].parameters():
                parameter.normal_(std=0.2)
    return estimator


def batches(theta=2, x=3, rows=200):
    theta = torch.randn(rows, theta)
    return theta, torch.randn(rows, *(x if isinstance(x, tuple) else (x,))) + 5.0


@pytest.mark.parametrize("sample_shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("condition", [(1,), (3,), (3, 5)])
@pytest.mark.parametrize("features", [1, 2])
def test_shapes_are_those_of_sbi(features, condition, batch, sample_shape):
    theta, x = batches(features, condition)
    structured = "structured" if len(condition) > 1 else "independent"
    estimator = wild(build_jko(theta, x, z_score_y=structured, hidden=(8,), embedding_net=nn.Flatten()))
    assert (estimator.input_shape, estimator.condition_shape) == ((features,), condition)
    assert estimator.loss(theta[:batch], x[:batch]).shape == (batch,)
    assert estimator.log_prob(theta[None, :batch].expand(3, -1, -1), x[:batch]).shape == (3, batch)
    assert estimator.log_prob(theta[:batch], x[:batch]).shape == (1, batch)
    assert estimator.log_prob(torch.randn(2, 1, features), x[:batch]).shape == (2, batch)
    assert estimator.log_prob(torch.randn(2, batch, features), x[:batch].expand(2, *x[:batch].shape)).shape == (
        2,
        batch,
    )
    samples = estimator.sample(sample_shape, x[:batch])
    assert samples.shape == (*sample_shape, batch, features)
    assert not samples.requires_grad
    samples, log_prob = estimator.sample_and_log_prob(sample_shape, x[:batch])
    assert (samples.shape, log_prob.shape) == ((*sample_shape, batch, features), (*sample_shape, batch))
    assert estimator.inverse_transform(theta[:5, None], x[:batch]).shape == (5, batch, features)


@torch.no_grad()
def test_numbers_are_those_of_the_flow():
    theta, x = batches()
    estimator = wild(build_jko(theta, x, hidden=(16, 16))).eval()
    mean, std = x.mean(0), x.std(0)
    torch.testing.assert_close(estimator.net.standardize.std, theta.std(0))
    pairs = estimator.log_prob(theta[:4, None], x[:3])
    wanted = [[estimator.net.log_prob(t[None], ((c - mean) / std)[None])[0] for c in x[:3]] for t in theta[:4]]
    torch.testing.assert_close(pairs, torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    samples, log_prob = estimator.sample_and_log_prob((50,), x[:3])
    torch.testing.assert_close(estimator.log_prob(samples, x[:3]), log_prob, rtol=1e-4, atol=1e-4)
    noise = estimator.inverse_transform(samples, x[:3])
    torch.testing.assert_close(
        noise, estimator.net(samples.reshape(-1, 2), ((x[:3] - mean) / std).repeat(50, 1))[0].view(50, 3, 2)
    )


def test_evaluation_takes_twice_the_steps_of_training():
    theta, x = batches()
    estimator = wild(build_jko(theta, x, num_steps=1))
    coarse, fine = estimator.train().loss(theta, x), estimator.eval().loss(theta, x)
    assert (coarse - fine).abs().max() > 1e-4
    torch.testing.assert_close(coarse, estimator.loss(theta, x, num_steps=1))
    torch.testing.assert_close(fine, estimator.train().loss(theta, x, num_steps=2))
    assert estimator.loss(theta, x, tol=1e-3).shape == (200,)


@pytest.mark.parametrize("z_score", ["independent", "structured", "none", None])
def test_z_scores_are_those_of_sbi(z_score):
    from sbi.neural_nets.net_builders import build_zuko_maf

    theta, x = 3 * torch.randn(200, 2) + torch.tensor([10.0, -5.0]), torch.randn(200, 3) + 4
    ours = build_jko(theta, x, z_score_x=z_score, z_score_y=z_score)
    theirs = build_zuko_maf(theta, x, z_score_x=z_score, z_score_y=z_score)
    if z_score in ("none", None):
        assert ours.net.standardize.std.tolist() == [1, 1]
        assert ours.net.standardize.mean.tolist() == [0, 0]
    else:
        transform = theirs.net.transform.transforms[0]()
        torch.testing.assert_close(ours.net.standardize(theta)[0], transform(theta))
    torch.testing.assert_close(ours.embedding_net(x), theirs.embedding_net(x))


def test_support_is_never_left():
    prior = BoxUniform(-torch.ones(2), 2 * torch.ones(2))
    theta = prior.sample((300,))
    x = theta + 0.1 * torch.randn_like(theta)
    estimator = wild(build_jko(theta, x, z_score_x="transform_to_unconstrained", x_dist=prior)).eval()
    samples, log_prob = estimator.sample_and_log_prob((2000,), x[:1])
    assert bool(prior.support.check(samples).all())
    torch.testing.assert_close(estimator.log_prob(samples, x[:1]), log_prob, rtol=1e-3, atol=2e-3)
    axis = torch.linspace(-1, 2, 401)[:-1] + 1.5 / 400
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = estimator.log_prob(grid.unsqueeze(1), x[:1]).exp().sum() * (3 / 400) ** 2
    assert abs(float(total) - 1) < 0.01
    with pytest.raises(ValueError, match="x_dist"):
        build_jko(theta, x, z_score_x="transform_to_unconstrained")


def test_wrong_shapes_are_refused():
    theta, x = batches()
    estimator = build_jko(theta, x)
    with pytest.raises(ValueError, match="condition"):
        estimator.log_prob(theta, x[:, :2])
    with pytest.raises(ValueError, match="input"):
        estimator.log_prob(x, x)
    with pytest.raises(ValueError, match="condition"):
        estimator.sample((3,), x[:, :2])
    with pytest.raises(RuntimeError, match="broadcast"):
        estimator.log_prob(theta[:3], x[:2])
    with pytest.raises(ValueError, match="of must be"):
        density_estimator(of="evidence")
    with pytest.raises(TypeError, match="JKOFlow"):
        JKODensityEstimator(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="conditional"):
        JKODensityEstimator(jkoflow.JKOFlow(2, [jkoflow.Block(jkoflow.MLPVelocity(2))]))
    with pytest.raises(ValueError, match="input_shape"):
        JKODensityEstimator(estimator.net, input_shape=(3,))
    with pytest.raises(ValueError, match="condition_shape"):
        JKODensityEstimator(estimator.net, condition_shape=(7,))


def test_building_leaves_the_embedding_as_it_is():
    theta, x = batches()
    embedding = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Dropout(0.5))
    before = copy.deepcopy(embedding.state_dict())
    embedding[2].eval()
    estimator = build_jko(theta, x, embedding_net=embedding)
    assert [module.training for module in embedding] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in embedding.state_dict().items())
    estimator.loss(theta, x).mean().backward()
    assert embedding[1].weight.grad is not None


def test_pickle_copy_and_state():
    theta, x = batches()
    builder = pickle.loads(pickle.dumps(density_estimator(hidden=(8,))))
    estimator = wild(builder(theta, x)).eval()
    wanted = estimator.loss(theta, x)
    for other in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        torch.testing.assert_close(other.loss(theta, x), wanted)
    fresh = builder(theta, x).eval()
    fresh.load_state_dict(estimator.state_dict())
    torch.testing.assert_close(fresh.loss(theta, x), wanted)


def quietly(inference, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Maximum number of epochs", UserWarning)
        return inference.train(**options)


def simulations(rows=300):
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((rows,))
    return prior, theta, torch.cat([theta + 0.3 * torch.randn_like(theta), torch.randn(rows, 1)], 1)


@pytest.mark.parametrize("trainer", [NPE, NLE])
def test_one_argument_serves_both_trainers(trainer):
    prior, theta, x = simulations()
    inference = trainer(prior, density_estimator=density_estimator(hidden=(16,)), show_progress_bars=False)
    inference.append_simulations(theta, x)
    estimator = quietly(inference, max_num_epochs=40, learning_rate=5e-3, training_batch_size=50)
    pair = (theta, x) if trainer is NPE else (x, theta)
    assert (estimator.input_shape, estimator.condition_shape) == (pair[0].shape[1:], pair[1].shape[1:])
    assert estimator.loss(*pair).mean() < density_estimator(of="posterior")(*pair).loss(*pair).mean() - 0.5
    if trainer is NPE:
        posterior = inference.build_posterior()
        samples = posterior.sample((500,), x=torch.tensor([[1.0, -1.0, 0.0]]), show_progress_bars=False)
        torch.testing.assert_close(samples.mean(0), torch.tensor([0.92, -0.92]), rtol=0, atol=0.25)
        assert posterior.log_prob(samples[:3], x=x[:1]).isfinite().all()
    else:
        potential = inference.build_posterior().potential_fn
        potential.set_x(x[:1])
        wanted = estimator.log_prob(x[:1], theta[:5])[0] + prior.log_prob(theta[:5])
        torch.testing.assert_close(potential(theta[:5], track_gradients=False), wanted.detach(), rtol=1e-4, atol=1e-4)


def test_a_flow_that_jkoflow_has_trained_is_a_posterior():
    prior, theta, x = simulations()
    flow = jkoflow.train(
        theta, jkoflow.TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=20, batch_size=100), context=x
    )
    estimator = JKODensityEstimator(flow)
    torch.testing.assert_close(estimator.eval().log_prob(theta, x)[0], flow.log_prob(theta, x))
    posterior = DirectPosterior(estimator, prior)
    assert posterior.sample((7,), x=x[:1], show_progress_bars=False).shape == (7, 2)


FIELDS = {
    "ours": lambda: {"net": MLPVectorField(2, 3, (16, 16))},
    "around a Gaussian": lambda: {"net": MLPVectorField(2, 3, (16,), "tanh"), "gaussian_baseline": True},
    "sbi's mlp": lambda: {
        "net": "mlp",
        "layer_norm": False,
        "skip_connections": False,
        "hidden_features": 8,
        "num_layers": 3,
        "fourier_scale": 1.0,
    },
}


def field_estimator(options, seed=0):
    theta, x = 2 * torch.randn(300, 2) + 3, torch.randn(300, 3)
    options = {"z_score_x": "independent", "z_score_y": "independent", **options}
    estimator = build_vector_field_estimator(theta, x, **options)
    with torch.no_grad():
        for parameter in estimator.net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return estimator.eval(), theta, x


def solvers(estimator, **options):
    arguments = (estimator.ode_fn, estimator.net, estimator.mean_base, estimator.std_base, estimator.condition_shape)
    times = {"t_min": estimator.t_min, "t_max": estimator.t_max}
    return [kind(*arguments, **times, **options) for kind in (JKONeuralODE, ZukoNeuralODE)]


@pytest.mark.parametrize("name", FIELDS)
def test_flow_matching_is_folded_and_agrees_with_zuko(name):
    estimator, theta, x = field_estimator(FIELDS[name]())
    ours, theirs = solvers(estimator)
    distribution = ours(x[:3])
    assert isinstance(distribution.transform.velocity, FoldedVelocity)
    points = theta[:12].reshape(4, 3, 2).requires_grad_()
    found, wanted = distribution.log_prob(points), theirs(x[:3]).log_prob(points)
    assert found.shape == wanted.shape == (4, 3)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=5e-4)
    gradients = [torch.autograd.grad(value.sum(), points)[0] for value in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-2)
    samples, log_prob = distribution.rsample_and_log_prob((50,))
    assert (samples.shape, log_prob.shape) == ((50, 3, 2), (50, 3))
    torch.testing.assert_close(distribution.log_prob(samples), log_prob, rtol=1e-4, atol=1e-3)
    assert ours(x[:3], exact=False).log_prob(points).shape == (4, 3)
    with pytest.raises(TypeError, match="save the estimator"):
        distribution.transform.velocity.describe()
    with pytest.raises(ValueError, match="condition"):
        ours(x[:3, :2])


@pytest.mark.filterwarnings("ignore:using the PyTorch reference:jkoflow.FallbackWarning")
def test_other_fields_are_called_as_they_are():
    hooked, theta, x = field_estimator(FIELDS["ours"]())
    hooked.net.register_forward_hook(lambda module, args, output: 2 * output)
    normed, *_ = field_estimator({"net": "mlp", "hidden_features": 8, "num_layers": 1, "fourier_scale": 1.0})
    for estimator in (hooked, normed):
        ours, theirs = (solver(x[:1]) for solver in solvers(estimator))
        assert not isinstance(ours.transform.velocity, FoldedVelocity)
        points = theta[:5].unsqueeze(1)
        torch.testing.assert_close(ours.log_prob(points), theirs.log_prob(points), rtol=1e-4, atol=5e-4)
        assert ours.sample((4,)).shape == (4, 1, 2)


def test_the_backend_is_registered_when_it_is_asked_for(monkeypatch):
    import sbi.inference.potentials.vector_field_potential as potential
    import sbi.samplers.ode_solvers as ode_solvers

    field = VectorFieldPosteriorParameters.__dataclass_fields__["neural_ode_backend"]
    for module in (potential, ode_solvers):  # as they are again after the test
        monkeypatch.setattr(module, "build_neural_ode", module.build_neural_ode)
    monkeypatch.setattr(field, "type", field.type)
    with pytest.raises(ValueError, match="jkoflow"):
        VectorFieldPosteriorParameters(neural_ode_backend="jkoflow")
    register_ode_backend()
    register_ode_backend()
    prior, theta, x = simulations()
    net = MLPVectorField(2, 3, (16,))
    inference = FMPE(prior, vf_estimator=posterior_flow_nn(model=net), show_progress_bars=False)
    estimator = quietly(inference.append_simulations(theta, x), max_num_epochs=2)
    parameters = VectorFieldPosteriorParameters(neural_ode_backend="jkoflow")
    posterior = inference.build_posterior(posterior_parameters=parameters)
    assert isinstance(posterior.potential_fn.neural_ode, JKONeuralODE)
    plain = VectorFieldPosterior(estimator, prior, sample_with="ode")
    assert isinstance(plain.potential_fn.neural_ode, ZukoNeuralODE)
    found, wanted = (p.set_default_x(x[:1]).log_prob(theta[:5]) for p in (posterior, plain))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=5e-4)
    assert posterior.sample((6,), show_progress_bars=False).shape == (6, 2)
