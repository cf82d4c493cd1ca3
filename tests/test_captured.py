"""Iterations that are captured in graphs, against the plain loop: the same bits, few launches, no waiting.

The graphs are recorded ones (`recorded_graphs`); what is true of a GPU's alone is in test_gpu.py.
"""

import dataclasses
import itertools

import pytest
import torch

from jkoflow import Block, MLPVelocity
from jkoflow.training import TrainConfig
from jkoflow.training import fit as fit_module
from jkoflow.training.captured import Captured, graphs_on
from jkoflow.training.chain import Chain
from jkoflow.training.fit import LOG_EVERY, TIMED_TOGETHER, Fit, FitHooks
from jkoflow.training.optimizer import OPTIMIZERS
from jkoflow.training.progress import Silent
from jkoflow.training.pushed import PushedSamples
from jkoflow.training.recipe import recipe_of_block, recipe_of_chain
from jkoflow.training.state import FitCounters
from jkoflow.training.world import World
from recorded_graphs import Launches, RecordedGraphs

CONFIG = TrainConfig(
    hidden=(6, 6), num_steps=1, batch_size=30, learning_rate=0.03, validate_every=25, guard_every=10, guard_nll=4e-4
)
ITERATIONS = 120


@pytest.fixture(autouse=True)
def _factors_on_device(monkeypatch):
    """As on a GPU; and losses are recorded as often in both loops, which are to be compared."""
    build = fit_module.build_optimizer

    def build_optimizer(*arguments):
        optimizer = build(*arguments)
        optimizer.keep_factors_on_device()
        return optimizer

    monkeypatch.setattr(fit_module, "build_optimizer", build_optimizer)
    monkeypatch.setattr(fit_module, "LOG_EVERY_CAPTURED", LOG_EVERY)


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that fits capture their iterations in from now on."""
    recorded = RecordedGraphs()
    monkeypatch.setattr(fit_module, "graphs_on", lambda device: recorded)
    return recorded


def make_fit(recorded, kind="block", counters=None, world=None, seconds=None, progress=None, **settings):
    """A fit that the guard takes to finer grids."""
    config = dataclasses.replace(CONFIG, **settings)
    generator = torch.Generator().manual_seed(3)
    blocks = [
        Block(MLPVelocity(2, config.hidden, context_dim=int(kind == "context"), linear=True), 1, jko_step=0.5)
        for _ in range(2)
    ]
    with torch.no_grad():
        for parameter in itertools.chain(*(block.parameters() for block in blocks)):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    rows, context = (torch.randn(n, 2, generator=generator) for n in (220, 220))
    rows, context = 3.0 * rows, context[:, :1] if kind == "context" else None
    parts = (None, None) if context is None else (context[:200], context[200:])
    samples = PushedSamples(rows[:200], rows[200:], torch.zeros(20), *parts)
    if kind == "chain":
        module = Chain(blocks)
        recipe = recipe_of_chain(module, config, 2, 1.0, 1.0, False)
    else:
        module = blocks[0]
        recipe = recipe_of_block(module, config, 2)
    recipe = recipe._replace(alone=None)  # the velocity is not shortened at the start
    hooks = FitHooks(world or World(), recorded.append, lambda fit: None, seconds, progress or Silent())
    counters = FitCounters(iterations=ITERATIONS) if counters is None else counters
    return Fit(0, module, samples, config, recipe, hooks, counters)


def without_seconds(events):
    return [{name: value for name, value in event.items() if name != "seconds"} for event in events]


@pytest.mark.parametrize(("kind", "optimizer"), [*(("block", name) for name in OPTIMIZERS), ("context", "adam")])
def test_captured_iterations_are_plain_ones_to_the_bit(kind, optimizer, graphs, monkeypatch):
    """Over changes of the grid, after which there is a new capture, roll-backs, validations and records."""
    events, plain_events = [], []
    fit = make_fit(events, kind, optimizer=optimizer)
    fit.run()
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "graphs_on", graphs_on)
        plain = make_fit(plain_events, kind, optimizer=optimizer)
        plain.run()
    assert graphs.replays > 0.7 * ITERATIONS
    changes = [event for event in events if event["event"] == "guard" and event["action"] in ("raised", "lowered")]
    assert len(changes) >= 1
    assert graphs.captures > 1, "a grid has a graph of its own"
    assert graphs.captures <= 1 + len(changes)
    assert without_seconds(events) == without_seconds(plain_events)
    assert all(torch.equal(a, b) for a, b in zip(fit.block.parameters(), plain.block.parameters(), strict=True))
    assert torch.equal(fit.optimizer.parameters, plain.optimizer.parameters)


def test_captured_iterations_of_a_chain_are_plain_ones_to_the_bit(graphs, monkeypatch):
    fit = make_fit([], "chain", optimizer="muon", guard_nll=10.0, guard_round_trip=10.0)
    fit.run()
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "graphs_on", graphs_on)
        plain = make_fit([], "chain", optimizer="muon", guard_nll=10.0, guard_round_trip=10.0)
        plain.run()
    assert graphs.replays == ITERATIONS - 1
    assert graphs.captures == graphs.beside_runs == 1
    assert all(torch.equal(a, b) for a, b in zip(fit.block.parameters(), plain.block.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_fit_goes_on_to_the_bit(optimizer, graphs):
    whole, first = (make_fit([], optimizer=optimizer) for _ in range(2))
    whole.run()
    for _ in range(47):
        first.look()
        first.iterate()
    state = first.state()
    assert state.counters.iteration == 47
    resumed = make_fit([], optimizer=optimizer, counters=dataclasses.replace(state.counters))
    resumed.block.grid = first.block.grid
    resumed.restore(state)
    resumed.run()
    assert all(torch.equal(a, b) for a, b in zip(whole.block.parameters(), resumed.block.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["block", "context", "chain"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_iteration_is_three_launches_and_waits_for_nothing(kind, optimizer, graphs):
    fit = make_fit([], kind, optimizer=optimizer, batch_size=70)  # two iterations an epoch
    for _ in range(13):
        fit.iterate()
    assert graphs.captures == 1
    for _ in range(6):  # no loss is recorded, no basis refreshed
        before = graphs.replays
        with Launches() as launches:
            fit.iterate()
        assert graphs.replays == before + 1
        orders = launches.names.count("randperm")
        launches.names = [name for name in launches.names if name != "randperm"]
        assert launches.names == ["copy_"] * (2 + orders), "factors of the update, places of the batch; order of rows"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_iteration_without_a_graph_waits_for_nothing(optimizer):
    fit = make_fit([], optimizer=optimizer)
    fit.iterate()
    with Launches() as launches:
        for _ in range(5):
            fit.iterate()
    assert "jko_loss" in launches.names


def test_only_a_gpu_has_graphs():
    assert graphs_on(torch.device("cpu")) is None
    assert graphs_on(torch.device("cuda", 0)) is not None
    assert make_fit([])._captured is None


class Heard(Silent):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


def test_what_cannot_be_captured_is_told_once_and_trained_all_the_same(graphs, monkeypatch):
    descend = Fit._descend

    def waiting(self, places):
        numbers = descend(self, places)
        assert numbers[0].item() < 1e9
        return numbers

    plain = make_fit([], guard=False)
    plain._captured = None
    plain.run()
    monkeypatch.setattr(Fit, "_descend", waiting)
    heard = Heard()
    fit = make_fit([], guard=False, progress=heard)
    fit.run()
    (line,) = [text for text in heard.lines if "captured" in text]
    assert line.endswith("which is slower: operation not permitted when stream is capturing: _local_scalar_dense")
    assert graphs.replays == 0
    assert all(torch.equal(a, b) for a, b in zip(fit.block.parameters(), plain.block.parameters(), strict=True))


def test_a_new_key_and_only_that_leads_to_a_new_capture():
    graphs, place = RecordedGraphs(), torch.zeros(3)
    captured = Captured(graphs, pytest.fail)

    def run(given, times):
        return place.add_(given, alpha=times).clone()

    expected = torch.zeros(3)
    for call, times in enumerate([2, 2, 2, 5, 5, 2, 2]):
        given = torch.full((3,), float(call))
        expected = expected + times * given
        assert torch.equal(captured(lambda given, times=times: run(given, times), times, given), expected)
    assert (graphs.beside_runs, graphs.captures, graphs.replays) == (3, 3, 4)


def test_a_budget_measures_replays_and_changes_nothing(graphs):
    """On a clock that goes by a millisecond in a replay, and by ten whenever it is read."""
    reads = itertools.count()
    world = World(lambda: 0.01 * next(reads) + 0.001 * graphs.replays)
    fit = make_fit([], optimizer="muon", world=world, seconds=lambda counters, grid: 100.0, counters=FitCounters())
    before = fit.optimizer.state()
    fit.prepare()
    after = fit.optimizer.state()
    assert torch.equal(before.parameters, after.parameters)
    assert all(torch.equal(tensor, after.memory[name]) for name, tensor in before.memory.items())
    assert after.updates == before.updates == 0
    assert fit.costs is not None
    guard = 0.01 / min(CONFIG.guard_every, CONFIG.validate_every)
    assert fit.costs.iteration == pytest.approx((0.01 + 0.001 * TIMED_TOGETHER) / TIMED_TOGETHER + guard)
    assert graphs.captures == 1
