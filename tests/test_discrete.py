"""The discrete map's own inverse and log-determinant, exact at any number of steps."""

import pytest
import torch

from jkoflow import Block, FallbackWarning, JKOFlow, MLPVelocity, TrainConfig, metrics, train
from jkoflow.data import DataWarning, draw, split_rows
from jkoflow.discrete import NotContractiveError
from jkoflow.training.evaluation import evaluate
from oracles import autograd_jacobian, random_velocity

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(scope="module")
def trained():
    """A trained flow, so coarse that integrating backwards does not bring its points back, and its data."""
    rows = split_rows(draw("rose", 4000, seed=0))
    config = TrainConfig(
        initial_map="none", hidden=(16, 16), max_blocks=2, iterations_per_block=150, batch_size=500,
        learning_rate=0.02, num_steps=2, guard_nll=0.5, guard_round_trip=0.5,
    )  # fmt: skip
    return train(rows, config), rows.test


def linear_block(rate, method="euler", num_steps=1):
    """The velocity v(x) = rate x: one Euler step multiplies by 1 + rate, the one back by 1 - rate."""
    velocity = MLPVelocity(2, hidden=(4,), linear=True).double()
    with torch.no_grad():
        for parameter in velocity.layers[-1].parameters():
            parameter.zero_()
        velocity.linear.weight.copy_(rate * torch.eye(2))
    return Block(velocity, num_steps, method)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_round_trip_of_a_trained_flow(trained, dtype):
    flow, x = trained[0].to(dtype), trained[1].to(dtype)
    backwards = metrics.inversion_error(flow, x, num_steps=2)
    exact = metrics.inversion_error(flow, x, num_steps=2, exact=True)
    assert exact.maximum <= LIMITS[dtype]
    assert backwards.mean > 50 * exact.mean


@torch.no_grad()
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_logdet_is_minus_that_of_the_forward(trained, dtype):
    flow, x = trained[0].to(dtype), trained[1].to(dtype)
    z, logdet = flow(x, num_steps=2)
    back, inverse_logdet = flow.inverse(z, num_steps=2, exact=True)
    assert torch.equal(inverse_logdet.isfinite(), torch.ones_like(inverse_logdet, dtype=torch.bool))
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype]
    torch.testing.assert_close(inverse_logdet, -logdet, rtol=0, atol=tolerance)
    torch.testing.assert_close(flow(back, num_steps=2)[1], -inverse_logdet, rtol=0, atol=tolerance)
    assert (flow.inverse(z, num_steps=2)[1] + logdet).abs().max() > 10 * tolerance


@torch.no_grad()
def test_samples_and_their_densities_agree_to_rounding(trained):
    flow = trained[0].double()
    x, log_prob = flow.sample_and_log_prob(300, num_steps=3, exact=True, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.log_prob(x, num_steps=3), log_prob, rtol=0, atol=1e-10)
    assert torch.equal(flow.sample(300, None, 3, torch.Generator().manual_seed(0), exact=True), x)
    assert not torch.equal(flow.sample(300, None, 3, torch.Generator().manual_seed(0)), x)


@torch.no_grad()
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4", "rk4_classic"])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_every_method_with_context_and_time(method, context_dim):
    velocity = random_velocity(3, (9, 7), linear=True, context_dim=context_dim, scale=0.6)
    block = Block(velocity, num_steps=4, method=method, t0=0.5, t1=1.25)
    x, context = torch.randn(40, 3).double(), torch.randn(40, 2).double() if context_dim else None
    y, logdet = block(x, context)
    back, inverse_logdet = block.inverse(y, context, exact=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-13)
    torch.testing.assert_close(inverse_logdet, -logdet, rtol=0, atol=1e-12)
    assert (block.inverse(y, context)[0] - x).abs().max() > 1e-8


@torch.no_grad()
def test_a_row_does_not_depend_on_the_other_rows(trained):
    flow = trained[0].double()
    z = flow(trained[1].double(), num_steps=2)[0]
    together = flow.inverse(z, num_steps=2, exact=True)[0]
    for n in (0, 1, 7):
        torch.testing.assert_close(flow.inverse(z[:n], num_steps=2, exact=True)[0], together[:n], rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_iteration_contracts_as_computed():
    """Euler: B S = 1 - rate^2, so that the iteration has the factor rate^2: fast, slow, and none."""
    y = torch.randn(10, 2).double()
    torch.testing.assert_close(linear_block(0.5).inverse(y, exact=True)[0], y / 1.5, rtol=1e-14, atol=1e-14)
    message = r"step 1 of 1 in the block .* 10 of 10 rows .* factor about 2\.25, .* such as num_steps=2, or exact=False"
    with pytest.raises(NotContractiveError, match=message):
        linear_block(1.5).inverse(y, exact=True)
    with pytest.raises(NotContractiveError, match=r"factor about 0\.81"):
        linear_block(0.9).inverse(y, exact=True)


@torch.no_grad()
def test_the_error_names_block_and_step():
    flow = JKOFlow(2, [linear_block(0.1), linear_block(4.0, num_steps=2), linear_block(0.1)])
    with pytest.raises(NotContractiveError, match=r"step 2 of 2 in block 1 .* num_steps=4"):
        flow.inverse(torch.ones(3, 2).double(), exact=True)
    x = torch.ones(3, 2).double()
    torch.testing.assert_close(flow.inverse(flow(x, num_steps=20)[0], num_steps=20, exact=True)[0], x)


def test_evaluation_says_when_there_is_no_exact_inverse(trained):
    rows = split_rows(draw("rose", 300, seed=1))
    result = evaluate(trained[0].float(), rows, 100)
    assert result["inversion_error_exact_max"] < 1e-5
    steep = JKOFlow(2, [linear_block(3e3, "rk4").float()])
    with pytest.warns(DataWarning, match="training has diverged"):
        assert evaluate(steep, rows, 100)["inversion_error_exact_mean"] == float("inf")


def test_gradients_are_refused():
    block, x = linear_block(0.1), torch.ones(3, 2).double().requires_grad_()
    with pytest.raises(
        ValueError, match=r"exact=True computes no gradient, but y requires one; call it under torch.no_grad\(\)"
    ):
        block.inverse(x, exact=True)
    with pytest.raises(ValueError, match="discrete=True computes no gradient, but x requires one"):
        block(x, discrete=True)
    with torch.no_grad():
        block.inverse(x, exact=True)
    assert not block(x.detach(), discrete=True)[1].requires_grad
    assert all(parameter.requires_grad and parameter.grad is None for parameter in block.parameters())


# -------------------------------------------------------------------------------------------------- the log-determinant


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize("dim", [1, 3])
def test_discrete_logdet_is_that_of_the_jacobian(dim, method, context_dim):
    velocity = random_velocity(dim, (9, 7), linear=True, context_dim=context_dim, scale=0.9)
    block = Block(velocity, num_steps=2, method=method, t0=0.5, t1=1.25)
    x, context = torch.randn(6, dim).double(), torch.randn(6, 2).double() if context_dim else None
    y, logdet = block(x, context, discrete=True)
    expected = torch.linalg.slogdet(autograd_jacobian(lambda rows: block(rows, context)[0], x)).logabsdet
    torch.testing.assert_close(logdet, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(y, block(x, context)[0], rtol=0, atol=1e-14)
    assert (block(x, context)[1] - expected).abs().max() > 1e-6


def test_discrete_logdet_in_the_reference():
    block = Block(MLPVelocity(2, (5,), "sin").double(), num_steps=1)
    x = torch.randn(4, 2).double()
    with pytest.warns(FallbackWarning):
        logdet = block(x, discrete=True)[1]
    expected = torch.linalg.slogdet(autograd_jacobian(lambda rows: block(rows)[0], x)).logabsdet
    torch.testing.assert_close(logdet, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_discrete_logdet_in_every_grad_mode(mode):
    expected = linear_block(0.5)(torch.ones(2, 2).double(), discrete=True)[1]
    with mode():
        block = linear_block(0.5)
        y, logdet = block(torch.ones(2, 2).double(), discrete=True)
        back, _ = block.inverse(y, exact=True)
    assert torch.equal(logdet, expected)
    torch.testing.assert_close(back, torch.ones(2, 2).double())
    assert block(torch.empty(0, 2).double(), discrete=True)[1].shape == (0,)


def total_mass(flow, **options):
    """The integral of exp(log_prob) over the plane."""
    axis = torch.linspace(-11, 11, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = flow.log_prob(grid, **options).exp()
    assert (density * (grid.abs().amax(1) > 10.9)).max() < 1e-8 * density.max(), "the grid cuts off mass"
    return density.sum().item() * (axis[1] - axis[0]).item() ** 2


@pytest.mark.parametrize(("method", "num_steps"), [("euler", 2), ("heun", 1)])
def test_a_plane_of_discrete_density_integrates_to_one_at_any_number_of_steps(method, num_steps):
    blocks = [Block(random_velocity(2, (12, 12), scale=1.1, seed=k), num_steps, method) for k in range(2)]
    flow = JKOFlow(2, blocks)
    assert total_mass(flow, discrete=True) == pytest.approx(1, abs=1e-5)
    assert abs(total_mass(flow) - 1) > 1e-2


def test_more_steps_bring_the_two_logdets_together():
    flow, x = JKOFlow(2, [Block(random_velocity(2))]), torch.randn(50, 2).double()
    gaps = [(flow(x, num_steps=n)[1] - flow(x, num_steps=n, discrete=True)[1]).abs().mean() for n in (4, 8, 16)]
    assert gaps[0] / gaps[1] > 10
    assert gaps[1] / gaps[2] > 10
