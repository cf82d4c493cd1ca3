"""One contract for everything invertible, then what a flow adds: units, densities, files."""

import itertools
import math

import pytest
import torch

from jkoflow import Block, JKOFlow, MLPVelocity, checkpoint
from jkoflow.checkpoint import CheckpointError
from jkoflow.flow import MODEL_FILE, base_log_prob
from jkoflow.ops import Fixed
from jkoflow.standardize import Standardize
from oracles import autograd_jacobian, random_velocity

FINE = 60


def random_flow(
    dim=2, blocks=3, *, dtype=torch.float64, context_dim=0, hidden=(12, 12), activation="tanh", scale=0.7, **options
):
    """A flow whose every block bends, with a standardisation that is not the identity."""
    stack = [
        Block(
            random_velocity(
                dim, hidden, activation, linear=k == 1, context_dim=context_dim, scale=scale, seed=k, dtype=dtype
            ),
            num_steps=3,
            t0=0.25 * k,
            t1=0.25 * k + 0.6,
            jko_step=0.1 * 3**k if k < blocks - 1 else math.inf,
        )
        for k in range(blocks)
    ]
    mean = torch.linspace(-3, 5, dim, dtype=dtype)
    std = torch.linspace(0.3, 4, dim, dtype=dtype)
    return JKOFlow(dim, stack, mean, std, **options)


def rows(flow, n=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    mean, std = flow.standardize.mean, flow.standardize.std
    return mean + std * torch.randn(n, flow.dim, generator=generator).to(mean.dtype)


def assert_invertible(forward, inverse, x, atol=1e-7):
    """`inverse` undoes `forward`, and both logdets are log abs det of autograd's Jacobian.

    Arguments:
        forward: Maps (B, d) to (B, d) and logdet (B,).
        inverse: The same the other way.
        x: Points in float64, with shape (B, d).
        atol: Absolute tolerance; integrators must be fine enough for it.
    """
    y, logdet = forward(x)
    back, inverse_logdet = inverse(y)
    assert y.shape == back.shape == x.shape
    assert logdet.shape == inverse_logdet.shape == x.shape[:1]
    assert not torch.allclose(y, x), "the identity would pass every check"
    torch.testing.assert_close(back, x, rtol=0, atol=atol)
    torch.testing.assert_close(inverse_logdet, -logdet, rtol=0, atol=atol)
    for function, at, reported in ((forward, x, logdet), (inverse, y.detach(), inverse_logdet)):
        jacobian = autograd_jacobian(lambda points, function=function: function(points)[0], at)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(reported.detach(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("hidden", [(12,), (12, 12)], ids=len)
@pytest.mark.parametrize("method", ["rk4", "rk4_classic"])
def test_block_contract(hidden, method):
    block = Block(random_velocity(3, hidden, linear=True, scale=0.8), num_steps=FINE, method=method, t0=0.5, t1=1.25)
    assert_invertible(block, block.inverse, torch.randn(6, 3).double())


def test_block_contract_with_context():
    block = Block(random_velocity(2, context_dim=2), num_steps=FINE)
    context = torch.randn(6, 2).double()
    assert_invertible(lambda x: block(x, context), lambda y: block.inverse(y, context), torch.randn(6, 2).double())


def test_standardize_contract():
    layer = Standardize(torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double())
    assert_invertible(layer, layer.inverse, torch.randn(6, 2).double(), atol=1e-13)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_flow_contract(dim):
    flow = random_flow(dim, eval_num_steps=FINE)
    assert_invertible(flow, flow.inverse, rows(flow))


def test_flow_contract_with_context():
    flow = random_flow(context_dim=2, eval_num_steps=FINE)
    context = torch.randn(6, 2).double()
    assert_invertible(lambda x: flow(x, context), lambda z: flow.inverse(z, context), rows(flow))
    assert not torch.allclose(flow.log_prob(rows(flow), context), flow.log_prob(rows(flow), context + 1))


def test_more_steps_bring_logdet_to_the_jacobian():
    flow, errors = random_flow(), []
    for num_steps in (4, 8, 16):
        jacobian = autograd_jacobian(lambda x, n=num_steps: flow(x, num_steps=n)[0], rows(flow))
        logdet = flow(rows(flow), num_steps=num_steps)[1].detach()
        errors.append((logdet - torch.linalg.slogdet(jacobian).logabsdet).abs().mean().item())
    assert all(coarse / fine > 10 for coarse, fine in itertools.pairwise(errors)), errors


@torch.no_grad()
def test_a_plane_of_density_integrates_to_one():
    flow = random_flow(eval_num_steps=12)
    mean, std = flow.standardize.mean, flow.standardize.std
    axis = torch.linspace(-9, 9, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = flow.log_prob(mean + std * grid).exp()
    edge = (grid.abs().amax(1) > 8.9).to(density)
    assert (density * edge).max() < 1e-7 * density.max(), "the grid cuts off mass"
    cell = ((axis[1] - axis[0]) ** 2 * std.prod()).item()
    assert density.sum().item() * cell == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_log_prob_agrees_with_sample_and_log_prob():
    flow = random_flow(3, eval_num_steps=FINE)
    x, log_prob = flow.sample_and_log_prob(200)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-6)


def affine_flow(dim=3):
    """x -> expm(A) (x - mean) / std: the data are then Gaussian in closed form."""
    matrix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(2)).double() / 2
    velocity = MLPVelocity(dim, hidden=(4,), linear=True).double()
    with torch.no_grad():
        for parameter in velocity.layers[-1].parameters():
            parameter.zero_()
        velocity.linear.weight.copy_(matrix)
    mean, std = torch.tensor([10.0, -5.0, 0.1]).double(), torch.tensor([2.0, 0.01, 30.0]).double()
    factor = torch.diag(std) @ torch.matrix_exp(-matrix)
    exact = torch.distributions.MultivariateNormal(mean, factor @ factor.T)
    return JKOFlow(dim, [Block(velocity)], mean, std, eval_num_steps=100), exact


@torch.no_grad()
def test_density_in_the_units_of_the_data():
    flow, exact = affine_flow()
    x = exact.sample((50,))
    torch.testing.assert_close(flow.log_prob(x), exact.log_prob(x), rtol=0, atol=1e-7)


@torch.no_grad()
def test_samples_in_the_units_of_the_data():
    flow, exact = affine_flow()
    n = 20000
    x = flow.sample(n)
    error = (x.mean(0) - exact.mean) / (exact.stddev / n**0.5)
    assert error.abs().max() < 5
    whitened = torch.linalg.solve_triangular(exact.scale_tril, (x - exact.mean).T, upper=False).T
    # standard deviation of a covariance entry: sqrt(2 / n) on the diagonal
    assert (whitened.T.cov() - torch.eye(3)).abs().max() < 6 * (2 / n) ** 0.5
    assert -flow.log_prob(x).mean().item() == pytest.approx(exact.entropy().item(), abs=6 * (1.5 / n) ** 0.5)


@torch.no_grad()
def test_standardisation_is_a_change_of_units():
    flow = random_flow()
    plain = JKOFlow(2, flow.blocks)
    x = rows(flow)
    z = (x - flow.standardize.mean) / flow.standardize.std
    expected = plain.log_prob(z) - flow.standardize.std.log().sum()
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=1e-13, atol=1e-13)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_does_not_depend_on_the_other_rows(dtype):
    flow = random_flow(3, dtype=dtype)
    x = rows(flow, 50)
    together = flow.log_prob(x)
    others = x.clone()
    others[::2] = flow.standardize.mean + 40 * flow.standardize.std  # far outside the data
    torch.testing.assert_close(flow.log_prob(others)[1::2], together[1::2], rtol=0, atol=0)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for n in (1, 7, 49):
        torch.testing.assert_close(flow.log_prob(x[:n]), together[:n], rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_float32_follows_float64():
    exact, flow = random_flow(dtype=torch.float64), random_flow(dtype=torch.float64).float()
    x = rows(exact)
    assert flow.log_prob(x.float()).dtype == torch.float32
    torch.testing.assert_close(flow.log_prob(x.float()).double(), exact.log_prob(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_trajectory():
    flow = random_flow(eval_num_steps=FINE)
    x = rows(flow)
    z, logdet = flow(x)
    path = flow.trajectory(x)
    assert path.x.shape == (4, 6, 2)
    assert path.logdet.shape == (4, 6)
    assert torch.equal(path.x[0], flow.standardize(x)[0])
    assert torch.equal(path.x[-1], z)
    assert torch.equal(path.logdet[0], torch.zeros(6))
    torch.testing.assert_close(path.logdet[-1], logdet + flow.standardize.std.log().sum())
    back = flow.trajectory(z, inverse=True)
    torch.testing.assert_close(back.x, path.x, rtol=0, atol=1e-6)
    torch.testing.assert_close(back.logdet[0], -path.logdet[-1], rtol=0, atol=1e-6)
    assert torch.equal(back.logdet[-1], torch.zeros(6))


@torch.no_grad()
def test_num_steps_overrides_the_calibrated_number_which_overrides_the_blocks():
    flow, x = random_flow(), rows(random_flow())
    by_blocks = flow.log_prob(x)
    assert torch.equal(by_blocks, flow.log_prob(x, num_steps=3))
    assert not torch.equal(by_blocks, flow.log_prob(x, num_steps=6))
    flow.eval_num_steps = 6
    assert torch.equal(flow.log_prob(x), flow.log_prob(x, num_steps=6))
    assert torch.equal(flow.log_prob(x, num_steps=3), by_blocks)
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1, got 0"):
        flow.log_prob(x, num_steps=0)


@torch.no_grad()
def test_generators_make_samples_repeatable():
    flow = random_flow()
    one, same, other = (flow.sample(5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert flow.sample(0).shape == (0, 2)


@torch.no_grad()
def test_without_blocks_a_flow_is_a_diagonal_gaussian():
    flow = JKOFlow(2, mean=torch.tensor([1.0, 2.0]), std=torch.tensor([0.5, 4.0]))
    x = torch.randn(8, 2)
    expected = torch.distributions.Normal(flow.standardize.mean, flow.standardize.std).log_prob(x).sum(1)
    torch.testing.assert_close(flow.log_prob(x), expected)
    torch.testing.assert_close(base_log_prob(x), torch.distributions.Normal(0, 1).log_prob(x).sum(1))


def test_log_prob_trains():
    flow, x = random_flow(), rows(random_flow(), 32)
    parameters = list(flow.parameters())
    before = flow.log_prob(x).mean()
    gradients = torch.autograd.grad(before, parameters)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter += 1e-4 * gradient
    gain = flow.log_prob(x).mean().item() - before.item()
    assert gain == pytest.approx(1e-4 * sum(g.square().sum().item() for g in gradients), rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": torch.zeros(3), "std": torch.ones(3)}, r"mean must have shape \(2,\), got \(3,\)"),
        ({"mean": torch.zeros(2), "std": torch.ones(3)}, r"same shape \(d,\), got \(2,\), \(3,\)"),
        ({"std": torch.tensor([1.0, 0.0])}, "std finite and positive in every column"),
        ({"std": torch.tensor([1.0, float("nan")])}, "std finite and positive in every column"),
        ({"mean": torch.tensor([1.0, float("inf")])}, "mean must be finite"),
        ({"blocks": [Block(MLPVelocity(3))]}, "every block must have velocity.dim 2, got 3"),
        (
            {"blocks": [Block(MLPVelocity(2))], "mean": torch.zeros(2).double(), "std": torch.ones(2).double()},
            r"must have one dtype, got torch.float32, torch.float64; convert with .to\(dtype\)",
        ),
    ],
)
def test_bad_constructor_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        JKOFlow(2, **arguments)


def test_the_default_standardisation_has_the_dtype_of_the_blocks():
    flow = JKOFlow(2, [Block(MLPVelocity(2).double())])
    assert flow.log_prob(torch.zeros(3, 2).double()).dtype == torch.float64


@pytest.mark.parametrize("method", ["forward", "inverse", "log_prob", "trajectory"])
def test_bad_inputs(method):
    call = getattr(random_flow(), method)
    with pytest.raises(ValueError, match=r"[xz] must have shape \(B, 2\) to match flow.dim, got \(4, 3\)"):
        call(torch.zeros(4, 3).double())
    x = torch.zeros(4, 2).double()
    x[2, 1], x[3, 0] = float("nan"), float("inf")
    message = r"[xz] must be finite, got nan in row 2, column 1 \(2 such values\); drop or impute these rows"
    with pytest.raises(ValueError, match=message):
        call(x)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["tanh", "silu", "softplus(0.3333333333333333)"])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_a_saved_flow_is_the_same_flow(tmp_path, dtype, activation, context_dim):
    flow = random_flow(dtype=dtype, activation=activation, context_dim=context_dim, hidden=(7, 5), eval_num_steps=7)
    flow.save(tmp_path / "flow")
    loaded = JKOFlow.load(tmp_path / "flow")
    state, loaded_state = flow.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(loaded_state[name], state[name]) for name in state)
    assert [block.describe() for block in loaded.blocks] == [block.describe() for block in flow.blocks]
    assert (loaded.dim, loaded.eval_num_steps) == (2, 7)
    x, context = rows(flow), torch.randn(6, context_dim, dtype=dtype) if context_dim else None
    assert torch.equal(loaded.log_prob(x, context), flow.log_prob(x, context))


def test_load_from_a_run_directory(tmp_path):
    random_flow().save(tmp_path / MODEL_FILE)
    assert len(JKOFlow.load(tmp_path).blocks) == 3


def test_step_sizes_survive_infinity_included(tmp_path):
    random_flow().save(tmp_path / "flow")
    assert [block.jko_step for block in JKOFlow.load(tmp_path / "flow").blocks] == [0.1, 0.1 * 3, math.inf]


def edited(path, edit):
    """Rewrites a saved flow with its description or tensors changed."""
    tensors, description = checkpoint.load(path, "flow")
    edit(tensors, description)
    checkpoint.save(path, "flow", tensors, description)


@pytest.mark.parametrize(
    "edit",
    [
        lambda tensors, description: description.pop("blocks"),
        lambda tensors, description: description.update(blocks=3),
        lambda tensors, description: description.update(dtype="float7"),
        lambda tensors, description: description.update(dim=5),
        lambda tensors, description: description["blocks"].pop(),
        lambda tensors, description: description["blocks"][0]["velocity"].update(hidden=[3]),
        lambda tensors, description: description["blocks"][0]["velocity"].update(activation="relu"),
        lambda tensors, description: description["blocks"][0].update(novelty=1),
        lambda tensors, description: tensors.pop("standardize.mean"),
        lambda tensors, description: tensors.update(novelty=torch.zeros(1)),
    ],
)
def test_a_description_that_does_not_fit_is_one_clear_error(tmp_path, edit):
    path = tmp_path / "flow"
    random_flow().save(path)
    edited(path, edit)
    with pytest.raises(CheckpointError, match="flow does not describe a flow: "):
        JKOFlow.load(path)


def test_damaged_missing_or_other_files(tmp_path):
    path = tmp_path / "flow"
    random_flow().save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        JKOFlow.load(path)
    with pytest.raises(CheckpointError, match=rf"{MODEL_FILE}: no such file"):
        JKOFlow.load(tmp_path)
    checkpoint.save(path, "state", {}, {})
    with pytest.raises(CheckpointError, match="holds a state, expected a flow"):
        JKOFlow.load(path)


def test_values_are_looked_at_unless_told_otherwise(monkeypatch):
    flow = random_flow(context_dim=1, eval_num_steps=4)
    points, context = rows(flow), torch.zeros(6, 1).double()
    poisoned, unknown = points.clone(), context.clone()
    poisoned[2, 1], unknown[3, 0] = math.nan, math.inf
    calls = {
        "forward": lambda x, c, **options: flow(x, c, **options)[0],
        "inverse": lambda x, c, **options: flow.inverse(x, c, **options)[0],
        "carry": flow.carry,
        "log_prob": flow.log_prob,
        "trajectory": lambda x, c, **options: flow.trajectory(x, c, **options).x[0],
        "sample": lambda x, c, **options: flow.sample(6, c, **options),
        "sample_and_log_prob": lambda x, c, **options: flow.sample_and_log_prob(6, c, **options)[0],
    }
    reads, original = [], torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: reads.append(1) or original(self))
    for name, call in calls.items():
        if not name.startswith("sample"):
            with pytest.raises(ValueError, match="must be finite, got nan in row 2, column 1"):
                call(poisoned, context)
            assert call(poisoned, context, validate=False).isnan().any(), name
        with pytest.raises(ValueError, match="context must be finite, got inf in row 3"):
            call(points, unknown)
        reads.clear()
        call(points, context, validate=False)
        assert reads == [], name  # each would wait for the device
        call(points, context)
        assert reads, name
    for wrong in (points[:, :1], points.flatten()):
        with pytest.raises(ValueError, match=r"x must have shape \(B, 2\)"):
            flow.log_prob(wrong, context, validate=False)
    with pytest.raises(ValueError, match=r"context must have shape \(6, 1\)"):
        flow.log_prob(points, context[:3], validate=False)


def test_steps_may_be_a_grid():
    flow = random_flow()
    x = rows(flow)
    assert torch.equal(flow.log_prob(x, num_steps=Fixed(5)), flow.log_prob(x, num_steps=5))
    assert flow.with_blocks(flow.blocks, 5).refine(2).eval_num_steps == 3
