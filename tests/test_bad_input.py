"""Whatever a user gets wrong: one line that tells the fix, exit code 2, no traceback, nothing half-written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import jkoflow
from jkoflow.cli import training_run
from jkoflow.cli.commands import app
from jkoflow.training.state import TrainingError

SMALL = "hidden = [8]\nbatch_size = 40\niterations_per_block = 3\nmax_blocks = 1\nguard_rows = 20\nval_rows = 20\n"


def rows(n=100, d=2):
    return np.random.default_rng(0).normal(size=(n, d))


def environ(**more):
    """The environment of a Python process, elsewhere, that finds this jkoflow."""
    path = os.pathsep.join([str(Path(jkoflow.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **more}


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def refused(*args, says):
    """Runs a command that must fail as the issue demands; returns its message."""
    result = invoke(*args)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert "Traceback" not in result.output
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on two columns, a and b."""
    path = tmp_path_factory.mktemp("finished")
    pd.DataFrame(rows(), columns=["a", "b"]).to_csv(path / "rows.csv", index=False)
    (path / "small.toml").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "write_report", lambda run: run)  # takes longer than all the rest
        result = invoke("train", path / "rows.csv", "--out", path / "run", "--config", path / "small.toml")
    assert result.exit_code == 0, result.output
    return path / "run"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory with small settings."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    np.save("rows.npy", rows())
    return tmp_path


def files(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


# training: the data


def spoilt(kind):
    table = rows()
    if kind == "nan":
        table[7, 1] = np.nan
    elif kind == "inf":
        table[7, 1] = np.inf
    elif kind == "constant":
        table[:, 1] = 3
    elif kind == "tiny":
        table = table[:5]
    return table


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet", ".npz"])
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nan", "NaN in row 7 (counting from 0), column"),
        ("inf", "inf in row 7 (counting from 0), column"),
        ("constant", "is constant (value 3)"),
        ("tiny", "has 5 rows; give at least 10"),
    ],
)
def test_data_that_cannot_be_trained_on(place, suffix, kind, says):
    table, file = spoilt(kind), f"t{suffix}"
    if suffix == ".npy":
        np.save(file, table)
    elif suffix == ".npz":
        np.savez(file, table=table)
    elif suffix == ".csv":
        pd.DataFrame(table, columns=["a", "b"]).to_csv(file, index=False)
    else:
        pd.DataFrame(table, columns=["a", "b"]).to_parquet(file)
    before = files(place)
    message = refused("train", file, "--out", "run", "--config", "small.toml", says=says)
    if kind in ("nan", "inf", "constant"):
        assert ("column 'b'" if suffix in (".csv", ".parquet") else "column 1") in message
    assert files(place) == before


def write_pickle(path):
    np.save(path, np.array([{}, None], dtype=object))


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("none.csv", None, "no such file"),
        ("rsoe", None, "did you mean rose?"),
        ("t.xlsx", lambda path: path.write_bytes(b"x"), "unsupported kind of file '.xlsx'"),
        ("t.csv", lambda path: path.write_text("a,b\n" + "x,y\n" * 50), "has no column that varies (it has 'a', 'b')"),
        ("t.csv", lambda path: path.write_bytes(b""), "is empty"),
        ("t.npz", lambda path: path.write_bytes(b"PK\3\4 no more"), "is damaged"),
        ("t.parquet", lambda path: path.write_bytes(b"PAR1 no more"), "is damaged"),
        ("t.npy", write_pickle, "need pickle and are refused"),
        ("t.csv", lambda path: path.mkdir(), "is a directory"),
    ],
)
def test_files_that_cannot_be_read(place, name, write, says):
    if write is not None:
        write(place / name)
    before = files(place)
    refused("train", name, "--out", "run", "--config", "small.toml", says=says)
    assert files(place) == before


# training: the settings


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_block = 3", "unknown setting 'max_block' in bad.toml; did you mean max_blocks?"),
        ("zzz = 3", "unknown setting 'zzz' in bad.toml; the settings are seed,"),
        ("[train]\nseed = 3", "unknown setting 'train' in bad.toml"),
        ("max_blocks = ", "bad.toml is not valid TOML"),
        ("max_blocks = 'three'", "max_blocks must be int, got 'three' (bad.toml)"),
        ("max_blocks = 0", "max_blocks must be at least 1, got 0 (bad.toml)"),
        ("hidden = []", "hidden must list"),
        ("activation = 'relu'", "relu"),
        ("data = 3", "data in bad.toml must be a name or a path, got 3"),
        ("device = 'cuda:99'", "device must be one that PyTorch can use here, got 'cuda:99'"),
        ("device = 'toaster'", "got 'toaster'"),
    ],
)
def test_settings_that_are_wrong(place, text, says):
    (place / "bad.toml").write_text(text)
    before = files(place)
    refused("train", "moons", "--out", "run", "--config", "bad.toml", says=says)
    assert files(place) == before


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["train"], "name the data"),
        (["train", "rose"], "name the run's directory: jkoflow train rose --out RUN"),
        (["train", "--resume"], "name the run to resume"),
        (["train", "rose", "--out", "run", "--blocks", "0"], "--blocks"),
        (["train", "rose", "--out", "run", "--blocks", "two"], "--blocks"),
        (["train", "rose", "--out", "run", "--time-budget", "-3"], "time_budget must be positive and finite"),
        (["train", "rose", "--out", "run", "--time-budget", "nan"], "time_budget must be positive and finite"),
        (["train", "rose", "--out", "run", "--seed", "-1"], "--seed"),
        (["train", "rose", "--out", "run", "--config", "none.toml"], "none.toml: no such file"),
        (["train", "rose", "--out", "run", "--config", "."], "cannot be read"),
        (["train", "rose", "--uot", "run"], "No such option"),
        (["train", "rose", "--out", "rows.npy"], "rows.npy is a file; choose another --out"),
        (["train", "rose", "--out", "rows.npy/run"], "rows.npy is a file; choose another --out"),
        (["train", "--resume", "nowhere"], "nowhere holds no run to resume"),
        (["train", "rose", "--out", "nowhere", "--resume"], "start one with: jkoflow train DATA --out nowhere"),
        (["tarin"], "tarin"),
        (["sample", "nowhere", "-n", "0", "--out", "s.npy"], "-n"),
        (["sample", "nowhere", "-n", "5", "--out", "s.npy"], "nowhere"),
        (["score", "nowhere", "rose", "--out", "s.npy"], "nowhere"),
        (["score", ".", "rose", "--out", "s.npy"], "holds no run; train one with"),
        (["score", "rows.npy", "rose", "--out", "s.npy"], "rows.npy is damaged or not a jkoflow file"),
        (["report", "nowhere"], "nowhere"),
        (["report", "."], "holds no run; train one with"),
    ],
)
def test_arguments_that_are_wrong(place, args, says):
    before = files(place)
    refused(*args, says=says)
    assert files(place) == before


def test_the_file_is_not_blamed_for_a_flag(place):
    (place / "fine.toml").write_text("time_budget = 3")
    message = refused(
        *("train", "moons", "--out", "run", "--config", "fine.toml", "--time-budget", -1),
        says="time_budget must be positive and finite",
    )
    assert "fine.toml" not in message


def test_a_run_is_not_overwritten(finished, place):
    before = {file: file.read_bytes() for file in finished.iterdir()}
    refused("train", "rows.npy", "--out", finished, says="already holds a run; add --resume")
    assert {file: file.read_bytes() for file in finished.iterdir()} == before


def test_a_resumed_run_keeps_its_settings(finished):
    refused("train", "--resume", finished, "--blocks", 7, says="max_blocks = 1, got 7")
    refused("train", "--resume", finished, "--time-budget", 7, says="time_budget = None, got 7")


def test_a_place_that_may_not_be_written_to(finished, place, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    refused("train", "rose", "--out", "run", says="no permission to write")
    refused("sample", finished, "-n", 3, "--out", "s.npy", says="no permission to write")


def test_training_that_cannot_go_on(place, monkeypatch):
    def overflow(*args, **kwargs):
        raise TrainingError("the parameters overflow;\nswitch the guard on")

    monkeypatch.setattr("jkoflow.cli.training_run.train_flow", overflow)
    refused("train", "moons", "--out", "run", says="overflow; switch the guard on")


def test_other_errors_are_bugs_and_show_their_traceback(place, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("an error of ours")

    monkeypatch.setattr("jkoflow.cli.training_run.train_flow", broken)
    result = invoke("train", "moons", "--out", "run")
    assert isinstance(result.exception, ValueError)


def test_training_without_an_extra_stops_before_it_starts(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    before = files(place)
    refused("train", "moons", "--out", "run", says='install it with: pip install "jkoflow[cli]"')
    assert files(place) == before


@pytest.mark.parametrize("command", ["train", "score"])
def test_instruction_set_that_is_not_there(finished, place, command):
    before = files(place)
    data = {"train": ["moons", "--out", "run"], "score": [str(finished), "rows.npy", "--out", "s.npy"]}[command]
    words = [sys.executable, "-m", "jkoflow", command, *data]
    done = subprocess.run(words, env=environ(JKOFLOW_ISA="sse1"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: JKOFLOW_ISA must be one of")
    assert done.stderr.count("\n") == 1
    assert files(place) == before


def test_report_without_matplotlib(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused("report", finished, says='the report needs matplotlib; install it with: pip install "jkoflow[cli]"')


# scoring, sampling


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (rows(d=3), "t.npy has 3 columns, expected 2 (a, b)"),
        (rows(d=1), "t.npy has 1 column, expected 2 (a, b)"),
        (np.where(np.arange(200).reshape(100, 2) == 9, np.nan, 1.0), "NaN in row 4 (counting from 0), column 'b'"),
        (np.array([["x", "y"]] * 3), "the columns 'a' (text), 'b' (text) must hold numbers"),
    ],
)
def test_rows_that_cannot_be_scored(finished, place, table, says):
    np.save("t.npy", table)
    refused("score", finished, "t.npy", "--out", "s.csv", says=says)
    assert not (place / "s.csv").exists()


def test_columns_missing_at_scoring_are_named(finished, place):
    pd.DataFrame(rows(), columns=["a", "c"]).to_csv("t.csv", index=False)
    refused("score", finished, "t.csv", "--out", "s.csv", says="lacks the column b; it has a, c")


def test_unknown_split(finished, place):
    refused("score", finished, "rows.npy", "--out", "s.csv", "--split", "tset", says="train, val, test, all")


OUTPUTS = [
    ("s.txt", "unsupported suffix '.txt'"),
    ("s", "unsupported suffix ''"),
    ("none/s.csv", "no directory none; create it first"),
    ("rows.npy/s.csv", "no directory rows.npy"),
    ("folder.csv", "is a directory"),
]


@pytest.mark.parametrize(("out", "says"), OUTPUTS)
def test_outputs_that_cannot_be_written(finished, place, out, says):
    (place / "folder.csv").mkdir()
    before = files(place)
    refused("score", finished, "rows.npy", "--out", out, says=says)
    if out != "s":  # a folder, for samples
        refused("sample", finished, "-n", 5, "--out", out, says=says)
    assert files(place) == before


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_the_old_file_or_none(finished, place, monkeypatch, suffix, existing):
    out = place / f"s{suffix}"
    if existing:
        out.write_bytes(b"the old file")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = files(place)
    monkeypatch.setattr(os, "fsync", full)
    refused("sample", finished, "-n", 5, "--out", out, says="No space left on device")
    assert files(place) == before
    if existing:
        assert out.read_bytes() == b"the old file"


def test_a_write_killed_half_way_leaves_the_old_file(finished, place):
    (place / "s.csv").write_text("the old file")
    code = (
        "import os, sys\n"
        "os.replace = lambda *paths: os._exit(9)\n"
        f"sys.argv = ['jkoflow', 'sample', {str(finished)!r}, '-n', '5', '--out', 's.csv']\n"
        "from jkoflow.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environ(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 9, done.stderr
    assert (place / "s.csv").read_text() == "the old file"


@pytest.mark.parametrize("command", ["score", "sample", "report"])
@pytest.mark.parametrize("missing", ["model.safetensors", "everything"])
def test_a_run_that_is_not_finished(finished, place, command, missing):
    run = place / "started"
    run.mkdir()
    (run / "config.toml").write_bytes((finished / "config.toml").read_bytes())
    if missing != "everything":
        for name in ("metrics.json", "history.jsonl", "environment.json", "preview.npz"):
            (run / name).write_bytes((finished / name).read_bytes())
    extra = {"score": ["rows.npy", "--out", "s.npy"], "sample": ["-n", 2, "--out", "s.npy"], "report": []}[command]
    assert "--resume" in refused(command, run, *extra, says="finish")


@pytest.mark.parametrize("name", ["model.safetensors", "preview.npz", "config.toml"])
def test_a_run_with_a_damaged_file(finished, place, name):
    run = place / "damaged"
    run.mkdir()
    for file in finished.iterdir():
        (run / file.name).write_bytes(file.read_bytes())
    (run / name).write_bytes(b"\xff\x00 not what it was")
    refused("score", run, "rows.npy", "--out", "s.npy", says=name)
    assert not (place / "s.npy").exists()
    if name == "config.toml":
        refused("train", "--resume", run, says=name)


def test_a_run_whose_settings_name_no_data(finished, place):
    run = place / "old"
    run.mkdir()
    (run / "config.toml").write_text("seed = 3\n")
    refused("train", "--resume", run, says="does not name the data")
    (run / "config.toml").write_text("data = 'rose'\nseed = 'three'\n")
    refused("train", "--resume", run, says="seed must be int")


def test_resuming_with_other_data(finished, place):
    run = place / "moved"
    run.mkdir()
    (run / "config.toml").write_bytes((finished / "config.toml").read_bytes().replace(b"rows.csv", b"gone.csv"))
    refused("train", "--resume", run, says="gone.csv: no such file")


def test_kinds_of_columns_are_printed(place, monkeypatch):
    monkeypatch.setattr(training_run, "write_report", lambda run: run)
    pd.DataFrame(rows(), columns=["a", "b"]).assign(city="Bonn").to_csv("t.csv", index=False)
    result = invoke("train", "t.csv", "--out", "run", "--config", "small.toml")
    assert result.exit_code == 0, result.output
    assert "columns: a real, b real, city constant" in result.stdout
