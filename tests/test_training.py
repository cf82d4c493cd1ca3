"""Training, its guard and its schedule on problems whose answers are known."""

import dataclasses
import gc
import itertools
import json
import math

import numpy as np
import pytest
import torch

import jkoflow
from jkoflow import Block, JKOFlow, MLPVelocity, TrainConfig, checkpoint, discrete, metrics, train
from jkoflow.checkpoint import finite
from jkoflow.data import DataError, Dataset, split_rows
from jkoflow.links import Link
from jkoflow.ops import jko_terms
from jkoflow.ops.grid import Fixed, as_grid
from jkoflow.training.fit import Fit, FitHooks
from jkoflow.training.guard import GuardReading, read_guard
from jkoflow.training.optimizer.rates import DEFAULT_RATES
from jkoflow.training.progress import Silent
from jkoflow.training.pushed import Batches, PushedSamples, push_rows
from jkoflow.training.recipe import recipe_of_block
from jkoflow.training.state import FitCounters, TrainingError
from jkoflow.training.world import World

TINY = TrainConfig(
    initial_map="none",
    first_layer_scale=1.0,
    hidden=(8, 8),
    num_steps=3,
    max_blocks=2,
    iterations_per_block=30,
    batch_size=100,
    validate_every=10,
    guard_every=5,
)


class Recorder(Silent):
    """Keeps what a run tells."""

    def __init__(self):
        self.starts, self.updates, self.ends, self.messages = [], [], [], []

    def start_block(self, block, iterations):
        self.starts.append((block, iterations))

    def update(self, block, iteration, terms):
        self.updates.append((block, iteration, dict(terms)))

    def end_block(self, block, summary):
        self.ends.append(dict(summary))

    def message(self, text):
        self.messages.append(text)


def correlated(n, seed=0):
    """Rows of a correlated Gaussian in odd units, and their exact log-densities (n,)."""
    factor = torch.tensor([[30.0, 0.0], [0.4, 0.05]], dtype=torch.float64)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    log_prob = -0.5 * noise.square().sum(1) - math.log(2 * math.pi) - torch.linalg.slogdet(factor).logabsdet
    return (noise @ factor.T + torch.tensor([1000.0, -2.0])).float(), log_prob.float()


def history(run_dir, event=None):
    lines = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    return [line for line in lines if event is None or line["event"] == event]


# ---------------------------------------------------------------------------------------------- what training reaches


def test_gaussian_is_learned_to_within_three_hundredths_of_a_nat(tmp_path):
    rows, _ = correlated(12_000)
    config = TrainConfig(
        initial_map="none", hidden=(16, 16), max_blocks=3, iterations_per_block=250, batch_size=500, learning_rate=1e-2
    )
    flow = train(rows, config, run_dir=tmp_path / "run")
    fresh, exact = correlated(5000, seed=1)
    with torch.no_grad():
        divergence = (exact - flow.log_prob(fresh)).mean().item()  # KL of the flow from the truth
    assert -0.01 < divergence < 0.03
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    entropy = 1 + math.log(2 * math.pi) + math.log(30 * 0.05)
    assert result["test_nll_data_units"] == pytest.approx(entropy, abs=0.03 + 4 * result["test_nll_stderr"])
    assert result["test_nll_converged"]
    assert result["inversion_error_mean"] < 1e-3


@pytest.mark.parametrize(
    ("optimizer", "given", "peak"),
    [("adam", None, 2.5e-3), ("adam", 0.02, 0.02), ("muon", None, DEFAULT_RATES["muon"].matrices), ("muon", 0.1, 0.1)],
)
def test_learning_rate_is_the_given_one_or_that_of_the_optimizer(tmp_path, optimizer, given, peak):
    config = dataclasses.replace(TINY, max_blocks=1, optimizer=optimizer, learning_rate=given, warmup=0)
    train(torch.randn(400, 40), config, run_dir=tmp_path)
    assert history(tmp_path, "iteration")[0]["learning_rate"] == pytest.approx(peak)


def test_one_dimension_works():
    rows = torch.cat([torch.randn(1500, 1) - 3, torch.randn(1500, 1) + 3])
    flow = train(rows, dataclasses.replace(TINY, iterations_per_block=200, learning_rate=1e-2))
    grid = torch.linspace(-9, 9, 2001).unsqueeze(1)
    with torch.no_grad():
        density = flow.log_prob(grid).exp().squeeze()
    assert torch.trapezoid(density, grid.squeeze()).item() == pytest.approx(1, abs=1e-3)
    assert density[1000] < 0.5 * density.max()  # two modes, which no Gaussian has


def test_numpy_tensor_and_dataset_give_the_same_flow():
    rows = torch.randn(500, 2)
    flows = [train(data, TINY) for data in (rows, rows.double().numpy(), split_rows(rows))]
    for flow in flows[1:]:
        for one, other in zip(flows[0].state_dict().values(), flow.state_dict().values(), strict=True):
            assert torch.equal(one, other)


def test_seed_decides_everything():
    rows = split_rows(torch.randn(500, 2))
    first, same, other = (train(rows, dataclasses.replace(TINY, seed=seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_global_random_state_is_left_alone():
    rows = split_rows(torch.randn(500, 2))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(rows, TINY)
    assert torch.equal(torch.rand(3), expected)


def test_a_block_is_never_worse_than_its_absence():
    """A learning rate beyond all reason: the validation keeps the parameters that do nothing."""
    rows = split_rows(torch.randn(600, 2))
    config = dataclasses.replace(TINY, learning_rate=100.0, warmup=0, max_blocks=1)
    recorder = Recorder()
    flow = train(rows, config, progress=recorder)
    identity = JKOFlow(2, mean=flow.standardize.mean, std=flow.standardize.std)
    assert metrics.mean_nll(flow, rows.val)[0] <= metrics.mean_nll(identity, rows.val)[0] + 1e-6
    assert recorder.ends[0]["movement"] == 0


# ------------------------------------------------------------------------------------------------ the chain of blocks


def test_step_sizes_grow_and_the_last_block_is_free(tmp_path):
    config = dataclasses.replace(
        TINY, max_blocks=4, jko_step=0.5, jko_step_growth=2, jko_step_max=1.5, gain_tolerance=-9.0,
        movement_tolerance=0.0,
    )  # fmt: skip
    recorder = Recorder()
    flow = train(torch.randn(500, 2).exp(), config, run_dir=tmp_path / "run", progress=recorder)
    assert [end["step_size"] for end in recorder.ends] == [0.5, 1.0, 1.5, None]
    assert [block.jko_step for block in flow.blocks] == [0.5, 1.0, 1.5, math.inf]
    recorded = history(tmp_path / "run", "block")
    assert [line.pop("global_step") for line in recorded] == [30 * count for count in range(1, 5)]
    assert recorded == recorder.ends
    iterations = history(tmp_path / "run", "iteration")
    assert all(line["movement"] == 0 for line in iterations if line["block"] == 3)
    assert any(line["movement"] > 0 for line in iterations if line["block"] < 3)


def test_chain_ends_early_when_blocks_gain_nothing():
    config = dataclasses.replace(TINY, max_blocks=6, gain_tolerance=100.0)
    recorder = Recorder()
    train(torch.randn(500, 2), config, progress=recorder)
    assert [end["step_size"] for end in recorder.ends] == [config.jko_step, None]  # then the free block
    recorder = Recorder()
    train(torch.randn(500, 2), dataclasses.replace(config, free_block=False), progress=recorder)
    assert [end["step_size"] for end in recorder.ends] == [config.jko_step]


def test_without_a_free_block_every_block_has_a_jko_step():
    config = dataclasses.replace(TINY, free_block=False, gain_tolerance=-9.0, movement_tolerance=0.0)
    recorder = Recorder()
    train(torch.randn(500, 2), config, progress=recorder)
    assert [end["step_size"] for end in recorder.ends] == [0.5, 0.75]


def plain(rows):
    """The rows split into the parts of a dataset, with columns that stay as they are."""
    return dataclasses.replace(split_rows(rows), links=(Link(),) * rows.shape[1])


def test_blocks_start_from_the_last_ones_parameters(tmp_path):
    """With no iterations to speak of, the second block's first loss is that of the first block's parameters."""
    config = dataclasses.replace(TINY, gain_tolerance=-9.0, movement_tolerance=0.0, free_block=False)
    rows = plain(torch.randn(800, 2).exp())
    flow = train(rows, config, run_dir=tmp_path / "run")
    samples = pushed_by(flow, rows, config, blocks=1)
    warm = Block(flow.blocks[0].velocity, flow.blocks[0].num_steps, jko_step=flow.blocks[1].jko_step)
    batch = Batches(samples.train, config.batch_size, config.seed, 1)(0)
    first = next(line for line in history(tmp_path / "run", "iteration") if line["block"] == 1)
    assert first["iteration"] == 0
    assert first["loss"] == pytest.approx(warm.jko_loss(batch).total.item(), rel=1e-5)
    assert history(tmp_path / "run", "iteration")[0]["divergence"] == 0  # the first one starts as the identity


def pushed_by(flow, rows, config, blocks):
    with torch.no_grad():
        train_rows, val_rows = flow.standardize(rows.train)[0], flow.standardize(rows.val[: config.val_rows])[0]
    samples = PushedSamples(train_rows, val_rows, torch.zeros(len(val_rows)))
    for block in list(flow.blocks)[:blocks]:
        samples.push(block)
    return samples


def test_records_of_a_block_are_those_of_the_flow():
    rows = plain(torch.randn(800, 2).exp())
    recorder = Recorder()
    flow = train(rows, TINY, progress=recorder)
    samples = pushed_by(flow, rows, TINY, blocks=2)
    val_nll = -flow.log_prob(rows.val, num_steps=6).mean().item() - flow.standardize.std.log().sum().item()
    assert recorder.ends[-1]["val_nll"] == pytest.approx(val_nll, abs=1e-5)
    assert samples.val_nll() == pytest.approx(val_nll, abs=1e-5)
    stages = flow.trajectory(rows.train, num_steps=6).x
    for end, before, after in zip(recorder.ends, stages[:-1], stages[1:], strict=True):
        assert end["movement"] == pytest.approx(metrics.movement(before, after).value, rel=1e-5)


def test_memory_does_not_grow_with_the_blocks():
    rows = split_rows(torch.randn(1237, 2).exp())

    class Census(Silent):
        def __init__(self):
            self.counts = []

        def end_block(self, block, summary):
            gc.collect()
            held = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape[:1] == rows.train.shape[:1]]
            assert all(tensor.grad_fn is None for tensor in held)
            self.counts.append(len(held))

    census = Census()
    train(rows, dataclasses.replace(TINY, max_blocks=4, gain_tolerance=-9.0, movement_tolerance=0.0), progress=census)
    assert len(census.counts) == 4
    assert len(set(census.counts)) == 1


# ---------------------------------------------------------------------------------------------------------- the guard


def shifting(rate, num_steps=1, method="euler"):
    """A block with the velocity v(x) = rate x."""
    velocity = MLPVelocity(2, hidden=(4,), linear=True)
    block = Block(velocity, num_steps, method)
    block.velocity.scale_output(0.0)
    with torch.no_grad():
        velocity.linear.weight.copy_(rate * torch.eye(2))
    return block


def test_guard_reads_the_known_error_of_euler():
    x = torch.randn(100, 2)
    reading = read_guard(shifting(0.4), x)
    norm = x.square().sum(1)
    assert reading.nll_difference == pytest.approx(0.5 * (1.2**4 - 1.4**2) * norm.mean().item(), rel=1e-4)
    assert reading.round_trip == pytest.approx(0.16 * norm.sqrt().mean().item(), rel=1e-4)
    fine = read_guard(shifting(0.4, num_steps=3, method="rk4"), x)
    assert fine.nll_difference < 1e-3 * reading.nll_difference


@pytest.mark.parametrize(
    ("reading", "within"),
    [
        (GuardReading(0.01, 0.01), True),
        (GuardReading(0.2, 0.01), False),
        (GuardReading(0.01, 0.2), False),
        (GuardReading(math.nan, 0.01), False),
        (GuardReading(0.01, math.inf), False),
    ],
)
def test_guard_tolerances(reading, within):
    assert reading.within(0.1, 0.1) is within


EXPLOITED = TrainConfig(
    initial_map="none",
    hidden=(32, 32),
    max_blocks=1,
    num_steps=1,
    iterations_per_block=700,
    batch_size=250,
    learning_rate=0.03,
)


def gap(tmp_path, rows, config):
    """The NLL that training claims at its end, and the step-converged one on the same rows, in standardised units."""
    flow = train(rows, config, run_dir=tmp_path)
    (end,) = history(tmp_path, "block")
    reported = min(line["loss"] for line in history(tmp_path, "iteration")) + math.log(2 * math.pi)
    log_scale = flow.standardize.std.log().sum().item()
    return reported, end["val_nll"], metrics.step_converged_nll(flow, rows.val).nll - log_scale


def test_guard_keeps_the_likelihood_true_where_training_without_it_fools_itself(tmp_path):
    """One Runge-Kutta step per block and a free velocity: the optimiser learns to fool the integrator."""
    rows = split_rows(correlated(4000)[0])
    entropy = 1 + math.log(2 * math.pi) + 0.5 * math.log(1 - 0.4**2 / (0.4**2 + 0.05**2))  # on standardised columns
    reported, val_nll, true = gap(tmp_path / "off", rows, dataclasses.replace(EXPLOITED, guard=False))
    assert reported < entropy - 10 < true - 10  # no density can be that good
    reported, val_nll, true = gap(tmp_path / "on", rows, EXPLOITED)
    assert reported > entropy - 0.5  # noise of one batch
    assert val_nll == pytest.approx(true, abs=0.01)
    assert true < entropy + 0.3
    events = history(tmp_path / "on", "guard")
    assert len(events) == json.loads((tmp_path / "on" / "metrics.json").read_text())["guard_events"] > 0
    steps = [1, *(event["num_steps"] for event in events)]
    changes = {"raised": Fixed.raised, "lowered": Fixed.lowered}
    assert [event["action"] for event in events].count("raised") > 0
    for event, (before, after) in zip(events, itertools.pairwise(steps), strict=True):
        assert Fixed(after) == changes[event["action"]](Fixed(before))
        worst = max(event["nll_difference"] or 9, event["round_trip"] or 9)
        tolerance = min(EXPLOITED.guard_nll, EXPLOITED.guard_round_trip)
        assert worst > tolerance if event["action"] == "raised" else worst < tolerance
    assert history(tmp_path / "off", "guard") == []


def test_guard_at_its_limit_ends_the_block_with_good_parameters(tmp_path):
    rows = split_rows(correlated(4000)[0])
    config = dataclasses.replace(EXPLOITED, max_num_steps=1)
    _, val_nll, true = gap(tmp_path, rows, config)
    (event,) = history(tmp_path, "guard")
    (end,) = history(tmp_path, "block")
    assert event["action"] == "stopped"
    assert end["iterations"] == event["iteration"] < config.iterations_per_block
    assert val_nll == pytest.approx(true, abs=0.1)  # within the guard's tolerance, one step still


def test_rollback_restores_parameters_and_optimiser_state():
    fit = make_fit(num_steps=1, guard_nll=1e-6, guard_every=1000)
    fit.good = good = fit.optimizer.state()
    for _ in range(3):
        fit.iterate()
    assert not torch.equal(fit.optimizer.parameters, good.parameters)
    fit.look(last=True)
    assert fit.block.num_steps == 2
    assert fit.optimizer.updates == good.updates == 0
    now = fit.optimizer.state()
    assert torch.equal(now.parameters, good.parameters)
    assert now.memory.keys() == good.memory.keys()
    assert all(torch.equal(now.memory[name], good.memory[name]) for name in good.memory)
    assert torch.equal(fit.block.velocity.layers[0].weight.reshape(-1), good.parameters[: 8 * 3])


def test_the_deadline_moves_when_the_guard_makes_a_block_slower():
    """Twice the steps make the push and the evaluation slower, not the iterations alone."""
    fit = make_fit(seconds=lambda measured, grid: 100.0 - grid.cost, guard_nll=1e-9, num_steps=1)
    fit.counters.iterations = 0
    fit.prepare()
    fit._plan()
    before = fit.counters.deadline
    fit.iterate()
    fit.look(last=True)
    counters, samples = fit.counters, fit.samples
    push = 2 * (counters.row_carry * len(samples.train) + counters.row_step * len(samples.val))
    assert min(counters.row_step, counters.row_carry) > 0
    assert fit.counters.deadline == pytest.approx(before - 1 - push)


def test_the_guard_takes_steps_back_that_are_no_longer_needed():
    recorded = []
    fit = make_fit(recorded, num_steps=1, guard_nll=0.02)
    fit.block.num_steps = 4
    seen = []
    for iteration in range(0, 400, 25):
        fit.counters.iteration = iteration
        fit.look()
        seen.append(fit.block.num_steps)
    assert seen[:4] == [4] * 4
    assert seen[4:12] == [3] * 4 + [2] * 4, "a hundred iterations after the last change"
    assert seen[12:] == [1] * 4, "and never below what training begins with"
    assert [event["action"] for event in recorded if event["event"] == "guard"] == ["lowered"] * 3
    fit.block.velocity.scale_output(20.0)
    fit.look()
    assert fit.block.num_steps == 2
    fit.block.velocity.scale_output(1 / 20)
    fit.counters.iteration = 600
    fit.look()
    assert fit.block.num_steps == 2, "what was exploited is not tried again so soon"
    fit.counters.iteration = 800
    fit.look()
    assert fit.block.num_steps == 1, "but four times as many iterations later"
    fit.counters.relax_after = 100
    fit.block.velocity.scale_output(400.0)
    while not read_guard(fit.block, fit.samples.val).within(0.02, 0.02):
        fit.block.grid = fit.block.grid.raised()
    needed, fit.counters.iteration = fit.block.num_steps, 1000
    fit.look()
    assert fit.block.num_steps == needed > 1, "fewer would not do"


def test_the_guard_allows_many_columns_more():
    """Independent columns under a linear velocity: the error of one step is the same in each, so it adds up."""
    acted = []
    for dim in (10, 40):
        velocity = MLPVelocity(dim, hidden=(8,), linear=True)
        block = Block(velocity, 1, jko_step=0.5)
        block.velocity.scale_output(0.0)
        with torch.no_grad():
            velocity.linear.weight.copy_(-0.8 * torch.eye(dim))
        x = torch.randn(400, dim)
        difference = read_guard(block, x).nll_difference
        samples = PushedSamples(x, x, torch.zeros(400))
        for factor in (0.9, 1.1):  # of the tolerance that the block just meets
            config = dataclasses.replace(TINY, guard_nll=factor * difference * 10 / dim, guard_round_trip=1e9)
            hooks = FitHooks(World(), lambda event: None, lambda fit: None, None, Silent())
            counters = FitCounters(iterations=30, iteration=5)
            block = Block(velocity, 1, jko_step=0.5)
            fit = Fit(0, block, samples, config, recipe_of_block(block, config, dim), hooks, counters)
            fit.look(last=True)
            acted.append(fit.block.num_steps > 1)
    assert acted == [True, False, True, False]


def test_non_finite_parameters_trigger_the_guard():
    fit = make_fit()
    fit.good = good = fit.optimizer.state()
    fit.iterate()
    fit.optimizer.parameters.fill_(math.nan)
    fit.look(last=True)
    assert fit.block.num_steps == 4
    assert torch.equal(fit.optimizer.parameters, good.parameters)


def test_without_the_guard_non_finite_parameters_are_an_error():
    fit = make_fit(guard=False)
    fit.optimizer.parameters.fill_(math.nan)
    with pytest.raises(TrainingError, match="no longer finite after 0 iterations; set guard = true"):
        fit.look(last=True)


@pytest.mark.parametrize(("strength", "actions"), [(4.0, ["damped", "damped"]), (1e4, ["damped"] * 4 + ["reset"])])
def test_a_velocity_that_overshoots_in_the_next_block_is_shortened(strength, actions):
    """A warm start on which the integrator fails is halved until it does not; the grid stays as it is."""
    recorded = []
    fit = make_fit(recorded)
    with torch.no_grad():
        for parameter in fit.block.velocity.layers[-1].parameters():
            parameter.zero_()
        fit.block.velocity.linear.weight.copy_(strength * torch.eye(2))
    fit.good = fit.optimizer.state()  # as a fit begins with them
    fit.look()
    assert [event["action"] for event in recorded if event["event"] == "guard"] == actions
    assert fit.block.num_steps == 3
    left = 0 if "reset" in actions else strength * 0.5 ** len(actions)
    torch.testing.assert_close(fit.block.velocity.linear.weight.detach(), left * torch.eye(2))
    assert bool((fit.block.velocity.layers[0].weight != 0).any())
    assert torch.equal(fit.good.parameters, fit.optimizer.parameters)


def make_fit(recorded=None, seconds=None, **settings):
    config = dataclasses.replace(TINY, **settings)
    velocity = MLPVelocity(2, hidden=(8, 8), linear=True)
    samples = PushedSamples(torch.randn(400, 2), torch.randn(50, 2), torch.zeros(50))
    record = (lambda event: None) if recorded is None else recorded.append
    hooks = FitHooks(World(), record, lambda fit: None, seconds, Silent())
    block = Block(velocity, config.num_steps, jko_step=0.5)
    return Fit(0, block, samples, config, recipe_of_block(block, config, 2), hooks, FitCounters(iterations=30))


# ------------------------------------------------------------------------------------------------- the parts of a fit


def test_best_parameters_are_those_of_the_smallest_validation_loss(tmp_path):
    rows = plain(torch.randn(150, 2).exp())  # few rows: it overfits
    config = dataclasses.replace(TINY, hidden=(32, 32), max_blocks=1, iterations_per_block=600, learning_rate=0.02)
    config = dataclasses.replace(config, guard=False)  # which would change the grid on the way
    flow = train(rows, config, run_dir=tmp_path)
    losses = [line["loss"] for line in history(tmp_path, "validation")]
    assert min(losses) < losses[-1] - 0.01
    samples = pushed_by(flow, rows, config, blocks=0)
    y, logdet = push_rows(flow.blocks[0], samples.val)
    assert jko_terms(samples.val, y, logdet, math.inf).total.item() == pytest.approx(min(losses), abs=1e-5)


def test_batches_cover_an_epoch_and_are_functions_of_their_number():
    rows = torch.arange(103.0).unsqueeze(1)
    batches = Batches(rows, 20, seed=1, block=2)
    epoch = torch.cat([batches(i) for i in range(5)])
    assert len(epoch.unique()) == 100
    later = batches(7).clone()
    assert torch.equal(Batches(rows, 20, seed=1, block=2)(7), later)
    assert not torch.equal(torch.cat([batches(i) for i in range(5, 10)]), epoch)
    assert not torch.equal(Batches(rows, 20, seed=1, block=3)(7), later)
    assert not torch.equal(Batches(rows, 20, seed=2, block=2)(7), later)


# ---------------------------------------------------------------------------------------------------- the time budget


class SlowMachine:
    """A clock that only the integration of rows moves on, so that plans are exact."""

    def __init__(self, monkeypatch, per_row_step):
        self.now, self.per_row_step = 100.0, per_row_step
        integrate = Block.integrate

        def slow(block, x, context, num_steps, start, end, divergence="exact"):
            cost = self.per_row_step * (1.0 if divergence == "exact" else 0.5)
            self.now += cost * x.shape[0] * as_grid(num_steps or block.grid).cost
            return integrate(block, x, context, num_steps, start, end, divergence)

        loss = Block.jko_loss

        def slow_loss(block, x, *rest):
            self.now += 4 * x.shape[0] * block.num_steps * self.per_row_step
            return loss(block, x, *rest)

        step = discrete._step

        def slow_step(velocity, x, *rest):
            self.now += 0.5 * x.shape[0] * self.per_row_step  # without the divergence
            return step(velocity, x, *rest)

        monkeypatch.setattr(Block, "integrate", slow)
        monkeypatch.setattr(Block, "jko_loss", slow_loss)
        monkeypatch.setattr(discrete, "_step", slow_step)

    def __call__(self):
        return self.now


@pytest.mark.parametrize("num_steps", [3, 1], ids=["smooth", "guard acts"])
def test_time_budget_is_kept_and_used(monkeypatch, tmp_path, num_steps):
    clock = SlowMachine(monkeypatch, 1e-5)
    begin = clock.now
    config = dataclasses.replace(
        EXPLOITED, num_steps=num_steps, max_blocks=3, time_budget=12.0, gain_tolerance=-9.0, movement_tolerance=0.0,
        guard_nll=0.01,
    )  # fmt: skip
    rows = split_rows(correlated(4000)[0])
    recorder = Recorder()
    train(rows, config, run_dir=tmp_path, progress=recorder, clock=clock)
    assert 0.75 * 12 < clock.now - begin <= 12
    assert (len(history(tmp_path, "guard")) > 0) == (num_steps == 1)
    seconds = [end["seconds"] for end in recorder.ends]
    assert min(seconds) > 0.7 * max(seconds)  # equal shares


def test_a_short_budget_takes_fewer_blocks_unless_their_number_is_given(monkeypatch):
    counts = {}
    for budget, given in ((4.0, None), (16.0, None), (4.0, 5)):
        clock = SlowMachine(monkeypatch, 2e-6)
        begin = clock.now
        config = dataclasses.replace(
            TINY, max_blocks=given, time_budget=budget, gain_tolerance=-9.0, movement_tolerance=0.0, guard=False,
            finetune=0.0, optimizer="adam", free_block=False,
        )  # fmt: skip
        counts[budget, given] = len(train(split_rows(correlated(1000)[0]), config, clock=clock).stack)
        assert clock.now - begin <= budget
        monkeypatch.undo()
    assert 2 <= counts[4.0, None] < counts[16.0, None] <= TrainConfig().most_blocks
    assert counts[4.0, 5] == 5


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_fine_tuning_gets_its_share_of_a_time_budget(monkeypatch, share):
    clock = SlowMachine(monkeypatch, 1e-5)
    begin, recorder = clock.now, Recorder()
    config = dataclasses.replace(
        TINY, max_blocks=2, time_budget=20.0, movement_tolerance=0.0, gain_tolerance=-9.0, guard=False, finetune=share
    )
    train(split_rows(correlated(4000)[0]), config, progress=recorder, clock=clock)
    assert 0.75 * 20 < clock.now - begin <= 20
    *alone, together = recorder.ends
    assert [end["round"] for end in recorder.ends] == [0, 0, 1]
    assert together["seconds"] / sum(end["seconds"] for end in recorder.ends) == pytest.approx(share, abs=0.08)
    assert min(end["seconds"] for end in alone) > 0.7 * max(end["seconds"] for end in alone)


def test_only_long_budgets_are_fine_tuned_unless_it_is_asked_for(monkeypatch):
    """What is long is tested with the plan; here a thousand iterations are, so that the test is short."""
    kinds = {}

    class Listener(Silent):
        def start_round(self, number, kind, blocks):
            self.kinds.append(kind)

    for budget in (1.0, 8.0):
        monkeypatch.setattr("jkoflow.training.run_plan.finetune_share", lambda iterations: 0.8 * (iterations > 1000))
        listener = Listener()
        listener.kinds = []
        config = dataclasses.replace(
            TINY, time_budget=budget, max_blocks=2, gain_tolerance=-9.0, movement_tolerance=0.0, guard=False
        )
        train(split_rows(correlated(1000)[0]), config, progress=listener, clock=SlowMachine(monkeypatch, 2e-6))
        kinds[budget] = listener.kinds
        monkeypatch.undo()
    assert kinds == {1.0: ["build"], 8.0: ["build", "finetune"]}


@pytest.mark.parametrize("guess", [3, 1], ids=["all blocks", "the chain ends early"])
def test_time_budget_is_split_over_the_rounds(monkeypatch, guess):
    """Every round gets as much as any other, and every block of a round as much as its neighbours."""
    clock = SlowMachine(monkeypatch, 1e-5)
    begin, recorder = clock.now, Recorder()
    config = dataclasses.replace(
        TINY, max_blocks=3, time_budget=20.0, free_block=False, movement_tolerance=0.0, reparam_rounds=1, refine=2,
        gain_tolerance=-9.0 if guess == 3 else 9.0, reparam_damping=1.0, guard=False,
    )  # fmt: skip
    train(split_rows(correlated(4000)[0]), config, progress=recorder, clock=clock)
    assert 0.7 * 20 < clock.now - begin <= 20
    seconds = {}
    for end in recorder.ends:
        seconds.setdefault(end["round"], []).append(end["seconds"])
    assert [len(blocks) for blocks in seconds.values()] == ([3, 3, 6] if guess == 3 else [1, 2])
    shares = [sum(blocks) for blocks in seconds.values()]
    if guess == 3:
        assert min(shares) > 0.7 * max(shares)
    else:  # what the chain did not need is there for the refinement
        assert shares[1] > 2 * shares[0]
    for blocks in seconds.values():
        assert min(blocks) > 0.7 * max(blocks)


def test_a_budget_leaves_rows_behind_that_it_has_no_time_to_carry(monkeypatch, tmp_path):
    """A tenth of a block's time is for the push: of many rows only some go on, of few all."""
    kept = {}
    for rows in (200_000, 4000):
        clock = SlowMachine(monkeypatch, 1e-5)
        begin = clock.now
        config = dataclasses.replace(TINY, max_blocks=3, time_budget=60.0, gain_tolerance=-9.0, movement_tolerance=0.0)
        data = split_rows(torch.randn(rows, 2).exp())
        data = dataclasses.replace(data, val=data.val[:400], test=data.test[:400])
        recorder = Recorder()
        train(data, config, run_dir=tmp_path / str(rows), progress=recorder, clock=clock)
        told = any("training rows go on" in message for message in recorder.messages)
        assert told == (rows == 200_000)
        assert clock.now - begin <= 60
        kept[rows] = [line["train_rows"] for line in history(tmp_path / str(rows), "block")]
        monkeypatch.undo()
    assert 30_000 < kept[200_000][0] < 160_000
    assert kept[200_000] == sorted(kept[200_000], reverse=True)
    assert kept[4000] == [3200] * 3


@pytest.mark.parametrize(("budget", "scored"), [(60.0, "some"), (2.0, "least"), (None, "all")])
def test_a_budget_scores_as_many_test_rows_as_it_has_time_for(monkeypatch, tmp_path, budget, scored):
    clock = SlowMachine(monkeypatch, 1e-5)
    begin, recorder = clock.now, Recorder()
    data = split_rows(torch.randn(250_000, 2).exp())
    data = dataclasses.replace(data, train=data.train[:1000], val=data.val[:200], test=data.train)
    config = dataclasses.replace(TINY, time_budget=budget, gain_tolerance=-9.0, movement_tolerance=0.0)
    train(data, config, run_dir=tmp_path, progress=recorder, clock=clock)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    told = any("test rows be scored" in message for message in recorder.messages)
    assert told == (scored != "all")
    if scored == "some":
        assert 10_000 < metrics["n_test"] < len(data.test)
        assert 0.7 * budget < clock.now - begin <= budget
    elif scored == "least":
        assert 500 <= metrics["n_test"] <= 10_000
        assert clock.now - begin <= 1.1 * budget + 2
    else:
        assert metrics["n_test"] == len(data.test)


def test_an_impossible_budget_says_so_and_still_ends():
    recorder = Recorder()
    flow = train(torch.randn(500, 2), dataclasses.replace(TINY, time_budget=1e-3), progress=recorder)
    assert any("raise time_budget or lower max_blocks" in message for message in recorder.messages)
    assert len(flow.blocks) == 2


# ------------------------------------------------------------------------------------------------- the run directory


def test_run_directory_holds_what_the_readme_promises(tmp_path):
    rows = split_rows(torch.randn(600, 2) * 3 + 1, name="noise", features=("a", "b"))
    recorder = Recorder()
    flow = train(rows, TINY, run_dir=tmp_path / "deep" / "run", progress=recorder, source="noise.csv")
    run = tmp_path / "deep" / "run"
    files = {path.name for path in run.iterdir()}
    assert files == {
        "config.toml", "environment.json", "history.jsonl", "metrics.json", "model.safetensors", "preview.npz",
    }  # fmt: skip
    result = json.loads((run / "metrics.json").read_text())
    assert result["blocks"] == len(result["movements"]) == 2
    assert (result["dim"], result["n_train"], result["seed"], result["guard_events"]) == (2, 480, 0, 0)
    assert result["eval_num_steps"] == flow.eval_num_steps
    assert result["test_nll_data_units"] == pytest.approx(result["test_nll"] + flow.standardize.std.log().sum().item())
    assert result["test_nll_data_units"] == pytest.approx(-flow.log_prob(rows.test).mean().item(), abs=1e-5)
    preview = np.load(run / "preview.npz", allow_pickle=False)
    assert np.array_equal(preview["data"], rows.test.numpy())
    assert list(preview["features"]) == ["a", "b"]
    loaded = JKOFlow.load(run)
    assert torch.equal(loaded.log_prob(rows.test), flow.log_prob(rows.test))
    assert "threads" in json.loads((run / "environment.json").read_text())
    assert {line["event"] for line in history(run)} == {"iteration", "validation", "block", "round"}
    assert recorder.starts == [(0, 30), (1, 30)]
    assert recorder.updates[-1][:2] == (1, 30)
    terms = recorder.updates[-1][2]
    assert terms["loss"] == pytest.approx(terms["potential"] + terms["divergence"] + terms["movement"], rel=1e-5)


def test_configuration_survives_its_file(tmp_path):
    import tomllib

    config = dataclasses.replace(TINY, time_budget=60.0, activation="softplus(5)")
    train(torch.randn(500, 2), dataclasses.replace(config, time_budget=None), run_dir=tmp_path)
    settings = tomllib.loads((tmp_path / "config.toml").read_text())
    assert settings.pop("data") == "data"
    assert TrainConfig.from_mapping(settings) == dataclasses.replace(config, time_budget=None)
    assert TrainConfig.from_mapping(config.to_mapping()) == config


def test_an_unwritable_directory_fails_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    recorder = Recorder()
    with pytest.raises(OSError, match="file"):
        train(torch.randn(500, 2), TINY, run_dir=tmp_path / "file" / "run", progress=recorder)
    assert recorder.starts == []


def test_json_has_no_nan():
    assert json.loads(json.dumps(finite({"a": [math.nan, 1.0], "b": {"c": math.inf}}), allow_nan=False)) == {
        "a": [None, 1.0],
        "b": {"c": None},
    }


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.full((500, 2), math.nan), "NaN in row 0"),
        (torch.randn(500, 2) * torch.tensor([1.0, 0.0]), "constant"),
        (torch.randn(500, 2) * 1j, "real numbers"),
        (np.array([["a", "b"]] * 500), "no column that varies"),
    ],
    ids=["nan", "constant", "complex", "text"],
)
def test_bad_data_are_refused_before_anything_is_written(rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        train(rows, TINY, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_device_is_refused():
    for device in ("abacus", "cuda:99"):
        with pytest.raises(ValueError, match=f"device must be one that PyTorch can use here, got '{device}'"):
            train(torch.randn(500, 2), dataclasses.replace(TINY, device=device))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_steps": 2.5}, "num_steps must be int, got 2.5"),
        ({"num_steps": True}, "num_steps must be int"),
        ({"hidden": ()}, "hidden must list"),
        ({"hidden": (8, 0)}, "hidden must list"),
        ({"hidden": (8, 1.5)}, "hidden must be integers"),
        ({"activation": "relu"}, "activation must bend"),
        ({"method": "rk5"}, "method must be one of"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, muon, soap, got 'sgd'"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
        ({"learning_rate": 0}, "learning_rate must be positive and finite, got 0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite, got nan"),
        ({"jko_step": math.inf}, "jko_step must be positive and finite"),
        ({"jko_step": 2.0, "jko_step_max": 1.0}, "jko_step_max must be at least 2.0, got 1.0"),
        ({"jko_step_growth": 0.5}, "jko_step_growth must be at least 1"),
        ({"beta2": 1.0}, "beta2 must be at least 0 and less than 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"gain_tolerance": math.nan}, "gain_tolerance must be a number"),
        ({"time_budget": 0.0}, "time_budget must be positive and finite, or None"),
        ({"guard": "yes"}, "guard must be bool, got 'yes'"),
        ({"num_steps": 30}, "max_num_steps must be at least 30"),
        ({"leaning_rate": 1.0}, "unknown setting 'leaning_rate'; the settings are seed,"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_mapping(settings)


def test_resume_needs_a_directory():
    with pytest.raises(ValueError, match="resume needs the run_dir"):
        train(torch.randn(500, 2), TINY, resume=True)


def test_public_names():
    assert jkoflow.train is train
    assert isinstance(split_rows(torch.randn(20, 2)), Dataset)
    assert issubclass(checkpoint.CheckpointError, ValueError)
