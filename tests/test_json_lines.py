"""--json: every command writes events as JSON lines to stdout, the result at last, and nothing else."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import jkoflow
from jkoflow.cli import commands, console, json_lines, training_run
from jkoflow.cli.commands import app
from jkoflow.environment import describe
from jkoflow.training.interruption import Interrupted
from jkoflow.training.run_directory import RunDirectory

SETTINGS = "hidden = [4]\nbatch_size = 100\niterations_per_block = 20\nmax_blocks = 2\nguard_rows = 40\nnum_steps = 2\n"
DOCS = Path(__file__).parent.parent / "docs/logging.md"
OPTIONAL = {"first_layer_scale"}  # of the first round alone
RECORDS = ("iteration", "validation", "guard", "block", "round")


def run_cli(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def strict(text):
    """Parses a line as JSON without NaN and Infinity, which are Python's own."""

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def events_of(*args, code=0):
    """The events that a command writes with --json; nothing else may be on stdout, and nothing on stderr."""
    result = run_cli(*args, "--json")
    assert result.exit_code == code, result.output
    assert result.stderr == ""
    events = [strict(line) for line in result.stdout.splitlines()]
    assert all(isinstance(event["event"], str) for event in events)
    assert (events[-1]["event"] == "result") == (code == 0)
    assert [event["event"] for event in events].count("result") <= 1
    return events


def only(events, kind):
    return [event for event in events if event["event"] == kind]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A directory with a table, settings, and a run with the events that its training has written."""
    path = tmp_path_factory.mktemp("json")
    rng = np.random.default_rng(0)
    rows = rng.normal([20, -3], [4, 0.5], (600, 2))
    pd.DataFrame(rows, columns=["warm", "wide"]).to_csv(path / "rows.csv", index=False)
    (path / "small.toml").write_text(SETTINGS)
    train = ("train", path / "rows.csv", "--out", path / "run", "--config", path / "small.toml")
    (path / "events.json").write_text(json.dumps(events_of(*train)))
    return path


@pytest.fixture
def events(work):
    return json.loads((work / "events.json").read_text())


def test_the_events_of_a_training_are_its_history_and_what_is_around_it(work, events):
    run = RunDirectory(work / "run")
    assert [event for event in events if event["event"] in RECORDS] == run.history()
    assert events[0]["event"] == "start"
    assert events[0]["columns"] == ["warm", "wide"]
    assert only(events, "plan")[0]["iterations"] == 20
    result = events[-1]
    assert result["command"] == "train"
    assert result["metrics"] == run.metrics()
    assert result["report"] == str(work / "run/report.html")


def documented():
    """The fields that docs/logging.md has for each event, by its kind."""
    found = {}
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) == 3:
            kind, fields, _ = cells
            found.setdefault(kind.strip("`"), set()).update(re.findall(r"`(\w+)`", fields))
    return found


def test_the_events_and_their_fields_are_documented(events):
    fields = documented()
    assert set(RECORDS) | {"start", "plan", "evaluation", "note", "error", "progress", "file", "result"} <= set(fields)
    for event in events[:-1]:
        assert set(event) == {"event"} | (fields[event["event"]] - OPTIONAL | (set(event) & OPTIONAL)), event


def test_commands_about_a_run(work):
    assert events_of("report", work / "run") == [
        {"event": "result", "command": "report", "report": str(work / "run/report.html")}
    ]
    drawn = events_of("sample", work / "run", "-n", 50, "--out", work / "s.csv")
    assert only(drawn, "progress")[-1] == {
        "event": "progress", "of": "samples", "unit": "rows", "done": 50, "total": 50
    }  # fmt: skip
    assert drawn[-1] == {
        "event": "result", "command": "sample", "out": str(work / "s.csv"), "rows": 50, "columns": ["warm", "wide"]
    }  # fmt: skip
    scored = events_of("score", work / "run", work / "rows.csv", "--out", work / "p.csv", "--with-error")[-1]
    log_prob = pd.read_csv(work / "p.csv")["log_prob"]
    assert scored["rows"] == scored["finite_rows"] == 600
    assert scored["log_likelihood"] == pytest.approx(log_prob.mean())
    assert [row["row"] for row in scored["least_likely"]] == np.argsort(log_prob, kind="stable")[:3].tolist()
    assert scored["least_likely"][0]["log_likelihood"] == pytest.approx(log_prob.min())
    assert set(scored["least_likely"][0]["surprise"]) <= {"warm", "wide"}
    assert 0 < scored["error_median"] <= scored["error_max"]


def test_two_sample_figures_are_in_the_result(work):
    scored = events_of("score", work / "run", work / "rows.csv", "--out", work / "q.csv", "--two-sample")[-1]
    for name in ("mmd_median", "energy_distance", "energy_distance_threshold", "classifier_accuracy"):
        assert isinstance(scored[name], float), name


def test_large_files_and_folders(work, tmp_path, monkeypatch):
    monkeypatch.setattr("jkoflow.cli.score.LARGE", 1)
    whole = events_of("score", work / "run", work / "rows.csv", "--out", tmp_path / "p.parquet")
    assert only(whole, "progress")[-1]["done"] == 600
    assert whole[-1]["rows"] == 600
    assert len(whole[-1]["least_likely"]) == 3
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(2):
        pd.read_csv(work / "rows.csv").to_csv(folder / f"{part}.csv", index=False)
    found = events_of("score", work / "run", folder, "--out", tmp_path / "scores")
    assert [(event["name"], event["state"], event["rows"]) for event in only(found, "file")] == [
        ("0.csv", "scored", 600),
        ("1.csv", "scored", 600),
    ]
    assert found[-1]["files"] == {"scored": 2}
    assert found[-1]["rows"] == 1200
    (folder / "2.csv").write_text("warm,wide\n1,not a number\n")
    failed = events_of("score", work / "run", folder, "--out", tmp_path / "scores", code=2)
    assert failed[-1]["text"].startswith("2.csv: ")
    assert only(failed, "file")[-1]["state"] == "failed"


def test_columns_are_inspected(work):
    found = events_of("inspect", work / "rows.csv")[-1]
    assert found["rows"] == 600
    assert [column["name"] for column in found["columns"]] == ["warm", "wide"]
    assert {"kind", "reason", "treatment", "range", "missing", "repeats"} <= found["columns"][0].keys()


def test_the_environment_and_the_experiments():
    found = events_of("doctor")
    assert len(found) == 1
    assert {key: value for key, value in found[0].items() if key not in ("event", "command")} == json.loads(
        json.dumps(describe())
    )
    assert set(events_of("reproduce", "--list")[-1]["experiments"]) == set(jkoflow.experiments.names())


def test_the_benchmark():
    found = events_of("bench", "--quick", "--shapes", "2,8,1,50,1", "--rounds", 1, "--peers", "closed-form")
    assert only(found, "progress")
    assert only(found, "measured")[-1]["entry"] == found[-1]["record"]["shapes"][-1]


def test_warnings_and_news_are_notes(work, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "write_report", lambda run: run / "report.html")
    table = pd.read_csv(work / "rows.csv").assign(kind=["a", "b", "c"] * 200)
    table.to_csv(tmp_path / "kinds.csv")
    found = events_of(
        "train", tmp_path / "kinds.csv", "--out", tmp_path / "run", "--config", work / "small.toml", "--blocks", 1
    )
    texts = [event["text"] for event in only(found, "note")]
    assert any("row numbers" in text for text in texts), texts  # a DataWarning
    assert any(text.startswith("begins with the initial map") for text in texts), texts  # of the training
    assert len(texts) == len(set(texts))
    assert only(found, "start")[0]["kinds"] == {"warm": "real", "wide": "real", "kind": "category"}


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["train", "--bogus"], "No such option: --bogus"),
        (["trian"], "No such command 'trian'"),
        (["train", "rose"], "name the run's directory"),
        (["report", "nowhere"], "no such run directory"),
        (["sample", "nowhere", "-n", "0", "--out", "x.csv"], "see: jkoflow sample --help"),
        (["score"], "see: jkoflow score --help"),
    ],
)
def test_errors_are_events_and_the_exit_code_stays(args, text):
    (error,) = events_of(*args, code=2)
    assert error["event"] == "error"
    assert text in error["text"]
    plain = run_cli(*args)
    assert plain.exit_code == 2
    assert plain.stderr == f"error: {error['text']}\n"
    assert plain.stdout == ""


def test_bugs_and_interruptions_are_events_too(monkeypatch):
    def interrupted(run, out):
        raise Interrupted(15)

    monkeypatch.setattr(commands, "write_report", interrupted)
    assert events_of("report", "run", code=143) == [{"event": "error", "text": "interrupted by SIGTERM"}]

    def bug(run, out):
        raise RuntimeError("not thought of")

    monkeypatch.setattr(commands, "write_report", bug)
    result = run_cli("report", "run", "--json")
    assert isinstance(result.exception, RuntimeError)  # its traceback is shown
    assert strict(result.stdout) == {"event": "error", "text": "RuntimeError: not thought of"}


def test_what_is_not_finite_and_what_is_of_numpy(monkeypatch, tmp_path):
    def told(run, out):
        print("for people")
        json_lines.tell(
            "figures",
            lost=[float("nan"), np.float64("inf"), np.float32("nan")],
            kept=[np.float32(0.5), np.int64(3), np.arange(2), np.array([1.0, np.nan]), np.bool_(True)],
            place=tmp_path,
        )
        console.note("two\nlines")
        return run

    monkeypatch.setattr(commands, "write_report", told)
    found = events_of("report", "run")
    assert found[0] == {
        "event": "figures", "lost": [None] * 3, "kept": [0.5, 3, [0, 1], [1.0, None], True], "place": str(tmp_path)
    }  # fmt: skip
    assert found[1] == {"event": "note", "text": "two lines"}


def test_without_the_option_nothing_is_told_and_afterwards_neither(monkeypatch):
    monkeypatch.setattr(commands, "write_report", lambda run, out: run / "report.html")
    assert events_of("report", "run")[-1]["report"] == "run/report.html"
    assert not json_lines.is_on()
    assert run_cli("report", "run").stdout == "report: run/report.html\n"


def test_every_command_has_the_option_and_help_stays_help():
    names = [command.callback.__name__ for command in app.registered_commands]
    assert {"train", "score", "sample", "inspect", "report", "reproduce", "doctor", "bench", "demo"} <= set(names)
    for name in names:
        shown = run_cli(name, "--json", "--help").stdout
        assert "--json" in shown, name
        assert shown.startswith("Usage: ")


def test_a_reader_that_has_gone_ends_the_training_in_silence_with_its_state_saved(work, tmp_path):
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "jkoflow", "train", str(work / "rows.csv"), "--out", "run", "--json"]
    command += ["--config", str(work / "small.toml")]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
            timeout=300, text=True,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
    assert RunDirectory(tmp_path / "run").load_state() is not None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_on_stderr(capsys):
    with open("/dev/full", "w") as full, contextlib.redirect_stdout(full):  # noqa: PTH123
        assert typer.main.get_command(app).main(["doctor", "--json"], standalone_mode=False) == 2
    assert capsys.readouterr().err.startswith("error: No space left on device; ")


def test_of_several_processes_the_first_speaks(work, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "jkoflow"]
    command += ["train", str(work / "rows.csv"), "--out", "run", "--config", str(work / "small.toml")]
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [*command, "--json", "--tensorboard", "curves"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = [strict(line) for line in done.stdout.splitlines()]
    assert [event for event in events if event["event"] in RECORDS] == RunDirectory(tmp_path / "run").history()
    assert only(events, "start")[0]["processes"] == 2
    assert len(only(events, "start")) == len(only(events, "result")) == len(only(events, "evaluation")) == 1
    assert events[-1]["event"] == "result"
    assert len(list((tmp_path / "curves").iterdir())) == 1
