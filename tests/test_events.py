"""The events of a training: what a callback is told, in which order, and what its errors do."""

import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import jkoflow
from jkoflow.training.run_directory import RunDirectory

RECORDS = ("iteration", "validation", "guard", "block", "round")
SETTINGS = {"hidden": (4,), "max_blocks": 2, "iterations_per_block": 25, "batch_size": 100, "num_steps": 2}


@pytest.fixture
def rows():
    return torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0])


@pytest.fixture
def config():
    return jkoflow.TrainConfig(**SETTINGS)


def trained(rows, config, **options):
    """The flow, its history, and the events that a callback was told."""
    events = []
    flow, history = jkoflow.train(rows, config, callback=events.append, return_history=True, **options)
    return flow, history, events


def records(events):
    return [event for event in events if event["event"] in RECORDS]


@pytest.mark.parametrize("kept", [False, True])
def test_a_callback_is_told_the_history_and_what_is_around_it(rows, config, tmp_path, kept):
    run = tmp_path / "run" if kept else None
    flow, history, events = trained(rows, config, run_dir=run)
    assert records(events) == history
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start"
    assert kinds[-1] == "evaluation"
    assert kinds.count("start") == kinds.count("evaluation") == kinds.count("round_start") == 1
    assert kinds.count("plan") == 2
    start = events[0]
    assert start["rows"] == {"train": 400, "val": 50, "test": 50}
    assert start["columns"] == ["x0", "x1"]
    assert start["config"]["max_blocks"] == 2
    assert (start["run_dir"], start["resumed"]) == (str(run) if kept else None, False)
    assert events[-1]["metrics"]["test_nll"] == flow.metrics["test_nll"]
    json.dumps(events, allow_nan=False)


def test_a_callback_changes_no_number(rows, config):
    flow, _, _ = trained(rows, config)
    alone = jkoflow.train(rows, config)
    assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), alone.parameters(), strict=True))


def test_steps_count_the_iterations_of_all_blocks_and_rounds(rows, config):
    _, history, events = trained(rows, jkoflow.TrainConfig(**SETTINGS, refine=2))
    blocks = [record for record in history if record["event"] == "block"]
    assert len(blocks) == 6
    done = 0
    for block in blocks:
        own = [r for r in history if r.get("block") == block["block"] and r["round"] == block["round"]]
        assert all(r["global_step"] == done + r["iteration"] for r in own if "iteration" in r)
        done += block["iterations"]
        assert block["global_step"] == done
    assert events[-1]["global_step"] == done
    steps = [record["global_step"] for record in history]
    assert steps == sorted(steps)


def test_what_is_not_finite_is_none_and_events_belong_to_the_callback(rows, config):
    def spoil(event):
        event.clear()

    flow, history = jkoflow.train(rows, config, callback=spoil, return_history=True)
    assert all(record["event"] in RECORDS for record in history)
    assert flow.metrics["test_nll"] is not None


@pytest.mark.parametrize("where", ["start", "plan", "iteration", "validation", "block", "round"])
def test_an_error_of_the_callback_ends_the_training_with_the_state_saved(rows, config, tmp_path, where):
    told = []

    def fails(event):
        told.append(event)
        if event["event"] == where and event.get("iteration", 10) >= 10:
            raise RuntimeError(f"no room for {event['event']}")

    with pytest.raises(RuntimeError, match=f"no room for {where}") as caught:
        jkoflow.train(rows, config, callback=fails, run_dir=tmp_path / "run")
    assert f"told of '{where}'" in caught.value.__notes__[0]
    assert told[-1]["event"] == where  # nothing more after its error
    state = RunDirectory(tmp_path / "run").load_state()
    assert state is not None
    flow, history, events = trained(rows, config, run_dir=tmp_path / "run", resume=True)
    assert events[0]["resumed"]
    whole, expected = jkoflow.train(rows, config, return_history=True)
    assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), whole.parameters(), strict=True))
    place = [(r["event"], r["global_step"]) for r in history]
    assert place == [(r["event"], r["global_step"]) for r in expected]
    assert records(events) == history[len(history) - len(records(events)) :]
    assert all(events[0]["global_step"] <= record["global_step"] for record in records(events))


def test_an_error_at_the_end_leaves_a_finished_run(rows, config, tmp_path):
    def fails(event):
        if event["event"] == "evaluation":
            raise OSError("the tracker is gone")

    with pytest.raises(OSError, match="the tracker is gone"):
        jkoflow.train(rows, config, callback=fails, run_dir=tmp_path / "run")
    assert RunDirectory(tmp_path / "run").is_finished()


def test_an_error_without_a_directory_ends_the_training_too(rows, config):
    with pytest.raises(ZeroDivisionError):
        jkoflow.train(rows, config, callback=lambda event: 1 / (event["event"] != "validation"))


def test_the_events_of_a_table(config):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"size": torch.randn(400).numpy(), "kind": ["a", "b", "c", "b"] * 100})
    _, history, events = trained(table, config)
    assert events[0]["columns"] == ["size", "kind"]
    assert events[0]["kinds"] == {"size": "real", "kind": "category"}
    assert sum(events[0]["rows"].values()) == 400
    assert records(events) == history


# ---- The examples of docs/logging.md

DOCS = Path(__file__).parent.parent / "docs/logging.md"


def example(name):
    """The Python of the documentation that imports a library."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if f"import {name}" in block]
    return found


class Tracker:
    """What the examples use of MLflow and of a run of W&B, with the checks that these make."""

    def __init__(self):
        self.params, self.logged, self.results, self.summary, self.open = {}, [], {}, {}, False

    def log_params(self, params):
        assert self.open
        self.params |= params

    def log_metrics(self, metrics, step=None):
        assert self.open
        assert all(isinstance(value, float) and re.fullmatch(r"[\w/.\- ]+", name) for name, value in metrics.items())
        if step is None:
            self.results |= metrics
        else:
            self.log(metrics, step)

    def log(self, metrics, step):
        assert not self.logged or step >= self.logged[-1][0]
        self.logged.append((step, metrics))

    @contextmanager
    def start_run(self, **options):
        self.open, self.options = True, options
        yield self
        self.open = False


def check_logged(tracker, flow):
    steps = [step for step, metrics in tracker.logged if "iteration/loss" in metrics]
    assert steps == [0, 10, 20, 24, 25, 35, 45, 49]
    assert any("validation/nll" in metrics for _, metrics in tracker.logged)
    assert not tracker.open
    assert flow.metrics["test_nll"] is not None


def test_the_example_for_mlflow(rows, config, monkeypatch):
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "mlflow", tracker)
    names = {"jkoflow": jkoflow, "rows": rows, "config": config}
    exec(compile(example("mlflow"), str(DOCS), "exec"), names)
    check_logged(tracker, names["flow"])
    assert tracker.params["max_blocks"] == 2
    assert tracker.results["test_nll"] == names["flow"].metrics["test_nll"]


def test_the_example_for_weights_and_biases(rows, config, monkeypatch):
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=tracker.start_run))
    names = {"jkoflow": jkoflow, "rows": rows, "config": config}
    exec(compile(example("wandb"), str(DOCS), "exec"), names)
    check_logged(tracker, names["flow"])
    assert tracker.options["config"]["max_blocks"] == 2
    assert tracker.summary["test_nll"] == names["flow"].metrics["test_nll"]
