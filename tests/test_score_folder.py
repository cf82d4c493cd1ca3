"""score over folders and large files: in pieces, resumable, by several processes, with the numbers of single files."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest
import torch

import jkoflow
from jkoflow.cli import sample as sample_command
from jkoflow.cli import score as command
from jkoflow.cli.score_folder import KEY
from jkoflow.data.readers import pieces
from jkoflow.training.run_lock import locked
from test_score import cli, done, refused

CONFIG = jkoflow.TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=10, batch_size=100)

pytestmark = pytest.mark.filterwarnings("ignore::jkoflow.data.DataWarning")


def table(count, seed=0):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(2, count))
    names = [f"r{row}" for row in range(count)]
    kinds = random.choice(["ash", "elm"], count)
    return pd.DataFrame({"name": names, "kind": kinds, "y": y - x, "x": x, "rings": random.poisson(3, count)})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model files of plain numbers (x, y), of a table (kind, x, rings), and of x given day."""
    path = tmp_path_factory.mktemp("models")
    frame = table(600).assign(day=np.arange(600) % 3)
    jkoflow.train(frame[["x", "y"]], CONFIG).save(path / "plain")
    jkoflow.train(frame[["kind", "x", "rings"]], CONFIG).save(path / "table")
    jkoflow.train(frame[["x"]], CONFIG, context=frame[["day"]]).save(path / "given")
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    for day in (1, 2):
        (path / f"day={day}").mkdir(parents=True)
        table(150 * day, day).to_parquet(path / f"day={day}/part-0.parquet")
        table(70, 10 * day).to_csv(path / f"day={day}/more.csv", index=False)
    np.save(path / "numbers.npy", table(50, 5)[["x", "y"]].to_numpy())
    (path / "_SUCCESS").touch()
    (path / "notes.md").write_text("not a table")
    return path


def parts(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


NAMES = [
    "day=1/more.csv.parquet",
    "day=1/part-0.parquet",
    "day=2/more.csv.parquet",
    "day=2/part-0.parquet",
    "numbers.npy.parquet",
]


def stamps(folder):
    return {name: (folder / name).stat().st_mtime_ns for name in parts(folder)}


def test_each_file_has_one_of_its_scores(models, folder, tmp_path):
    result = done("score", models / "plain", folder, "--out", tmp_path / "out")
    assert parts(tmp_path / "out") == NAMES
    assert "files: 5 scored, 0 done before" in result.stdout
    assert "rows: 640\n" in result.stdout
    for name in ("day=1/part-0.parquet", "day=2/more.csv"):
        done("score", models / "plain", folder / name, "--out", tmp_path / "one.parquet")
        whole = pd.read_parquet(tmp_path / "one.parquet")
        found = parquet.read_table(tmp_path / "out" / (name.removesuffix(".parquet") + ".parquet"), partitioning=None)
        pd.testing.assert_frame_equal(found.to_pandas(), whole)
    read = pd.read_parquet(tmp_path / "out/day=2/part-0.parquet", partitioning=None)
    assert list(read.columns) == ["name", "kind", "rings", "log_prob", "outside"]
    mean = pd.concat([parquet.read_table(tmp_path / "out" / name, partitioning=None).to_pandas() for name in NAMES])
    assert f"mean log-likelihood: {mean.log_prob.mean():.4f}" in result.stdout


def test_a_model_of_a_table_and_a_tolerance(models, folder, tmp_path):
    (folder / "numbers.npy").unlink()
    done("score", models / "table", folder, "--out", tmp_path / "out", "--tol", 1e-3, "--with-error", "--contributions")
    read = parquet.read_table(tmp_path / "out/day=1/part-0.parquet", partitioning=None).to_pandas()
    rows = pd.read_parquet(folder / "day=1/part-0.parquet", partitioning=None)
    expected = jkoflow.load(models / "table").log_prob(rows, tol=1e-3)
    np.testing.assert_allclose(read.log_prob, expected, atol=2e-3)
    assert (read.error <= 1e-3).all()
    assert {"surprise_kind", "surprise_x", "surprise_rings"} <= set(read.columns)


def test_folders_give_columns(models, folder, tmp_path):
    (folder / "numbers.npy").unlink()
    done("score", models / "given", folder, "--out", tmp_path / "out")
    flow = jkoflow.load(models / "given")
    for day in (1, 2):
        read = parquet.read_table(tmp_path / f"out/day={day}/part-0.parquet", partitioning=None).to_pandas()
        rows = pd.read_parquet(folder / f"day={day}/part-0.parquet", partitioning=None)
        expected = flow.log_prob(rows.assign(day=day))
        np.testing.assert_allclose(read.log_prob, expected.numpy(), rtol=1e-5)
        assert "day" not in read.columns


def test_what_is_done_is_skipped_and_what_has_changed_is_scored_again(models, folder, tmp_path):
    out, same = tmp_path / "out", ("score", models / "plain", folder, "--out", tmp_path / "out")
    done(*same)
    first = stamps(out)
    os.utime(folder / "day=1/part-0.parquet")  # the same content
    assert "files: 0 scored, 5 done before" in done(*same).stdout
    assert stamps(out) == first
    kept = (folder / "day=1/more.csv").stat()
    text = (folder / "day=1/more.csv").read_text()
    (folder / "day=1/more.csv").write_text(text[:-2] + ("3" if text[-2] == "2" else "2") + "\n")  # of the same size
    os.utime(folder / "day=1/more.csv", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    result = done(*same)
    assert "files: 1 scored, 4 done before" in result.stdout
    assert "day=1/more.csv: its input changed" in result.stderr
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:-9]), lambda path: path.unlink()):
        damage(out / "day=2/part-0.parquet")
        assert "files: 1 scored, 4 done before" in done(*same).stdout
    assert "files: 5 scored" in done(*same, "--tol", 1e-2).stdout
    shutil.copy(models / "plain", tmp_path / "moved")
    assert "files: 5 scored" in done("score", tmp_path / "moved", folder, "--out", out).stdout
    assert "files: 0 scored" in done(*same).stdout  # it is the same model
    flow = jkoflow.load(models / "plain")
    flow.eval_num_steps = 17
    flow.save(tmp_path / "moved")
    result = done("score", tmp_path / "moved", folder, "--out", out)
    assert "files: 5 scored" in result.stdout
    assert "numbers.npy: the model changed" in result.stderr


def test_a_bad_file_does_not_stop_the_others(models, folder, tmp_path):
    (folder / "day=1/part-0.parquet").write_bytes(b"PAR1 and nothing else")
    table(5).drop(columns="x").to_csv(folder / "short.csv", index=False)
    result = cli("score", models / "plain", folder, "--out", tmp_path / "out")
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in errors] == ["day=1/part-0.parquet", "short.csv"]
    assert "lacks the column x" in errors[1]
    assert parts(tmp_path / "out") == [name for name in NAMES if name != "day=1/part-0.parquet"]


def test_leftovers_of_a_killed_process_go_and_its_files_are_scored(models, folder, tmp_path):
    (tmp_path / "out/day=1").mkdir(parents=True)
    left = tmp_path / "out/day=1/.part-0.parquet.abc.tmp"
    left.write_bytes(b"half")
    done("score", models / "plain", folder, "--out", tmp_path / "out")
    assert parts(tmp_path / "out") == NAMES


KILLED = """
import os, signal
from jkoflow.cli import main
from jkoflow.cli.score_pieces import Scorer
from jkoflow.data.readers import pieces
pieces.ROWS = 40
kept, calls = Scorer._count, []
def count(self, *rest):
    kept(self, *rest)
    calls.append(None)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
Scorer._count = count
main()
"""


def test_a_process_that_is_killed_within_a_file(models, folder, tmp_path):
    arguments = ["score", str(models / "plain"), str(folder), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [name for name in parts(tmp_path / "out") if not Path(name).name.startswith(".")] == NAMES[:1]
    assert any(name.endswith(".tmp") for name in parts(tmp_path / "out"))
    before = stamps(tmp_path / "out")[NAMES[0]]
    assert "files: 4 scored, 1 done before" in done(*arguments).stdout
    assert parts(tmp_path / "out") == NAMES
    assert stamps(tmp_path / "out")[NAMES[0]] == before
    done("score", models / "plain", folder, "--out", tmp_path / "whole")
    for name in NAMES:
        assert parquet.read_table(tmp_path / "out" / name).equals(parquet.read_table(tmp_path / "whole" / name))


def test_a_file_that_another_process_holds_is_left_to_it(models, folder, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", ".numbers.npy.parquet.lock"):
        result = done("score", models / "plain", folder, "--out", tmp_path / "out")
    assert "files: 4 scored, 0 done before, 1 left to other processes" in result.stdout
    assert f"numbers.npy: left to process {os.getpid()}" in result.stderr
    assert "files: 1 scored, 4 done before" in done("score", models / "plain", folder, "--out", tmp_path / "out").stdout


def test_workers_share_the_files(models, folder, tmp_path):
    done("score", models / "plain", folder, "--out", tmp_path / "one")
    result = done("score", models / "plain", folder, "--out", tmp_path / "out", "--workers", 2)
    assert "files: 5 scored, 0 done before\n" in result.stdout
    assert multiprocessing.active_children() == []
    for name in NAMES:
        assert parquet.read_table(tmp_path / "out" / name).equals(parquet.read_table(tmp_path / "one" / name))


def test_outputs_that_cannot_be_meant_are_refused(models, folder, tmp_path):
    score = ("score", models / "plain", folder, "--out")
    assert "is in" in refused(*score, folder)
    assert "is in" in refused(*score, folder / "scores")
    (tmp_path / "file").touch()
    assert "it is a file" in refused(*score, tmp_path / "file")
    assert "--split is for one table" in refused(*score, tmp_path / "out", "--split", "test")
    assert "holds no files" in refused("score", models / "plain", models, "--out", tmp_path / "out")
    assert "--workers" in refused(
        "score", models / "plain", folder / "numbers.npy", "--out", tmp_path / "x.npy", "--workers", 2
    )
    shutil.copytree(folder, tmp_path / "copy")
    result = cli(*score, tmp_path / "copy")
    assert result.exit_code == 2
    assert "holds something else than scores of jkoflow" in result.stderr
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "copy/day=1/part-0.parquet", partitioning=None), table(150, 1)
    )
    record = json.loads(parquet.read_schema(tmp_path / "copy/numbers.npy.parquet").metadata[KEY.encode()])
    assert record.keys() == {"model", "asked", "version", "input"}


CASES = [(".parquet", ()), (".csv", ()), (".npy", ()), (".npy", ("--tol", 1e-3)), (".csv", ("--all-columns",))]


@pytest.mark.parametrize(("suffix", "options"), [*CASES, (".parquet", ("--tol", 1e-3, "--with-error"))])
def test_pieces_are_scored_as_the_whole(models, tmp_path, suffix, options, monkeypatch):
    frame, data = table(500, 3), tmp_path / f"data{suffix}"
    frame.loc[400, "x"] = 40.0
    frame["part"] = np.where(np.arange(500) < 300, np.nan, 7)  # nothing but missing values at first
    frame.to_csv(data, index=False) if suffix == ".csv" else frame.to_parquet(data)
    if suffix == ".npy":
        np.save(data, frame[["x", "y"]].to_numpy())
    out = ".csv" if suffix == ".csv" else ".parquet"
    arguments = ("score", models / "plain", data, *options, "--out")
    whole = done(*arguments, tmp_path / f"whole{out}")
    monkeypatch.setattr(command, "LARGE", 0)
    monkeypatch.setattr(pieces, "ROWS", 64)
    found = done(*arguments, tmp_path / f"pieces{out}")
    a, b = (
        (pd.read_csv if out == ".csv" else pd.read_parquet)(tmp_path / f"{name}{out}") for name in ("whole", "pieces")
    )
    assert list(a.columns) == list(b.columns)
    np.testing.assert_allclose(a.log_prob, b.log_prob, atol=2e-3 if options[:1] == ("--tol",) else 0, rtol=1e-6)
    exact = [name for name in a.columns if name not in ("log_prob", "error")]
    pd.testing.assert_frame_equal(a[exact], b[exact])
    if not options:
        without = [line for line in whole.stdout.splitlines() if not line.startswith("written")]
        assert without == [line for line in found.stdout.splitlines() if not line.startswith("written")]
    assert "row 400" in found.stdout  # the least likely, under its number in the file


def test_a_text_file_whose_pieces_tell_different_things_is_read_as_a_whole(models, tmp_path, monkeypatch):
    frame = table(200)
    frame["when"] = [
        *[f"0{1 + row % 9}/04/2020" for row in range(150)],
        *["25/04/2020"] * 50,
    ]  # day first: told at the end
    frame.to_csv(tmp_path / "data.csv", index=False)
    score = ("score", models / "table", tmp_path / "data.csv", "--out")
    done(*score, tmp_path / "whole.csv")
    monkeypatch.setattr(command, "LARGE", 0)
    monkeypatch.setattr(pieces, "ROWS", 64)
    assert "read as a whole, since its rows differ in column 'when'" in done(*score, tmp_path / "out.csv").stderr
    assert (tmp_path / "out.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_a_bad_row_deep_in_a_file_leaves_no_output(models, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "LARGE", 0)
    monkeypatch.setattr(pieces, "ROWS", 64)
    frame = table(300)
    frame.loc[250, "y"] = np.nan
    frame.to_parquet(tmp_path / "data.parquet")
    line = refused("score", models / "plain", tmp_path / "data.parquet", "--out", tmp_path / "out.parquet")
    assert "NaN in row 58" in line
    assert "counting begins at row 192 of the file" in line
    assert parts(tmp_path) == ["data.parquet"]


@pytest.mark.parametrize("model", ["plain", "table", "given"])
def test_samples_are_the_same_in_pieces_and_in_the_files_of_a_folder(models, tmp_path, model, monkeypatch):
    arguments = ["sample", models / model, "-n", 250, "--seed", 3]
    if model == "given":
        pd.DataFrame({"day": [0, 2]}).to_csv(tmp_path / "days.csv", index=False)
        arguments += ["--context", tmp_path / "days.csv"]
    monkeypatch.setattr(sample_command, "CHUNK", 50)
    monkeypatch.setattr(sample_command, "PART", 100)
    for name in ("one.parquet", "one.csv", "folder"):
        done(*arguments, "--out", tmp_path / name)
    one, text = pd.read_parquet(tmp_path / "one.parquet"), pd.read_csv(tmp_path / "one.csv")
    count = 500 if model == "given" else 250
    assert parts(tmp_path / "folder") == [f"part-{number:05d}.parquet" for number in range(-(-count // 100))]
    pd.testing.assert_frame_equal(
        pd.concat(map(pd.read_parquet, sorted((tmp_path / "folder").iterdir())), ignore_index=True), one
    )
    pd.testing.assert_frame_equal(text, one, check_exact=False, check_dtype=False, rtol=1e-5)
    if model == "given":
        assert one.day.tolist() == [0] * 250 + [2] * 250
    assert "it holds part-0000" in refused(*arguments, "--out", tmp_path / "folder")
    if model == "plain":
        drawn = torch.cat(
            [jkoflow.load(models / model).rsample(50, generator=g) for g in [torch.Generator().manual_seed(3)] * 5]
        )
        assert np.array_equal(one.to_numpy(), drawn.numpy())
        done(*arguments, "--out", tmp_path / "one.npy")
        assert np.array_equal(np.load(tmp_path / "one.npy"), drawn.numpy())
