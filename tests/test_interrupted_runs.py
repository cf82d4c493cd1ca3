"""Signals end a run without losing what it has done, and one process at a time writes into its directory."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

import jkoflow
from jkoflow import TrainConfig
from jkoflow.training import RunError, interruption, run_lock
from jkoflow.training.interruption import Interrupted, Interruption
from jkoflow.training.progress import Silent
from jkoflow.training.run_directory import HISTORY_FILE, STATE_FILE, RunDirectory

CONFIG = TrainConfig(hidden=(4,), max_blocks=2, iterations_per_block=40, batch_size=50, num_steps=2)
ROWS = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _handled_by_default():
    """Signals as a program in the foreground has them: a shell lets programs in the background ignore SIGINT."""
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Raising(Silent):
    """Raises signals in this process when the first block has come to an iteration."""

    def __init__(self, *numbers, block=0, iteration=20):
        self.numbers, self.block, self.iteration = numbers, block, iteration

    def update(self, block, iteration, terms):
        if block == self.block and iteration > self.iteration:
            numbers, self.numbers = self.numbers, ()
            for number in numbers:
                signal.raise_signal(number)


def results(path):
    metrics = RunDirectory(path).metrics()
    history = [json.loads(line) for line in (path / HISTORY_FILE).read_text().splitlines()]
    for record in (metrics, *metrics["rounds"], *history):
        for name in ("seconds", "train_seconds"):
            record.pop(name, None)
    return metrics, history, (path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_the_run_goes_on_as_if_nothing_had_been(tmp_path, number):
    jkoflow.train(ROWS, CONFIG, run_dir=tmp_path / "whole")
    before = [signal.getsignal(each) for each in interruption.SIGNALS]
    with pytest.raises(Interrupted, match=signal.Signals(number).name) as caught:
        jkoflow.train(ROWS, CONFIG, run_dir=tmp_path / "run", progress=Raising(number))
    assert caught.value.number == number
    assert [signal.getsignal(each) for each in interruption.SIGNALS] == before
    state = RunDirectory(tmp_path / "run").load_state()
    assert state.fit.counters.iteration > 20  # and nothing is saved by the clock: that takes 30 s
    jkoflow.train(ROWS, CONFIG, run_dir=tmp_path / "run", resume=True)
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    assert not (tmp_path / "run" / STATE_FILE).exists()


def test_a_second_signal_ends_at_once(tmp_path):
    with pytest.raises(Interrupted, match="SIGTERM"):  # the first of them
        jkoflow.train(ROWS, CONFIG, run_dir=tmp_path, progress=Raising(signal.SIGTERM, signal.SIGINT))
    assert not (tmp_path / STATE_FILE).exists()


def test_the_run_ends_where_it_is_if_no_moment_to_save_comes(monkeypatch):
    monkeypatch.setattr(interruption, "GRACE_SECONDS", 0.01)
    with pytest.raises(Interrupted, match="SIGINT"), Interruption():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        waiting = threading.Event()
        while True:
            waiting.wait(0.01)


def test_a_program_keeps_its_own_handlers(tmp_path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        jkoflow.train(ROWS, CONFIG, run_dir=tmp_path, progress=Raising(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_training_in_another_thread_leaves_signals_alone(tmp_path):
    thread = threading.Thread(target=lambda: jkoflow.train(ROWS, CONFIG, run_dir=tmp_path))
    thread.start()
    thread.join()
    assert RunDirectory(tmp_path).is_finished()


def test_without_a_directory_there_is_nothing_to_save():
    with pytest.raises(KeyboardInterrupt):
        jkoflow.train(ROWS, CONFIG, progress=Raising(signal.SIGINT))


COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have it ignore
import torch
from jkoflow.cli import main
from jkoflow.training.fit import Fit
kept = Fit.iterate
def iterate(self):
    kept(self)
    if self.counters.iteration == 30:
        signal.raise_signal(signal.{name})
Fit.iterate = iterate
main()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_the_command_says_how_to_go_on(tmp_path, name, code):
    settings = tmp_path / "settings.toml"
    settings.write_text("hidden = [4]\nmax_blocks = 1\niterations_per_block = 60\nbatch_size = 50\nnum_steps = 2\n")
    arguments = ["train", "rose:500", "--out", str(tmp_path / "run"), "--config", str(settings)]
    command = [sys.executable, "-c", COMMAND.format(name=name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert f"error: interrupted by {name}; continue with: jkoflow train --resume {tmp_path / 'run'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / STATE_FILE).exists()


def test_an_interrupted_import_is_one_line(tmp_path):
    """The package is imported, and PyTorch with it, before the command line can do anything about a signal."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    for command in ([sys.executable, "-m", "jkoflow"], [sys.executable, "-c", "import jkoflow"]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if "-m" in command:
            assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
        else:
            assert done.stderr.rstrip().endswith("KeyboardInterrupt")


# ---- One writer


class Trespassing(Silent):
    """Trains into the same directory while the first training is on its way."""

    def __init__(self, **how):
        self.how, self.refusals = how, []

    def update(self, block, iteration, terms):
        if not self.refusals:
            with pytest.raises(RunError) as caught:
                jkoflow.train(ROWS, CONFIG, **self.how)
            self.refusals.append(str(caught.value))


def test_a_run_has_one_writer(tmp_path):
    jkoflow.train(ROWS, CONFIG, run_dir=tmp_path / "whole")
    second = Trespassing(run_dir=tmp_path / "run", resume=True)
    jkoflow.train(ROWS, CONFIG, run_dir=tmp_path / "run", progress=second)
    assert f"is in use by process {os.getpid()} on " in second.refusals[0]
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    assert not (tmp_path / "run" / run_lock.LOCK_FILE).exists()


HOLDING = """
import os, signal, sys
from pathlib import Path
from jkoflow.training import run_lock
with run_lock.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
    if len(sys.argv) > 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_the_lock_of_another_process_ends_with_it(tmp_path, killed):
    command = [sys.executable, "-c", HOLDING, str(tmp_path), *(["kill"] if killed else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(run_lock.LockedError, match=f"process {other.pid} on "), run_lock.locked(tmp_path):
            pass
        other.stdin.close()
        other.wait()
        with run_lock.locked(tmp_path) as held:
            assert held
    assert not (tmp_path / run_lock.LOCK_FILE).exists()


def test_a_start_race_has_one_winner(tmp_path, monkeypatch):
    """Both have seen a free directory; the second finds it locked, or with a run in it, and writes nothing."""
    monkeypatch.setattr(RunDirectory, "check_free", lambda self, resume, another: None)
    second = Trespassing(run_dir=tmp_path / "run")
    jkoflow.train(ROWS, CONFIG, run_dir=tmp_path / "run", progress=second)
    assert "is in use by" in second.refusals[0]
    history = [json.loads(line) for line in (tmp_path / "run" / HISTORY_FILE).read_text().splitlines()]
    places = [(r["event"], r.get("round"), r.get("block"), r.get("iteration")) for r in history]
    assert len(set(places)) == len(places)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    told = []

    class Told(Silent):
        def message(self, text):
            told.append(text)

    def fail(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_lock.fcntl, "flock", fail)
    jkoflow.train(ROWS, CONFIG, run_dir=tmp_path, progress=Told())
    assert any("cannot be locked" in text for text in told)


def test_what_a_killed_save_left_is_taken_away(tmp_path):
    with pytest.raises(Interrupted):
        jkoflow.train(ROWS, CONFIG, run_dir=tmp_path, progress=Raising(signal.SIGTERM))
    stale = [tmp_path / f".{STATE_FILE}.abc123.tmp", tmp_path / ".model.safetensors.x.tmp"]
    mine = [tmp_path / ".notes.tmp", tmp_path / "state.tmp"]
    for path in (*stale, *mine):
        path.write_text("half")
    jkoflow.train(ROWS, CONFIG, run_dir=tmp_path, resume=True)
    assert not any(path.exists() for path in stale)
    assert all(path.exists() for path in mine)
