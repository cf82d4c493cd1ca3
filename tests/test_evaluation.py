"""An evaluation is bounded by the time that a budget has left, and tells what there was no time for."""

import dataclasses
import time

import pytest
import torch

from jkoflow import Block, JKOFlow, MLPVelocity, TrainConfig, metrics, train
from jkoflow.data import split_rows
from jkoflow.ops import Fixed
from jkoflow.training.evaluation import Pace, evaluate
from jkoflow.training.plan import Budget
from jkoflow.training.progress import Silent
from jkoflow.training.world import World

DATA = split_rows(torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)))


def stiff_flow(strength=25.0):
    """One Euler step at a time is far off: some 400 steps are not enough for a thousandth of a nat."""
    velocity = MLPVelocity(2, (4,), linear=True)
    velocity.scale_output(0.0)
    with torch.no_grad():
        velocity.linear.weight.copy_(torch.tensor([[0.0, strength], [-strength, 0.0]]) / 10)
    return JKOFlow(2, [Block(velocity, 1, "euler")]).requires_grad_(False)


class Clock:
    """Moves on by what the integration of rows costs."""

    def __init__(self, monkeypatch, per_row_step):
        self.now = 0.0
        integrate = Block.integrate

        def slow(block, x, context, num_steps, *rest):
            grid = block.grid if num_steps is None else num_steps
            self.now += per_row_step * len(x) * (grid.cost if isinstance(grid, Fixed) else grid)
            return integrate(block, x, context, num_steps, *rest)

        monkeypatch.setattr(Block, "integrate", slow)

    def __call__(self):
        return self.now


def test_without_a_budget_steps_are_doubled_to_the_end():
    told = []
    results = evaluate(stiff_flow(), DATA, 2000, tell=told.append)
    assert not results["test_nll_converged"]
    assert results["eval_num_steps"] > 200
    (text,) = told
    assert "train with guard = true" in text
    assert "no time" not in text


@pytest.mark.parametrize("seconds", [5.0, 10.0, 40.0])
def test_a_budget_ends_the_doubling(monkeypatch, seconds):
    told, clock = [], Clock(monkeypatch, 1e-4)
    results = evaluate(stiff_flow(), DATA, 2000, Budget(clock, seconds), told.append)
    assert 0.3 * seconds < clock.now <= 1.1 * seconds + 2
    assert not results["test_nll_converged"]
    assert results["eval_num_steps"] < 200
    assert any("there was no time for more: do not trust it; raise time_budget" in text for text in told)


def test_more_time_is_finer(monkeypatch):
    steps = []
    for seconds in (3.0, 30.0, 3000.0):
        with monkeypatch.context() as patch:
            clock = Clock(patch, 1e-4)
            steps.append(evaluate(stiff_flow(), DATA, 2000, Budget(clock, seconds))["eval_num_steps"])
    assert steps[0] < steps[1] < steps[2]


def test_a_budget_that_is_over_still_gives_every_figure(monkeypatch):
    told, clock = [], Clock(monkeypatch, 1e-4)
    clock.now = 100.0
    results = evaluate(stiff_flow(0.5), DATA, 2000, Budget(clock, 10.0), told.append)
    assert results["n_test"] == 500
    assert all(results[name] is not None for name in ("test_nll", "inversion_error_mean", "energy_distance"))
    assert any("500 validation rows be calibrated on" in text for text in told)
    assert any("500 of 2000 test rows be scored" in text for text in told)


def test_an_easy_flow_is_measured_alike_with_and_without_a_budget():
    flow = stiff_flow(0.1)
    free = evaluate(flow, DATA, 2000)
    bounded = evaluate(flow, DATA, 2000, Budget(lambda: 0.0, 1e6))
    assert free == bounded


def test_a_pace_without_a_budget_affords_everything():
    data = dataclasses.replace(DATA, test=DATA.test[:700])
    pace = Pace(stiff_flow(), data, 100, None)
    assert pace.rows == (100, 700, 700, 500, 700)
    assert pace.can_calibrate_on(Fixed(10**9))
    assert pace.can_score_on(Fixed(10**9))
    assert pace.plan_the_rest(384) == pace.rows


def test_doubling_ends_where_it_is_told_to():
    asked = []

    def affordable(grid):
        asked.append(grid.cost)
        return grid.cost < 16

    result = metrics.step_converged_nll(stiff_flow(), DATA.val, 1, affordable=affordable)
    assert asked == [4, 8, 16]
    assert (result.num_steps, result.converged, result.out_of_time) == (8, False, True)


@pytest.mark.parametrize("tick", [0.0, 1.0])
def test_a_coarse_clock_does_no_harm(tick):
    """A clock that stands still, and one of whole seconds."""
    begin = time.monotonic()
    world = World(lambda: 0.0 if tick == 0 else float(int(time.monotonic() - begin)))
    calls = []
    assert world.seconds(lambda: calls.append(0)) >= 0
    assert 1 <= len(calls) <= 1001
    evaluate(stiff_flow(0.1), DATA, 500, Budget(world.elapsed, 2.0))


def test_a_slow_call_is_timed_once():
    now = [0.0]

    def call():
        now[0] += 5.0

    assert World(lambda: now[0]).seconds(call) == 5.0
    assert now[0] == 5.0


class Messages(Silent):
    def __init__(self):
        self.texts = []

    def message(self, text):
        self.texts.append(text)


def test_a_budget_that_is_over_before_it_begins_still_ends_in_a_flow_and_says_so():
    now, told = [0.0], Messages()

    def clock():
        now[0] += 1.0
        return now[0]

    config = TrainConfig(hidden=(4,), max_blocks=2, time_budget=0.5, batch_size=100)
    flow = train(torch.randn(500, 2), config, progress=told, clock=clock)
    assert len(flow.stack) == 2
    assert any("of a time budget of 0.5 s: that is too short" in text for text in told.texts)


def test_a_given_flow_is_measured_within_the_budget():
    start = train(torch.randn(500, 2), TrainConfig(hidden=(4,), max_blocks=2, iterations_per_block=5, batch_size=100))
    start.stack[0].movement = None
    flow = train(torch.randn(5000, 2), TrainConfig(time_budget=2.0, batch_size=100, hidden=(4,)), start=start)
    assert all(block.movement is not None for block in flow.stack)
