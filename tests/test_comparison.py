"""The fixed-budget comparison: densities of its models against closed forms, its training loop, driver and tables."""

import dataclasses
import itertools
import json
import math
import time

import numpy as np
import pytest
import torch

from fixed_budget import driver, page, record, settings, sweep, tune
from fixed_budget.cli import main
from fixed_budget.cost_to_use import cheapest, cost_to_use, exact_nll, in_double
from fixed_budget.evaluate import evaluate
from fixed_budget.methods import METHODS, OURS, PEERS, train
from fixed_budget.methods.block_flow import BlockFlow
from fixed_budget.methods.blockwise import curve
from fixed_budget.methods.ensemble import Mixture
from fixed_budget.methods.ffjord import FFJORD, _estimated, _exact
from fixed_budget.methods.flow_matching import FlowMatching, nearest, single_block
from fixed_budget.methods.local_flow_matching import chain_of_blocks, train_chain
from fixed_budget.methods.ot_flow import OTFlow, Potential
from fixed_budget.model import Model, SolverError, mean_nll, nll_of_rows
from fixed_budget.optimizers import OPTIMIZERS, with_adam
from fixed_budget.peer_training import rate_share, train_peer
from fixed_budget.problem import load
from fixed_budget.table import HEADINGS, markdown, spread
from fixed_budget.trained import Point
from fixed_budget.worker import CLOCKS, Job, run, thinned
from jkoflow.block import Block
from jkoflow.checkpoint import finite
from jkoflow.flow import JKOFlow
from jkoflow.metrics import step_converged_nll
from jkoflow.ops.grid import Fixed
from jkoflow.training import TrainConfig
from jkoflow.velocity import MLPVelocity

SMALL = TrainConfig(hidden=(16, 16), max_blocks=2, batch_size=100, validate_every=10, val_rows=100)
CORRELATION = 0.8


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A file of two correlated Gaussian columns."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "pair.npz"
    parts = {"train": 2000, "val": 300, "test": 400}
    root = np.linalg.cholesky([[1, CORRELATION], [CORRELATION, 1]])
    np.savez(path, **{name: (rng.normal(size=(n, 2)) @ root.T + 5).astype(np.float32) for name, n in parts.items()})
    return str(path)


def stepping_clock(step=0.01):
    """A clock that moves by as much every time it is asked: as many iterations on every machine."""
    ticks = itertools.count()
    return lambda: step * next(ticks)


def seeded(model, scale=0.5, seed=0):
    """The model with other parameters, of a size at which the map is far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def models():
    config = dataclasses.replace(SMALL, num_steps=12)
    for name, build in PEERS.items():
        model = build(torch.randn(400, 2), 0, config)
        # autoregressive flows are no identity as they are, and their splines do not bear large parameters
        yield pytest.param(model if name in ("maf", "nsf", "sospf") else seeded(model, 0.3), id=name)


@pytest.mark.parametrize("model", list(models()))
@torch.no_grad()
def test_densities_have_total_one(model):
    if model.levels > 1:
        side = torch.linspace(-8, 8, 81)
        weight = torch.ones(81)
    else:  # splines have kinks, and polynomials behind a soft clip have tails as heavy as Cauchy's
        u = torch.linspace(-1, 1, 403)[1:-1]
        side, weight = 8 * u / (1 - u.square()), (1 + u.square()) / (1 - u.square()).square()
    density = (-model.nll(torch.cartesian_prod(side, side))).exp().view(len(side), len(side)).double()
    step = 16 / (len(side) - 1 if model.levels > 1 else len(side) + 1)
    assert float(weight.double() @ density @ weight.double()) * step**2 == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("model", list(models()))
@torch.no_grad()
def test_decoding_undoes_encoding(model):
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    level = min(2, model.levels - 1)
    z, _ = model.encode(x, level)
    assert (z - x).abs().max() > 0.05
    torch.testing.assert_close(model.decode(z, level), x, atol=2e-3, rtol=0)


@torch.no_grad()
def test_a_linear_velocity_has_the_density_of_its_gaussian():
    A = torch.tensor([[0.4, -0.3], [0.2, -0.5]])
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(2))

    def gaussian_nll(matrix):
        root = torch.linalg.matrix_exp(matrix.double())
        return -torch.distributions.MultivariateNormal(
            torch.zeros(2).double(), precision_matrix=root.T @ root
        ).log_prob(x.double())

    block = Block(MLPVelocity(2, (8,), linear=True), 8)
    seeded(block, 0.0)
    block.velocity.linear.weight.copy_(A)
    torch.testing.assert_close(
        BlockFlow(JKOFlow(2, [block]), Fixed(8)).nll(x).double(), gaussian_nll(A), atol=1e-4, rtol=0
    )
    flow = seeded(OTFlow(2, 0, 8), 0.0)
    flow.potential.root[:, :2].copy_(torch.tensor([[0.6, 0.2], [-0.1, 0.5], [0.3, 0.3]]))
    P = flow.potential.root[:, :2].T @ flow.potential.root[:, :2]
    torch.testing.assert_close(flow.nll(x, 1).double(), gaussian_nll(-P), atol=1e-4, rtol=0)


def test_derivatives_of_the_potential_are_those_of_autograd():
    potential = seeded(Potential(3, 7).double())
    x = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    t = torch.full((5, 1), 0.3, dtype=torch.double, requires_grad=True)
    s = torch.cat([x, t], 1)
    n = potential.opening(s).exp().add(potential.opening(s).neg().exp()).log()
    m = potential.layer(n)
    value = (n + (m.exp() + (-m).exp()).log()) @ potential.weight
    value = value + 0.5 * (s @ potential.root.T).square().sum(1) + s @ potential.slope
    torch.testing.assert_close(potential(x, 0.3), value)
    gradient, rate = torch.autograd.grad(value.sum(), (x, t), create_graph=True)
    columns = [torch.autograd.grad(gradient[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(3)]
    found = potential.derivatives(x, 0.3)
    torch.testing.assert_close(found.space, gradient)
    torch.testing.assert_close(found.time, rate[:, 0])
    torch.testing.assert_close(found.laplacian, torch.stack(columns).sum(0))
    torch.testing.assert_close(potential.space_gradient(x, 0.3), gradient)


@torch.no_grad()
def test_ot_flow_measures_what_it_regularises():
    flow = seeded(OTFlow(2, 0, 8), 0.0)
    flow.potential.slope.copy_(torch.tensor([0.3, -0.4, 0.5]))  # a constant velocity: |v|^2 / 2 = 0.125
    x = torch.randn(10, 2)
    z, logdet, transport, violation = flow._forward(x, 4)
    torch.testing.assert_close(z, x - torch.tensor([0.3, -0.4]))
    torch.testing.assert_close(logdet, torch.zeros(10))
    torch.testing.assert_close(transport, torch.full((10,), 0.125))
    torch.testing.assert_close(violation, torch.full((10,), 0.375))
    assert float(flow.loss(x) - flow.nll(x).mean()) == pytest.approx((0.125 + 5 * 0.375) / 100, rel=1e-3)


def test_ffjords_estimate_averages_to_the_exact_divergence():
    velocity = seeded(MLPVelocity(2, (9, 9)))
    x, t = torch.randn(6, 2), torch.tensor(0.4)
    probes = [torch.tensor(signs).expand(6, 2) for signs in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))]
    estimates = [_estimated(velocity, probe)(t, x.clone())[1] for probe in probes]
    v, exact = _exact(velocity)(t, x)
    assert (estimates[0] - exact).abs().max() > 1e-3
    torch.testing.assert_close(torch.stack(estimates).mean(0), exact)
    torch.testing.assert_close(v, velocity(x, t))


@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_of_ffjord_are_those_of_its_loss(adjoint):
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))

    def loss(shift):
        model = seeded(FFJORD(2, 0, (6, 6), tolerance=1e-6, adjoint=adjoint).double(), 0.4)
        bias = model.fields[0].layers[0].bias
        with torch.no_grad():
            bias[0] += shift
        return model.loss(x.double()), bias

    value, bias = loss(0.0)
    value.backward()
    slope = float(loss(1e-3)[0].detach() - loss(-1e-3)[0].detach()) / 2e-3
    assert float(bias.grad[0]) == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize("method", ["end_to_end", "flow_matching", "ffjord", "ot_flow", "maf", "sospf"])
def test_training_finds_a_gaussian(source, method):
    problem = load(source)
    exact = 1 + math.log(2 * math.pi) + 0.5 * math.log(1 - CORRELATION**2)
    model = OTFlow(2, 0, 8, steps=2) if method == "ot_flow" else PEERS[method](torch.randn(400, 2), 0, SMALL)
    result = train_peer(model, problem, SMALL, 2e-2, 1.5, 0, stepping_clock())
    assert 50 < result.batches < 150
    assert result.val_nll == pytest.approx(mean_nll(model, problem.val, model.val_level, 100), abs=1e-5)
    assert result.val_nll == min(point.nll for point in result.curve)
    assert mean_nll(model, problem.test, model.val_level, 100) == pytest.approx(exact, abs=0.12)
    assert [point.batches for point in result.curve] == sorted(point.batches for point in result.curve)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_whole_record(source, method):
    found = run(Job(source, method, 0, 0.8), SMALL)
    figures = [
        "test_nll", "test_nll_stderr", "test_nll_as_trained", "val_nll", "train_seconds", "seconds_per_batch",
        "inversion_error_mean", "inversion_error_max", "mmd_median", "mmd_median_threshold", "sum_log_std",
        "evaluations_per_row", "rows_scored_per_second", "rows_sampled_per_second",
    ]  # fmt: skip
    assert {key: found[key] for key in figures if not math.isfinite(found[key])} == {}
    assert (found["data"], found["dim"], found["test_rows"], found["inversion_rows"]) == ("pair", 2, 400, 400)
    assert found["parameters"] > 0
    assert found["batches"] > 0
    assert found["nll_converged"]
    assert found["computed_with"]
    assert found["train_seconds"] > 0
    assert len(found["curve"]) >= 2
    assert json.loads(json.dumps(finite(found))) == finite(found)
    assert "learning_rate" in found["settings"] or method not in PEERS


@torch.no_grad()
def test_the_loss_of_flow_matching_between_gaussians():
    flow = seeded(single_block(2, 0, SMALL), 0.0)
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(4))
    assert float(flow.loss(x)) == pytest.approx(2 * 2, rel=0.03)  # v = 0: E |y - x|^2
    near = FlowMatching(flow.flow, 8, 0, time=0.1)  # y = e^-0.1 x + noise
    assert float(near.loss(x)) == pytest.approx(2 * ((1 - math.exp(-0.1)) ** 2 + 1 - math.exp(-0.2)), rel=0.03)
    flow.velocity.linear.weight.copy_(-torch.eye(2))
    assert float(flow.loss(x)) == pytest.approx(2 * (1 / 3 + 7 / 3), rel=0.03)  # E |t x - (1 + t) y|^2


@torch.no_grad()
def test_coupled_partners_have_the_least_distance():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(5))
    y = torch.randn(6, 2, generator=torch.Generator().manual_seed(6))
    found = float((y[nearest(x, y)] - x).square().sum())
    least = min(float((y[list(order)] - x).square().sum()) for order in itertools.permutations(range(6)))
    assert found == pytest.approx(least)
    assert sorted(nearest(x, y).tolist()) == list(range(6))
    flow = seeded(single_block(2, 0, SMALL), 0.0)
    coupled = FlowMatching(flow.flow, 8, 0, "ot")
    assert float(coupled.loss(x.repeat(20, 1))) < float(flow.loss(x.repeat(20, 1)))
    with pytest.raises(ValueError, match="coupling must be independent or ot, got 'sinkhorn'"):
        FlowMatching(flow.flow, 8, 0, "sinkhorn")
    with pytest.raises(ValueError, match=r"coupling must be independent if time is finite, got 'ot' and 0\.5"):
        FlowMatching(flow.flow, 8, 0, "ot", 0.5)


def test_a_chain_is_trained_block_by_block(source, monkeypatch):
    from fixed_budget.methods import local_flow_matching

    problem = load(source)
    model = chain_of_blocks(2, 0, SMALL, steps=4, times=(0.5,))
    monkeypatch.setattr(local_flow_matching, "LEAST_PUSHED", 150)  # and no more: this clock finds pushing slow
    result = train_chain(model, problem, SMALL, 2e-2, 3.0, 0, stepping_clock(0.02))
    assert all(sum(parameter.abs().sum() for parameter in block.parameters()) > 0 for block in model.flow.stack)
    assert result.extra["blocks"] == 2
    assert result.val_nll == pytest.approx(mean_nll(model, problem.val, 1, 100), abs=2e-3)
    assert [point.batches for point in result.curve] == sorted(point.batches for point in result.curve)
    assert [point.seconds for point in result.curve] == sorted(point.seconds for point in result.curve)
    assert result.curve[-1].batches <= result.batches
    assert result.val_nll < result.curve[0].nll
    with pytest.raises(ValueError, match=r"times must be 2 positive numbers, one per block, got \[0\.0, inf\]"):
        chain_of_blocks(2, 0, SMALL, times=(0.0,))


def test_a_grid_that_training_does_not_use_is_refined_without_going_back(source):
    model = seeded(single_block(2, 0, SMALL, steps=1), 0.8)
    result = train_peer(model, load(source), SMALL, 1e-4, 1.0, 0, stepping_clock())
    assert model.grid.cost > 1
    assert "validates with twice the steps now" in result.events[0]
    assert result.val_nll == pytest.approx(mean_nll(model, load(source).val, 1, 100), abs=1e-4)


def test_the_optimizer_is_a_setting(source, monkeypatch):
    made = []

    def counted(model, config, rate):
        made.append(model)
        return with_adam(model, config, rate)

    monkeypatch.setitem(OPTIMIZERS, "counted", counted)
    chosen = {"learning_rate": 1e-2, "optimizer": "counted"}
    for method in ("end_to_end", "local_flow_matching"):
        train(method, load(source), chosen, 0.3, 0, SMALL, clock=stepping_clock())
    assert len(made) == 3
    with pytest.raises(ValueError, match="optimizer must be one of adam, muon, soap, counted, got 'lion'"):
        train("maf", load(source), {"learning_rate": 1e-2, "optimizer": "lion"}, 0.3, 0, SMALL)


@pytest.mark.parametrize("optimizer", ["muon", "soap"])
def test_chains_of_blocks_have_optimizers_for_matrices(source, optimizer):
    problem, chosen = load(source), {"learning_rate": 1e-2, "optimizer": optimizer}
    model = PEERS["end_to_end"](problem.train, 0, SMALL)
    updated = OPTIMIZERS[optimizer](model, SMALL, 1e-2)
    losses = []
    for _ in range(60):
        loss = model.loss(problem.train)
        updated.update(loss, 1.0)
        losses.append(loss.item())
    assert min(losses[-10:]) < losses[0] - 0.005
    train("end_to_end", problem, chosen, 0.3, 0, SMALL, clock=stepping_clock())
    with pytest.raises(ValueError, match=f"optimizer '{optimizer}' is for chains of blocks, got a Autoregressive"):
        train("maf", problem, chosen, 0.3, 0, SMALL)


def test_the_cost_to_use_is_that_of_the_coarsest_right_grid(source):
    problem = load(source)
    blocks = [seeded(Block(MLPVelocity(2, (16, 16)), 1), 0.7, seed) for seed in range(2)]
    model = BlockFlow(JKOFlow(2, blocks), Fixed(4))
    level = evaluate(model, problem)["level"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exact = exact_nll(model, problem.test, level)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=0, rtol=0)
    with in_double(model):
        fine = float(nll_of_rows(model.on(Fixed(200)), problem.test.double(), 0, 1000).mean())
    assert exact == pytest.approx(fine, abs=2e-5)
    costs = [rung.grid.cost for rung in model.ladder(level)]
    assert costs[:6] == [1, 2, 3, 4, 6, 8]
    steps = cheapest(model, problem.test, level).grid.cost
    wrong = {cost: abs(mean_nll(model.on(Fixed(cost)), problem.test, 0, 1000) - fine) for cost in costs}
    assert all(wrong[cost] < 1e-3 for cost in costs if cost >= steps)
    assert wrong[costs[costs.index(steps) - 1]] >= 1e-3
    found = cost_to_use(model, problem, level)
    assert (found["evaluations_per_row"], found["used_with"]) == (2 * 4 * steps, f"{steps} steps per block")
    assert found["rows_scored_per_second"] > 0 < found["rows_sampled_per_second"]
    short = BlockFlow(model.flow, Fixed(1))
    short.most = 2  # its levels end before they stand still
    assert set(cost_to_use(short, problem, 1).values()) == {None}


def test_tables_of_records_without_costs_have_empty_cells():
    results = json.loads(json.dumps(record.read(page.RECORD)))
    costs = ("evaluations_per_row", "rows_scored_per_second", "rows_sampled_per_second")
    for entry in results["runs"]:
        for key in costs:
            entry.pop(key, None)

    def ours(text):
        return [line for line in text.splitlines() if line.startswith("| jkoflow") and line.count("|") > len(HEADINGS)]

    assert all(line.endswith("|  |  |  |") for line in ours(markdown(results)))
    for number, entry in enumerate(results["runs"]):
        entry.update(evaluations_per_row=64.0, rows_scored_per_second=41234.5, rows_sampled_per_second=None)
        entry["rate_tuned_at"] = 10.0 * (1 + number % 2)
    text = markdown(results)
    assert ours(text)
    assert all(line.endswith("| 64 | 41,200 | not reached |") for line in ours(text))
    assert "tuned at 10 and 20 s" in text


def test_end_to_end_has_the_blocks_of_block_wise_training(source):
    config = dataclasses.replace(SMALL, gain_tolerance=-math.inf, movement_tolerance=0.0)
    ours = run(Job(source, OURS, 0, 2.0), config)
    assert ours["blocks"] == config.max_blocks
    joint = PEERS["end_to_end"](torch.randn(400, 2), 0, config)
    assert sum(parameter.numel() for parameter in joint.parameters()) == ours["parameters"]


def test_the_nll_is_refined_until_it_stands_still(source):
    problem = load(source)
    blocks = [seeded(Block(MLPVelocity(2, (16, 16)), 1), 0.7, seed) for seed in range(2)]
    flow = JKOFlow(2, blocks)
    found = evaluate(BlockFlow(flow, Fixed(1)), problem)
    expected = step_converged_nll(flow, problem.test, 1)
    assert expected.num_steps > 2
    assert found["computed_with"] == f"{expected.num_steps} steps per block"
    assert found["test_nll"] == pytest.approx(expected.nll, abs=1e-5)
    assert found["test_nll_stderr"] == pytest.approx(expected.stderr, rel=1e-4)
    assert abs(found["test_nll"] - found["test_nll_as_trained"]) > 1e-3
    short = BlockFlow(flow, Fixed(256))
    assert (short.levels, evaluate(short, problem)["nll_converged"]) == (1, True)


class Moody(Model):
    """A model that breaks at one of its losses."""

    def __init__(self, breaks):
        super().__init__()
        self.shift, self.breaks, self.calls = torch.nn.Parameter(torch.zeros(2)), breaks, 0

    def loss(self, x):
        self.calls += 1
        if self.calls == 7:
            return self.breaks(self.shift)
        return self.nll(x).mean()

    def encode(self, x, level=0):
        return x - self.shift, x.new_zeros(len(x))


def give_up(shift):
    raise SolverError("dt is too small")


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [(give_up, "dt is too small"), (lambda shift: (shift * math.nan).sum(), "a gradient was not finite")],
)
def test_training_goes_back_when_something_breaks(source, breaks, reason):
    result = train_peer(Moody(breaks), load(source), SMALL, 1e-2, 1.0, 0, stepping_clock())
    assert result.events == [f"batch 6: {reason}"]
    assert result.batches > 20
    assert math.isfinite(result.val_nll)


def test_the_guard_takes_twice_the_steps(source):
    problem = load(source)
    model = PEERS["end_to_end"](torch.randn(400, 2), 0, dataclasses.replace(SMALL, num_steps=1))
    seeded(model, 0.8)
    result = train_peer(model, problem, SMALL, 1e-4, 1.0, 0, stepping_clock())
    assert 1 < model.grid.cost <= SMALL.max_num_steps
    assert "trains with twice the steps now" in result.events[0]
    fine = PEERS["end_to_end"](torch.randn(400, 2), 0, dataclasses.replace(SMALL, num_steps=8))
    assert train_peer(fine, problem, SMALL, 1e-3, 0.5, 0, stepping_clock()).events == []


def test_grids_are_refined_up_to_a_bound():
    flow = BlockFlow(JKOFlow(2, [Block(MLPVelocity(2, (8,)))]), Fixed(3), finest_training=12)
    assert [flow.refine() for _ in range(3)] == [True, True, False]
    assert (flow.grid, flow.levels) == (Fixed(12), 6)  # 12, 24, ... 384 steps
    assert [flow.describe_level(level) for level in (0, 5)] == ["12 steps per block", "384 steps per block"]
    other = OTFlow(2, 0, 8, steps=5)
    assert (other.refine(), other.grid, other.levels) == (False, Fixed(5), 6)  # 5, 10, ... 160 of at most 256 steps


def test_the_learning_rate_is_a_function_of_the_time():
    assert rate_share(0.01) == pytest.approx(0.5, rel=1e-2)  # half of the warm-up
    assert rate_share(0.02) == pytest.approx(1.0, rel=1e-2)
    assert rate_share(0.5) == pytest.approx(0.01 + 0.99 / 2)
    assert rate_share(1.0) == rate_share(1.3) == pytest.approx(0.01)
    assert rate_share(0.0) > 0


@pytest.mark.parametrize("method", [OURS, "ot_flow"])
def test_all_decisions_about_time_read_one_clock(source, method):
    """With a clock that moves when it is asked, nothing depends on how fast the machine is."""
    problem, chosen = load(source), {} if method == OURS else {"learning_rate": 1e-2}
    first, second = (train(method, problem, chosen, 1.5, 0, SMALL, clock=stepping_clock()) for _ in range(2))
    assert first.batches == second.batches > 20
    assert (first.seconds, first.val_nll, first.curve) == (second.seconds, second.val_nll, second.curve)


def test_one_thread_is_measured_by_its_time_on_the_processor(source):
    before = time.monotonic, time.perf_counter
    assert CLOCKS[Job(source, "maf", 0, 1.0).clock] is time.process_time
    assert CLOCKS[Job(source, "maf", 0, 1.0, threads=2).clock] is time.monotonic
    assert run(Job(source, "maf", 0, 0.1, test=False), SMALL)["clock"] == "processor"
    assert (time.monotonic, time.perf_counter) == before


def test_the_history_as_a_curve():
    history = [
        {"event": "validation", "iteration": 0, "nll": 2.0},
        {"event": "iteration", "iteration": 0, "seconds": 0.5},
        {"event": "validation", "iteration": 10, "nll": 1.5},
        {"event": "block", "iterations": 20, "seconds": 1.0, "val_nll": 1.4},
        {"event": "validation", "iteration": 0, "nll": 1.4},
        {"event": "iteration", "iteration": 5, "seconds": 1.3},
        {"event": "guard", "block": 1, "iteration": 5},
        {"event": "validation", "iteration": 5, "nll": 1.3},
        {"event": "block", "iterations": 8, "seconds": 0.5, "val_nll": 1.2},
    ]
    assert curve(history) == [
        Point(0.0, 0, 2.0), Point(0.5, 10, 1.5), Point(1.0, 20, 1.4), Point(1.0, 20, 1.4), Point(1.3, 25, 1.3),
        Point(1.5, 28, 1.2),
    ]  # fmt: skip


def test_thinning_keeps_the_ends():
    points = [Point(float(i), i, 0.0) for i in range(100)]
    assert len(thinned(points, 40)) == 40
    assert [thinned(points, 40)[i] for i in (0, -1)] == [points[0], points[-1]]
    assert thinned(points[:5], 40) == points[:5]


def test_unknown_methods_are_named(source):
    with pytest.raises(ValueError, match=f"method must be one of {', '.join(METHODS)}, got 'glow'"):
        train("glow", load(source), {}, 1.0, 0, SMALL)


def test_settings_fit_their_methods():
    for method in METHODS:
        chosen = settings.of(method, "no such data", 10.0)
        assert settings.tuned_at(method, "no such data", 10.0) is None
        assert ("learning_rate" in chosen) == (method in PEERS)
        if method in PEERS:
            for name in ("learning_rate", "optimizer", "batch_size"):
                chosen.pop(name, None)
            PEERS[method](torch.randn(400, 3), 0, SMALL, **chosen)
            assert settings.candidates(method)
    widths = [settings.of("end_to_end", "no such data", budget)["width"] for budget in (5.0, 50.0, 100.0, 1000.0)]
    assert widths == [128, 192, 224, 256], "of the budget whose ratio is nearest to one"
    for method, entries in settings.rates().items():
        for data, budgets in entries.items():
            for seconds, entry in budgets.items():
                assert entry["learning_rate"] == tune.best_rate(entry["val_nll"])
                assert settings.of(method, data, float(seconds))["learning_rate"] == entry["learning_rate"]


def test_rates_of_several_budgets_stand_side_by_side(source, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "RATES", tmp_path / "rates.json")
    monkeypatch.setattr(settings, "candidates", lambda method: [1e-3, 1e-2])

    def run_here(jobs, folder, slots):
        folder.mkdir()
        for job in jobs:
            driver.place(job, folder).write_text(json.dumps(run(job, SMALL)))
        return []

    monkeypatch.setattr(tune, "run_missing", run_here)
    found = tune.tune([source], ["maf"], 0.2, 1, tmp_path / "out", 1)
    assert set(found["maf"]["pair"]["0.2"]["val_nll"]) == {"0.001", "0.01"}
    tune.keep(found)
    tune.keep({"maf": {"pair": {"20": {"learning_rate": 0.5, "val_nll": {"0.5": 1.0}}}}})
    assert set(settings.rates()["maf"]["pair"]) == {"0.2", "20"}
    assert [settings.tuned_at("maf", "pair", budget) for budget in (0.1, 1.9, 2.1, 100)] == [0.2, 0.2, 20, 20]
    assert settings.of("maf", "pair", 9.0)["learning_rate"] == 0.5
    chosen = run(Job(source, "maf", 0, 0.3, test=False), SMALL)
    assert chosen["rate_tuned_at"] == 0.2
    assert chosen["settings"]["learning_rate"] == found["maf"]["pair"]["0.2"]["learning_rate"]
    assert "rate_tuned_at" not in run(Job(source, "maf", 0, 0.1, learning_rate=0.1, test=False), SMALL)


def test_the_best_rate_is_that_of_the_smallest_nll():
    assert tune.best_rate({"0.1": None, "0.01": 1.5, "0.001": 1.2}) == 0.001


def test_the_first_seed_of_everything_comes_first():
    order = [(job.seed, job.source, job.method) for job in driver.jobs(["a", "b"], ["maf", "nsf"], 2, 1.0, 1)]
    assert order[:4] == [(0, "a", "maf"), (0, "a", "nsf"), (0, "b", "maf"), (0, "b", "nsf")]
    assert [seed for seed, _, _ in order] == [0] * 4 + [1] * 4


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {4, 5, 6, 7})
    assert driver._core_groups(2, 2) == [{4, 5}, {6, 7}]
    assert driver._core_groups(1, 2) == [None]
    with pytest.raises(ValueError, match="3 jobs of 2 threads need 6 cores, there are 4"):
        driver._core_groups(3, 2)


def test_the_driver_runs_what_is_missing_and_the_table_shows_it(source, tmp_path, capsys):
    arguments = ["run", source, "--methods", "maf", "--seeds", "1", "--budget", "0.3", "--out", str(tmp_path / "out")]
    main(arguments)
    output = capsys.readouterr().out
    assert "1/1 pair maf seed 0: NLL" in output
    path = tmp_path / "out/pair-maf-0.json"
    before = path.read_bytes()
    main(arguments)
    assert "1 of 1 runs are there already" in capsys.readouterr().out
    assert path.read_bytes() == before
    with pytest.raises(SystemExit, match=r"was run with budget and threads \(0.3, 1\), not \(9.0, 1\)"):
        main([*arguments[:-3], "9", *arguments[-2:]])
    main(["table", str(tmp_path / "out"), "--print"])
    assert "### pair" in (table := capsys.readouterr().out)
    assert "MAF (zuko)" in table
    record.write(record.collect(tmp_path / "out"), tmp_path / "all.json")
    assert markdown(record.read(tmp_path / "all.json")) == table


def test_a_run_that_fails_is_told(tmp_path, capsys, monkeypatch):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit('no such file')")
    monkeypatch.setattr(driver, "SCRIPT", script)
    with pytest.raises(SystemExit, match="nothing maf seed 0: no such file"):
        main(["run", "nothing.npz", "--methods", "maf", "--seeds", "1", "--out", str(tmp_path / "out")])
    assert "1/1 nothing maf seed 0: no such file" in capsys.readouterr().out
    assert list((tmp_path / "out").iterdir()) == []


def test_means_and_spreads():
    assert spread([1.0, 2.0, 3.0]) == "2.000 ± 1.000"
    assert spread([0.5], ".1f", 2.0) == "1.0"
    assert spread([1.0, None]) == "not finite in 1 of 2"


def test_the_page_holds_the_record():
    results = record.read(page.RECORD)
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.generated(results) in text
    assert page.replaced(text, results) == text
    assert page.RECORD.stat().st_size < 500_000
    for path in page.FIGURES.values():
        assert path.is_file()
    with pytest.raises(ValueError, match="must have the lines"):
        page.replaced("nothing", results)


def test_the_sweep_runs_and_tells_gains_against_the_default(source, tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    chosen = {"default": {}, "narrow": {"hidden": [8]}, "pair": {"ensemble": 2}}
    monkeypatch.setattr(sweep, "variations", lambda: chosen)
    monkeypatch.setattr(sweep, "RECORD", tmp_path / "sweep.json")
    sweep.run([source], 1, 2.0, folder, 1)
    sweep.keep(folder)
    found = record.read(tmp_path / "sweep.json")
    nll = {run["label"]: run["val_nll"] for run in found["runs"]}
    assert set(nll) == set(chosen)
    lines = sweep.tables(found).splitlines()
    (base,) = (line for line in lines if line.startswith("| **default**"))
    (narrow,) = (line for line in lines if line.startswith("| narrow"))
    assert f"{nll['default']:.3f}" in base
    assert f"| {nll['narrow'] - nll['default']:+.3f} |" in narrow
    assert "`hidden = [8]`" in narrow
    sweep.run([source], 1, 1.0, tmp_path / "short", 1, ["default", "narrow"])
    sweep.keep(tmp_path / "short")
    both = record.read(tmp_path / "sweep.json")
    assert [run["budget"] for run in both["runs"]] == [1.0] * 2 + [2.0] * 3
    assert len({run["environment"] for run in both["runs"]}) <= len(both["environments"]) <= 2
    assert sweep.tables(both).endswith(sweep.tables(found))
    with pytest.raises(ValueError, match=r"labels must be of default, narrow, pair, got wide"):
        sweep.run([source], 1, 1.0, tmp_path / "short", 1, ["wide"])


def test_flows_of_peers_are_not_mixed(source):
    with pytest.raises(ValueError, match="members must be 1 for maf, got 2"):
        train("maf", load(source), {}, 1.0, 0, SMALL, members=2)


def test_the_density_of_a_mixture_is_the_mean():
    class Shift(Model):
        def __init__(self, by):
            super().__init__()
            self.by = by

        def encode(self, x, level=0):
            return x - self.by, x.new_zeros(len(x))

    members = [Shift(0.0), Shift(1.0)]
    x = torch.randn(20, 2)
    expected = torch.stack([(-member.nll(x)).exp() for member in members]).mean(0)
    torch.testing.assert_close((-Mixture(members).nll(x)).exp(), expected)


def test_variations_are_settings_and_their_page_holds_the_record():
    for changes in sweep.variations().values():
        dataclasses.replace(TrainConfig(), **{name: value for name, value in changes.items() if name != "ensemble"})
    text = sweep.PAGE.read_text(encoding="utf-8")
    assert sweep.replaced(text, record.read(sweep.RECORD)) == text
    with pytest.raises(ValueError, match="must have the lines"):
        sweep.replaced("nothing", record.read(sweep.RECORD))


def test_figures_have_a_panel_for_every_data_set():
    from fixed_budget.figures import curves

    results = record.read(page.RECORD)
    names = list(dict.fromkeys(f"{entry['data']}, {entry['budget']:g} s" for entry in results["runs"]))
    for against in ("seconds", "batches"):
        figure = curves(results, against)
        assert [ax.get_title(loc="left") for ax in figure.axes] == names
