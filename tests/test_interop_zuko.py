"""zuko's continuous flow on the kernels, against zuko's own; flows of jkoflow among zuko's, in lampe."""

import copy
import pickle

import pytest
import torch
from torch import nn

from jkoflow import FallbackWarning, JKOFlow
from jkoflow.ops import IntegrationError

zuko = pytest.importorskip("zuko")

from jkoflow.interop.zuko import CNF, FFJTransform, FusedTransform, LazyJKOFlow  # noqa: E402
from jkoflow.interop.zuko_steps import common_steps  # noqa: E402


def pair(features=3, context=0, dtype=torch.float64, scale=1.0, **options):
    """zuko's flow and ours with its parameters."""
    theirs, ours = zuko.flows.CNF(features, context, **options), CNF(features, context, **options)
    with torch.no_grad():
        for parameter in theirs.transform.ode.parameters():
            parameter.mul_(scale)
    assert ours.load_state_dict(theirs.state_dict(), strict=True).missing_keys == []
    return theirs.to(dtype), ours.to(dtype)


def softplus():
    return nn.Softplus(2.0)


def elu():
    return nn.ELU(alpha=0.5)


def options_id(options):
    """Names what it can: an id with an address in it would be another in every process that runs the tests."""
    return "-".join(f"{name}={getattr(value, '__name__', value)}" for name, value in options.items()) or "defaults"


def gradients(loss, flow, *others):
    return torch.autograd.grad(loss, [*flow.parameters(), *others])


def test_the_same_seed_gives_the_same_parameters():
    torch.manual_seed(3)
    theirs = zuko.flows.CNF(3, 5)
    torch.manual_seed(3)
    ours = CNF(3, 5)
    assert isinstance(ours, zuko.flows.CNF)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    theirs.load_state_dict(CNF(3, 5).state_dict(), strict=True)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"freqs": 0},
        {"hidden_features": (24,), "activation": nn.Tanh, "bias": False},
        {"hidden_features": (16, 24, 16), "activation": nn.SiLU},
        {"freqs": 1, "activation": softplus, "atol": 1e-9, "rtol": 1e-7},
    ],
    ids=options_id,
)
@pytest.mark.parametrize("context", [0, 5])
def test_densities_and_samples_are_zukos(options, context):
    theirs, ours = pair(3, context, scale=1.5, **options)
    x = torch.randn(17, 3).double()
    c = torch.randn(17, context).double() if context else None
    torch.testing.assert_close(ours(c).log_prob(x), theirs(c).log_prob(x), atol=1e-9, rtol=1e-9)
    samples = []
    for flow in (theirs, ours):
        torch.manual_seed(1)
        samples.append(flow(c).rsample_and_log_prob((2,)))
    torch.testing.assert_close(samples[1], samples[0], atol=1e-9, rtol=1e-9)


def test_float32_and_default_tolerances():
    theirs, ours = pair(6, 5, torch.float32)
    x, c = torch.randn(256, 6), torch.randn(256, 5)
    with torch.no_grad():
        torch.testing.assert_close(ours(c).log_prob(x), theirs(c).log_prob(x), atol=1e-5, rtol=1e-6)


def test_gradients_are_those_of_the_density():
    """zuko's come from an integration backwards: both are as far from those of a tight tolerance."""
    theirs, ours = pair(2, 5, activation=nn.Tanh, hidden_features=(16,))
    x, c = (torch.randn(9, n).double().requires_grad_() for n in (2, 5))
    exact = copy.deepcopy(theirs)
    exact.transform.atol = exact.transform.rtol = 1e-8
    found, expected = (gradients(flow(c).log_prob(x).mean(), flow, x, c) for flow in (ours, exact))
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-4 * float(right.abs().max()), rtol=0)


def test_parameters_get_gradients_in_training_mode_only():
    ours = pair(2, 3)[1].eval()
    c = torch.randn(4, 3).double().requires_grad_()
    log_p = ours(c).log_prob(torch.randn(4, 2).double())
    found = torch.autograd.grad(log_p.sum(), [c, *ours.parameters()], allow_unused=True)
    assert found[0] is not None
    assert set(found[1:]) == {None}


def test_axes_broadcast():
    ours = pair(3, 5)[1]
    x, c = torch.randn(4, 1, 3).double(), torch.randn(7, 5).double()
    log_p = ours(c).log_prob(x)
    assert log_p.shape == (4, 7)
    single = CNF(3, 5, steps="row").double()
    single.load_state_dict(ours.state_dict())
    rows = single(c).log_prob(x)
    torch.testing.assert_close(rows[1, 2], single(c[2]).log_prob(x[1, 0]))
    torch.testing.assert_close(rows, log_p, atol=1e-3, rtol=0)
    assert ours(c).sample((2, 3)).shape == (2, 3, 7, 3)
    assert ours(c[0].long()).log_prob(x[0, 0]).shape == ()
    y, ladj = ours.transform(c).call_and_ladj(x[:0])
    assert (y.shape, ladj.shape) == ((0, 7, 3), (0, 7))


def test_rows_with_steps_of_their_own_do_not_depend_on_each_other():
    ours = CNF(3, steps="row").eval()
    x = torch.randn(20, 3)
    assert torch.equal(ours().log_prob(x)[:3], ours().log_prob(x[:3]))
    with pytest.raises(ValueError, match="steps must be batch or row, got 'rows'"):
        FFJTransform(3, steps="rows")


def test_hutchinsons_probe_is_drawn_as_zuko_draws_it():
    theirs, ours = pair(4, 2, exact=False)
    x, c = torch.randn(5, 4).double(), torch.randn(2).double()
    values = []
    for flow in (theirs, ours):
        torch.manual_seed(5)
        values.append(flow(c).log_prob(x))
    torch.testing.assert_close(values[1], values[0], atol=1e-9, rtol=1e-9)
    assert not torch.equal(ours(c).log_prob(x), ours(c).log_prob(x))


def test_copies_pickles_and_what_saves_them(tmp_path):
    ours = CNF(2, 3).double()
    x, c = torch.randn(4, 2).double(), torch.randn(4, 3).double()
    expected = ours(c).log_prob(x)
    torch.save(ours, tmp_path / "flow.pth")
    for other in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(tmp_path / "flow.pth", None, None, weights_only=False),
    ):
        assert torch.equal(other(c).log_prob(x), expected)
    transform = ours.transform(c)
    y, ladj = transform.call_and_ladj(x)
    torch.testing.assert_close(transform.inv(y), x, atol=1e-4, rtol=0)
    torch.testing.assert_close(transform.inv.call_and_ladj(y)[1], -ladj, atol=1e-3, rtol=0)


def hooked(flow):
    flow.transform.ode[0].register_forward_hook(lambda module, inputs, output: 2 * output)


def with_its_own_network(flow):
    flow.transform.ode = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def with_times_to_train(flow):
    flow.transform.times.requires_grad_()


@pytest.mark.parametrize(
    ("options", "change", "reason"),
    [
        ({"activation": nn.ReLU}, None, "ReLU"),
        ({"activation": None}, None, "ReLU"),
        ({"normalize": True}, None, "LayerNorm"),
        ({"hidden_features": ()}, None, "no hidden layer"),
        ({"activation": elu}, None, r"ELU\(alpha=0.5\)"),
        ({"hidden_features": (8,) * 17}, None, "hidden layers, the velocity has 17"),
        ({}, hooked, "forward hook"),
        ({}, with_its_own_network, "Sequential"),
        ({}, with_times_to_train, "times"),
    ],
    ids=lambda value: options_id(value) if isinstance(value, dict) else getattr(value, "__name__", None) or str(value),
)
def test_what_no_kernel_covers_is_handed_on_and_told(options, change, reason):
    theirs, ours = zuko.flows.CNF(2, **options), CNF(2, **options)
    for flow in (theirs, ours):
        if change is not None:
            torch.manual_seed(2)
            change(flow)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 2)
    with pytest.warns(FallbackWarning, match=f"using zuko's own solver: .*{reason}"):
        found = ours().log_prob(x)
    assert torch.equal(found, theirs().log_prob(x))
    assert torch.equal(ours.transform().inv(x), theirs.transform().inv(x))
    assert torch.equal(ours.transform()._inverse(x), theirs.transform()._inverse(x))


def test_what_is_covered_is_not_handed_on(monkeypatch):
    monkeypatch.setattr(zuko.transforms, "odeint", None)
    flow = CNF(2, 3)
    assert isinstance(flow(torch.zeros(3)).transform, FusedTransform)
    flow(torch.zeros(3)).log_prob(torch.zeros(2)).backward()
    flow(torch.zeros(3)).rsample((2,))


def test_a_step_that_shrinks_to_nothing_is_an_error():
    flow = CNF(2).double()
    with pytest.raises(IntegrationError, match=r"row 1 .*not finite"):
        flow().log_prob(torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]).double())
    with pytest.raises(IntegrationError, match="shrunk"):
        common_steps(lambda state, t: state.sign() / (0.5 - t) ** 2, torch.ones(1, 1).double(), 0.0, 1.0, 1e-6, 1e-6)


# ---- JKOFlow among zuko's flows


def test_a_flow_is_a_lazy_distribution():
    lazy = LazyJKOFlow.of_free_blocks(3, 2, blocks=2, hidden_features=(8,))
    assert isinstance(lazy, zuko.lazy.LazyDistribution)
    assert isinstance(lazy.flow, JKOFlow)
    assert len(lazy.flow.blocks) == 2
    x, c = torch.randn(5, 3), torch.randn(5, 2)
    given = LazyJKOFlow(lazy.flow, tol=1e-3)(c)
    torch.testing.assert_close(given.log_prob(x), lazy(c).log_prob(x), atol=2e-3, rtol=0)
    x, log_p = lazy(c).rsample_and_log_prob((4,))
    assert (x.shape, log_p.shape) == ((4, 5, 3), (4, 5))
    assert LazyJKOFlow.of_free_blocks(3)().sample((2,)).shape == (2, 3)
    flow = zuko.lazy.Flow(zuko.lazy.UnconditionalTransform(zuko.transforms.IdentityTransform), lazy)
    torch.testing.assert_close(flow(c).log_prob(x), lazy(c).log_prob(x))


def test_zuko_transforms_noise_by_a_flow():
    flow = LazyJKOFlow.of_free_blocks(2, hidden_features=(8,)).flow
    base = zuko.distributions.DiagNormal(torch.zeros(2), torch.ones(2))
    density = zuko.distributions.NormalizingFlow(flow.transform().inv, base)
    x = torch.randn(6, 2)
    torch.testing.assert_close(density.log_prob(x), flow.log_prob(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", [CNF, LazyJKOFlow.of_free_blocks], ids=["CNF", "JKOFlow"])
def test_lampe_trains(build):
    """Three parameters whose sum and difference are observed with noise: the posterior is sharper than the prior."""
    inference = pytest.importorskip("lampe.inference")
    estimator = inference.NPE(
        3, 2, build=build, hidden_features=(16,), **({"activation": nn.Tanh} if build is CNF else {})
    )
    loss = inference.NPELoss(estimator)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=2e-2)
    theta = torch.randn(128, 3)
    x = theta[:, :2] + 0.1 * torch.randn(128, 2)
    before = float(loss(theta, x).detach())
    for _ in range(30):
        optimizer.zero_grad()
        loss(theta, x).backward()
        optimizer.step()
    after = float(loss(theta, x).detach())
    assert after < before - 0.5
    samples = estimator.flow(torch.tensor([1.0, -1.0])).sample((500,))
    assert samples.shape == (500, 3)
    assert (samples[:, :2].mean(0) - torch.tensor([1.0, -1.0])).abs().max() < 0.5
