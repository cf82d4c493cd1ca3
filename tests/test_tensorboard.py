"""The curves of a training in TensorBoard, read back by TensorBoard's own reader."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import jkoflow
from jkoflow.cli import training_run
from jkoflow.cli.commands import app
from jkoflow.interop.tensorboard import CurvesError, TensorBoard
from jkoflow.training.run_directory import RunDirectory

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

SETTINGS = {"hidden": (4,), "max_blocks": 2, "iterations_per_block": 30, "batch_size": 100, "num_steps": 2}


@pytest.fixture
def rows():
    return torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0])


@pytest.fixture
def config():
    return jkoflow.TrainConfig(**SETTINGS)


def read(directory):
    """The curves in a directory, as steps and values by name: those of every file, also what TensorBoard would hide."""
    found = accumulator.EventAccumulator(str(directory), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    found.Reload()
    return {
        tag: ([event.step for event in found.Scalars(tag)], [event.value for event in found.Scalars(tag)])
        for tag in found.Tags()["scalars"]
    }


def of_history(history, kind, field):
    """The same of a field in the records of a history."""
    records = [record for record in history if record["event"] == kind and record[field] is not None]
    return [record["global_step"] for record in records], pytest.approx([record[field] for record in records])


def check_curves(curves, history):
    """The curves are those of the history: every point, and none twice."""
    for name, kind, field in (
        ("train/loss", "iteration", "loss"),
        ("train/divergence", "iteration", "divergence"),
        ("train/learning_rate", "iteration", "learning_rate"),
        ("train/runge_kutta_steps", "iteration", "num_steps"),
        ("validation/nll", "validation", "nll"),
        ("validation/loss", "validation", "loss"),
        ("blocks/validation_nll", "block", "val_nll"),
        ("rounds/validation_nll", "round", "val_nll"),
    ):
        steps, values = curves[name]
        assert (steps, values) == of_history(history, kind, field), name


def test_curves_are_the_history_and_the_results_metrics(rows, config, tmp_path):
    with TensorBoard(tmp_path / "curves") as board:
        flow, history = jkoflow.train(rows, config, callback=board, return_history=True)
    curves = read(tmp_path / "curves")
    check_curves(curves, history)
    assert curves["results/test_nll"] == ([60], pytest.approx([flow.metrics["test_nll"]]))
    assert curves["results/movements"] == ([0, 1], pytest.approx(flow.metrics["movements"]))
    steps, speeds = curves["train/iterations_per_second"]
    assert steps == [10, 20, 29, 40, 50, 59]  # none from one block to the next
    assert all(speed > 0 for speed in speeds)


def test_it_may_be_closed_twice_and_closes_itself(rows, config, tmp_path):
    board = TensorBoard(tmp_path)
    jkoflow.train(rows, config, callback=board)
    board.close()
    assert read(tmp_path)["results/blocks"][1] == [2]


def test_a_directory_is_for_one_run(rows, config, tmp_path):
    with TensorBoard(tmp_path) as board:
        jkoflow.train(rows, config, callback=board)
    with pytest.raises(CurvesError, match=r"holds the curves of another run already, .*; choose another directory"):
        jkoflow.train(rows, config, callback=TensorBoard(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/events.out.tfevents.0.somebody").touch()  # of another program
    TensorBoard(tmp_path / "other").check_free()


def test_a_resumed_run_goes_on_with_its_curves(rows, tmp_path):
    config = jkoflow.TrainConfig(**SETTINGS, save_seconds=1e9)  # saved at the end of a block and of the training
    run, curves = tmp_path / "run", tmp_path / "curves"

    with TensorBoard(curves) as board:

        def fails(event):
            board(event)
            if event["event"] == "iteration" and event["global_step"] == 50:
                raise KeyboardInterrupt  # ends at once, without a save: as if it were killed

        with pytest.raises(KeyboardInterrupt):
            jkoflow.train(rows, config, run_dir=run, callback=fails)
    before = read(curves)["train/loss"][0]
    assert before == [0, 10, 20, 29, 30, 40, 50]  # beyond what is saved
    with TensorBoard(curves) as board:
        _, history = jkoflow.train(rows, config, run_dir=run, resume=True, callback=board, return_history=True)
    check_curves(read(curves), history)
    assert read(curves)["train/loss"][0] == [0, 10, 20, 29, 30, 40, 50, 59]


def test_a_run_that_began_without_curves_gets_all_of_them(rows, config, tmp_path):
    def fails(event):
        if event["event"] == "block":
            raise RuntimeError

    with pytest.raises(RuntimeError):
        jkoflow.train(rows, config, run_dir=tmp_path / "run", callback=fails)
    board = TensorBoard(tmp_path / "curves")
    _, history = jkoflow.train(rows, config, run_dir=tmp_path / "run", resume=True, callback=board, return_history=True)
    check_curves(read(tmp_path / "curves"), history)


def test_the_command_writes_curves_and_a_taken_directory_is_refused_first(tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "write_report", lambda run: run / "report.html")
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in SETTINGS.items())
    (tmp_path / "small.toml").write_text(settings)
    common = ["train", "moons:500", "--config", str(tmp_path / "small.toml"), "--tensorboard", str(tmp_path / "curves")]
    result = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    run = RunDirectory(tmp_path / "run")
    check_curves(read(tmp_path / "curves"), run.history())
    assert read(tmp_path / "curves")["results/test_nll"][1] == pytest.approx([run.metrics()["test_nll"]])
    result = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "other")])
    assert result.exit_code == 2
    assert "holds the curves of another run already" in result.stderr
    assert not (tmp_path / "other").exists()


KILLED = """
import os, signal
from jkoflow.cli import main
from jkoflow.training.fit import Fit
kept = Fit.iterate
def iterate(self):
    kept(self)
    if self.counters.iteration == 25:
        os.kill(os.getpid(), signal.SIGKILL)
Fit.iterate = iterate
main()
"""


def test_a_killed_command_goes_on_with_its_curves(tmp_path, monkeypatch):
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "small.toml").write_text(
        "hidden = [4]\nmax_blocks = 1\niterations_per_block = 30\nbatch_size = 100\nsave_seconds = 0.0\n"
    )
    command = ["train", "moons:500", "--config", "small.toml", "--out", "run", "--tensorboard", "curves"]
    done = subprocess.run(
        [sys.executable, "killed.py", *command], cwd=tmp_path, capture_output=True, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_run, "write_report", lambda run: run / "report.html")
    result = CliRunner().invoke(app, ["train", "--resume", "run", "--tensorboard", "curves"])
    assert result.exit_code == 0, result.output
    history = RunDirectory(tmp_path / "run").history()
    check_curves(read(tmp_path / "curves"), history)


def test_without_tensorboard_it_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(jkoflow.optional.MissingExtraError, match=r'pip install "jkoflow\[tensorboard\]"'):
        TensorBoard(tmp_path)
