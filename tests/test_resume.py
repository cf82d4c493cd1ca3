"""A run killed at any moment resumes and ends with the numbers of an undisturbed one."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jkoflow
from jkoflow import JKOFlow, TrainConfig, train
from jkoflow.checkpoint import CheckpointError
from jkoflow.data import split_rows
from jkoflow.training.progress import Silent
from jkoflow.training.run_directory import RunDirectory
from jkoflow.training.state import RunError

CONFIG = TrainConfig(
    initial_map="none", hidden=(8, 8), max_blocks=3, iterations_per_block=30, batch_size=100, validate_every=10,
    guard_every=5, num_steps=1, guard_nll=0.002, optimizer="adam", learning_rate=0.02, gain_tolerance=-9.0,
    movement_tolerance=0.0, save_seconds=0.0,
)  # fmt: skip

RATES = {"adam": 0.02, "muon": 0.1, "soap": 0.05}
"""Learning rates at which the guard has something to do."""

SHORT = dataclasses.replace(CONFIG, max_blocks=1, iterations_per_block=5)

# Runs in one process of its own, which forks for every attempt: one import, many lives. One thread: a fork of a process
# with a running OpenMP pool would hang.
HOST = """
import dataclasses, os, signal, sys, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from jkoflow import Block, MLPVelocity, TrainConfig, train
from jkoflow.data import split_rows
from jkoflow.links import Link
from jkoflow.training.progress import Silent
from jkoflow.training.run_directory import RunDirectory

Block(MLPVelocity(2))(torch.zeros(1, 2))  # what the first call loads, once for all lives
where, config = Path(sys.argv[1]), TrainConfig(**eval(sys.argv[2]))

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

class KillAtUpdate(Silent):
    def __init__(self, block, iteration, number=0):
        self.place = (number, block, iteration)
    def start_round(self, number, kind, blocks):
        self.number = number
    def update(self, block, iteration, terms):
        if (self.number, block, iteration) == self.place:
            kill()

class KillAtEnd(Silent):
    def __init__(self, block, number=0):
        self.place = (number, block)
    def end_block(self, block, summary):
        if (summary["round"], block) == self.place:
            kill()

def kill_at_round(number):
    record = RunDirectory.record
    def wrapped(run, event):
        record(run, event)
        if event["event"] == "round" and event["round"] == number:
            kill()
    RunDirectory.record = wrapped

def kill_before_replacing(name, times):
    replace, seen = os.replace, [0]
    def wrapped(source, target):
        if Path(target).name == name:
            seen[0] += 1
            if seen[0] == times:
                kill()
        replace(source, target)
    os.replace = wrapped

def kill_at_guard():
    record = RunDirectory.record
    def wrapped(run, event):
        if event["event"] == "guard":
            kill()
        record(run, event)
    RunDirectory.record = wrapped

def kill_before_unlinking(name):
    unlink = Path.unlink
    def wrapped(path, *args, **kwargs):
        if path.name == name:
            kill()
        unlink(path, *args, **kwargs)
    Path.unlink = wrapped

def life(run, resume, prepare=lambda: Silent(), seconds=None):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            progress = prepare()
            rows = torch.randn(600, 2, generator=torch.Generator().manual_seed(3)).exp()
            data = dataclasses.replace(split_rows(rows), links=(Link(), Link()))  # skewed columns need the guard
            train(data, config, run_dir=where / run, resume=resume, progress=progress)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
"""

PLANNED = """
assert life("whole", False) == "exit 0"
moments = [
    lambda: kill_before_replacing("environment.json", 1) or Silent(),   # before anything is saved
    lambda: kill_before_replacing("state.safetensors", 1) or Silent(),  # in the first save
    lambda: KillAtUpdate(0, 11),
    lambda: kill_before_replacing("state.safetensors", 7) or Silent(),
    lambda: KillAtUpdate(0, 30),                                        # the block's last iteration
    lambda: KillAtEnd(0),                                               # recorded, not yet saved
    lambda: KillAtUpdate(1, 1),
    lambda: KillAtUpdate(2, 21),
    lambda: KillAtEnd(2),
    lambda: kill_before_replacing("model.safetensors", 1) or Silent(),
    lambda: kill_before_replacing("metrics.json", 1) or Silent(),
    lambda: kill_before_unlinking("state.safetensors") or Silent(),     # all is written, the state is still there
]
for number, moment in enumerate(moments):
    outcome = life("killed", number > 0, moment)
    assert outcome == "killed", (number, outcome)
assert life("killed", True) == "exit 0"
"""

AT_THE_GUARD = """
assert life("whole", False) == "exit 0"
assert life("killed", False, lambda: kill_at_guard() or Silent()) == "killed"  # it has seen, and not yet gone back
assert life("killed", True) == "exit 0"
"""

IN_ROUNDS = """
config = dataclasses.replace(config, reparam_rounds=1, refine=2, finetune=0.5, max_blocks=3, iterations_per_block=20)
assert life("whole", False) == "exit 0"
moments = [
    lambda: KillAtEnd(0, 0),
    lambda: kill_at_round(0) or Silent(),                               # its blocks are saved, its end is not
    lambda: KillAtUpdate(0, 11, 1),
    lambda: KillAtEnd(0, 1),
    lambda: kill_at_round(1) or Silent(),
    lambda: KillAtUpdate(2, 11, 2),
    lambda: KillAtEnd(3, 2),
    lambda: kill_at_round(2) or Silent(),
    lambda: KillAtUpdate(0, 11, 3),
    lambda: KillAtEnd(0, 3),
    lambda: kill_at_round(3) or Silent(),
    lambda: kill_before_replacing("metrics.json", 1) or Silent(),
]
for number, moment in enumerate(moments):
    outcome = life("killed", number > 0, moment)
    assert outcome == "killed", (number, outcome)
assert life("killed", True) == "exit 0"
"""

BEHIND_A_MAP = """
config = dataclasses.replace(config, initial_map="marginals+whiten+radial")
assert life("whole", False) == "exit 0"
assert life("killed", False, lambda: kill_before_replacing("state.safetensors", 2) or Silent()) == "killed"
assert life("killed", True, lambda: KillAtUpdate(1, 11)) == "killed"
assert life("killed", True) == "exit 0"
"""

UNPLANNED = """
assert life("whole", False) == "exit 0"
seconds, lives = 0.05, 0
while not (where / "killed" / "config.toml").exists():
    life("killed", False, seconds=seconds)
while not (where / "killed" / "metrics.json").exists() or (where / "killed" / "state.safetensors").exists():
    life("killed", True, seconds=seconds)
    seconds, lives = seconds * 1.15, lives + 1
assert lives >= 2
"""


def numbers(run):
    """Everything in a run that does not tell the time."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    result = json.loads((run / "metrics.json").read_text())
    assert result.pop("train_seconds") > 0
    assert all(record.pop("seconds") >= 0 for record in result["rounds"])
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines], result


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
@pytest.mark.parametrize(
    ("optimizer", "script"),
    [
        pytest.param("adam", PLANNED, id="planned moments"),
        pytest.param("adam", AT_THE_GUARD, id="at the guard"),
        pytest.param("adam", IN_ROUNDS, id="in rounds"),
        pytest.param("adam", BEHIND_A_MAP, id="behind a map"),
        pytest.param("adam", UNPLANNED, id="any moment"),
        *(pytest.param(name, IN_ROUNDS, id=f"in rounds, {name}") for name in ("muon", "soap")),
    ],
)
def test_killed_runs_end_with_the_same_numbers(optimizer, script, tmp_path):
    config = dataclasses.replace(CONFIG, optimizer=optimizer, learning_rate=RATES[optimizer])
    done = subprocess.run(
        [sys.executable, "-c", HOST + script, str(tmp_path), repr(dataclasses.asdict(config))],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(jkoflow.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    assert numbers(whole) == numbers(killed)
    if script != BEHIND_A_MAP:  # the initial map leaves nothing for the guard to notice
        assert numbers(whole)[1]["guard_events"] > 0  # the guard's memory is part of what resumes
    hidden = {path.name for path in killed.iterdir() if path.name.startswith(".")}
    assert {path.name for path in killed.iterdir()} - hidden == {path.name for path in whole.iterdir()}


# ------------------------------------------------------------------------------------------------ in the same process


class StopError(Exception):
    pass


class StopAt(Silent):
    def __init__(self, block, iteration):
        self.place = (block, iteration)
        self.starts = []

    def start_block(self, block, iterations):
        self.starts.append((block, iterations))

    def update(self, block, iteration, terms):
        if (block, iteration) == self.place:
            raise StopError


@pytest.fixture
def rows():
    return split_rows(torch.randn(600, 2, generator=torch.Generator().manual_seed(3)).exp())


@pytest.fixture
def interrupted(rows, tmp_path):
    """A run that stopped in its second block."""
    with pytest.raises(StopError):
        train(rows, CONFIG, run_dir=tmp_path / "run", progress=StopAt(1, 11))
    return tmp_path / "run"


def contents(run):
    return {path.name: path.read_bytes() for path in run.iterdir()}


def test_resumed_run_equals_one_without_a_directory(rows, interrupted):
    resumed = train(rows, CONFIG, run_dir=interrupted, resume=True).state_dict()
    whole = train(rows, CONFIG).state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_time_spent_adds_up(rows, interrupted):
    state = RunDirectory(interrupted).load_state()
    assert state is not None
    train(rows, CONFIG, run_dir=interrupted, resume=True)
    seconds = json.loads((interrupted / "metrics.json").read_text())["train_seconds"]
    assert seconds > state.elapsed > 0


class Listener(Silent):
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


def test_a_finished_run_is_left_as_it_is(rows, interrupted):
    flow = train(rows, CONFIG, run_dir=interrupted, resume=True)
    before, listener = contents(interrupted), Listener()
    again = train(rows, CONFIG, run_dir=interrupted, resume=True, progress=listener)
    assert contents(interrupted) == before
    assert listener.messages == [f"the run in {interrupted} has already ended; nothing to resume"]
    assert again.eval_num_steps == flow.eval_num_steps
    assert torch.equal(again.log_prob(rows.test), flow.log_prob(rows.test))


@pytest.fixture
def finished(rows, tmp_path):
    train(rows, SHORT, run_dir=tmp_path / "finished")
    return tmp_path / "finished"


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: dataclasses.replace(rows, test=rows.test + 1e-3),
        lambda rows: dataclasses.replace(rows, train=rows.train[:-1]),
        lambda rows: dataclasses.replace(rows, train=rows.train.flip(0)),
        lambda rows: split_rows(torch.randn(600, 2)),
        lambda rows: split_rows(torch.randn(600, 3)),
        lambda rows: split_rows(torch.randn(600, 3)).condition_on(["x2"]),
    ],
)
def test_a_finished_run_is_refused_to_other_data(rows, finished, change):
    before = contents(finished)
    with pytest.raises(RunError, match=r"the data have changed since the run in .* began; resume with the same data"):
        train(change(rows), SHORT, run_dir=finished, resume=True)
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 0.5}, r"learning_rate = 0.5 \(was 0.02\)"),
        ({"time_budget": 9.0}, r"time_budget = 9.0 \(was None\)"),
        ({"hidden": (4,), "seed": 1}, r"hidden = \[4\] \(was \[8, 8\]\), seed = 1 \(was 0\)"),
    ],
)
def test_a_finished_run_is_refused_to_other_settings(rows, finished, changed, message):
    before = contents(finished)
    with pytest.raises(RunError, match=f"has other settings: {message}; resume with its config.toml"):
        train(rows, dataclasses.replace(SHORT, **changed), run_dir=finished, resume=True)
    assert contents(finished) == before


def test_a_finished_run_is_refused_to_another_start(rows, tmp_path):
    start, other = train(rows, SHORT), train(rows, dataclasses.replace(SHORT, seed=9))
    flow = train(rows, SHORT, run_dir=tmp_path, start=start)
    again = train(rows, SHORT, run_dir=tmp_path, start=start, resume=True)
    assert torch.equal(again.log_prob(rows.test), flow.log_prob(rows.test))
    with pytest.raises(RunError, match=r"the data \(or the flow to start from\) have changed"):
        train(rows, SHORT, run_dir=tmp_path, start=other, resume=True)
    with pytest.raises(RunError, match="the data have changed"):
        train(rows, SHORT, run_dir=tmp_path, resume=True)


def test_a_finished_run_of_version_0_1_is_loaded(rows, finished):
    """It has kept no fingerprint: only its columns and its settings can be compared."""
    metrics = json.loads((finished / "metrics.json").read_text())
    del metrics["fingerprint"]
    (finished / "metrics.json").write_text(json.dumps(metrics))
    listener = Listener()
    other = split_rows(torch.randn(600, 2))
    assert train(other, SHORT, run_dir=finished, resume=True, progress=listener).dim == 2
    (message,) = listener.messages
    assert message.endswith("nothing to resume. It is of version 0.1, which kept nothing to compare the data with")
    with pytest.raises(RunError, match=r"the data have changed .*: they have 3 columns, they had 2"):
        train(split_rows(torch.randn(600, 3)), SHORT, run_dir=finished, resume=True)
    with pytest.raises(RunError, match="other settings"):
        train(other, CONFIG, run_dir=finished, resume=True)


def test_changed_data_are_refused(rows, interrupted):
    before = contents(interrupted)
    other = dataclasses.replace(rows, test=rows.test + 1e-3)
    with pytest.raises(RunError, match="the data have changed since the run in"):
        train(other, CONFIG, run_dir=interrupted, resume=True)
    assert contents(interrupted) == before


def test_other_settings_are_refused(rows, interrupted):
    before = contents(interrupted)
    config = dataclasses.replace(CONFIG, learning_rate=0.5, time_budget=9.0)
    with pytest.raises(RunError, match=r"learning_rate = 0.5 \(was 0.02\), time_budget = 9.0 \(was None\)"):
        train(rows, config, run_dir=interrupted, resume=True)
    assert contents(interrupted) == before


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_is_not_overwritten(rows, interrupted, finished):
    if finished:
        train(rows, CONFIG, run_dir=interrupted, resume=True)
    before = contents(interrupted)
    with pytest.raises(RunError, match="already holds a run; resume it, or choose another directory"):
        train(rows, CONFIG, run_dir=interrupted)
    assert contents(interrupted) == before


def test_nothing_to_resume_is_an_error(rows, tmp_path):
    with pytest.raises(RunError, match="holds no run to resume"):
        train(rows, CONFIG, run_dir=tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_an_empty_directory_is_welcome(rows, tmp_path):
    train(rows, dataclasses.replace(CONFIG, iterations_per_block=5), run_dir=tmp_path)
    assert JKOFlow.load(tmp_path).dim == 2


def test_damaged_state_is_reported(rows, interrupted):
    state = interrupted / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        train(rows, CONFIG, run_dir=interrupted, resume=True)


def emptied(path):
    path.write_bytes(b"")


def removed(path):
    path.unlink()


def with_a_byte_changed(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def with_a_line_that_is_none(path):
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"x" * (len(first) - 1) + b"\n" + b"".join(rest))


class Told(Silent):
    def __init__(self):
        self.texts = []

    def message(self, text):
        self.texts.append(text)


@pytest.mark.parametrize("damage", [emptied, removed, with_a_byte_changed, with_a_line_that_is_none])
def test_a_damaged_history_is_found_at_once_and_costs_no_training(rows, interrupted, damage):
    history = interrupted / "history.jsonl"
    before = history.read_bytes()
    damage(history)
    told = Told()
    flow = train(rows, CONFIG, run_dir=interrupted, resume=True, progress=told)
    assert "history.jsonl was damaged" in told.texts[0]
    torch.testing.assert_close(flow.state_dict(), train(rows, CONFIG).state_dict(), rtol=0, atol=0)
    kept = RunDirectory(interrupted).history()
    places = [(r["event"], r.get("round"), r.get("block"), r.get("iteration")) for r in kept]
    assert len(set(places)) == len(places)
    if damage is with_a_line_that_is_none:
        assert len((interrupted / "history.jsonl.damaged").read_bytes()) == len(before)
        assert kept[0] == json.loads(before.splitlines()[1])


@pytest.mark.parametrize("name", ["config.toml", "environment.json"])
def test_other_damaged_files_are_written_anew(rows, interrupted, name):
    good = (interrupted / name).read_bytes()
    (interrupted / name).write_bytes(good[: len(good) // 2] + b"\xff")
    told = Told()
    train(rows, CONFIG, run_dir=interrupted, resume=True, progress=told)
    assert f"{name} is damaged" in told.texts[0]
    assert "written anew" in told.texts[0]
    run = RunDirectory(interrupted)
    assert run.settings().config == CONFIG
    assert run.environment().keys() == json.loads(good).keys() if name.endswith("json") else run.environment()


def test_plan_of_a_time_budget_is_resumed(rows, tmp_path):
    """The resumed run goes on with the saved numbers of iterations and blocks instead of planning anew."""
    config = dataclasses.replace(CONFIG, time_budget=600.0, max_blocks=None, validate_every=10**6)
    with pytest.raises(StopError):
        train(rows, config, run_dir=tmp_path, progress=StopAt(0, 11))
    state = RunDirectory(tmp_path).load_state()
    assert state is not None
    assert state.fit is not None
    planned = state.fit.counters.iterations
    assert planned > 100
    progress = StopAt(0, 31)
    with pytest.raises(StopError):
        train(rows, config, run_dir=tmp_path, resume=True, progress=progress)
    assert progress.starts == [(0, planned)]
    again = RunDirectory(tmp_path).load_state()
    assert again is not None
    plans = [{k: v for k, v in vars(s).items() if k.startswith("planned_")} for s in (state, again)]
    assert plans[0] == plans[1]
    assert plans[0]["planned_blocks"] == 1


def test_new_blocks_that_are_trained_together_are_resumed(tmp_path):
    """Rows without details have several blocks in one fit from the beginning; a killed run goes on with all of them."""
    rows = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    rows = rows * torch.linspace(0.5, 2.0, 1000)[torch.randperm(1000, generator=torch.Generator().manual_seed(1)), None]
    config = dataclasses.replace(
        CONFIG, time_budget=60.0, max_blocks=None, initial_map="whiten", first_layer_scale=1.0, num_steps=None
    )
    with pytest.raises(StopError):
        train(rows, config, run_dir=tmp_path, progress=StopAt(0, 11))
    state = RunDirectory(tmp_path).load_state()
    assert state is not None
    assert state.fit is not None
    assert state.planned_together
    assert len(state.fit.block["blocks"]) == state.planned_blocks
    assert state.planned_blocks in (2, 4), "as the machine is fast"
    progress = StopAt(0, 31)
    with pytest.raises(StopError):
        train(rows, config, run_dir=tmp_path, resume=True, progress=progress)
    assert progress.starts[0] == (0, state.fit.counters.iterations)
    again = RunDirectory(tmp_path).load_state()
    assert again is not None
    assert again.fit is not None
    assert again.fit.counters.iteration >= 30
