"""What a run leaves on disk: settings as TOML, and one reader that names what is damaged and the fix."""

import dataclasses
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jkoflow
from jkoflow import TrainConfig
from jkoflow.checkpoint import CheckpointError
from jkoflow.cli import settings
from jkoflow.data import TableOptions, split_rows
from jkoflow.training import train
from jkoflow.training.run_directory import FILES, RunDirectory, config_toml
from jkoflow.training.state import RunError
from jkoflow.training.toml import dumps

SMALL = TrainConfig(hidden=(8,), batch_size=40, iterations_per_block=3, max_blocks=1, guard_rows=20, val_rows=20)

# ----------------------------------------------------------------------------------------------------- settings as TOML

SCALARS = st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans()


@given(st.dictionaries(st.text(), SCALARS | st.lists(SCALARS, max_size=4), max_size=6))
def test_any_table_reads_back_equal(table):
    found = tomllib.loads(dumps(table))
    assert found == table
    assert repr(found) == repr(table)  # 1, 1.0 and True are equal in Python, and so are 0.0 and -0.0


@given(st.text(st.characters(max_codepoint=0x2FF, exclude_categories=["Cs"]) | st.sampled_from('"\\\r\n\x7f\u2028😀')))
def test_quotes_and_control_characters_read_back_equal(text):
    assert tomllib.loads(dumps({text: text})) == {text: text}
    assert dumps({"key": text}).count("\n") == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('a"b\\c\n\t\x00\x7fé', '"a\\"b\\\\c\\n\t\\u0000\\u007fé"'),
        (1e22, "1e+22"),
        (5.0, "5.0"),
        (1e-05, "1e-05"),
        (-0.0, "-0.0"),
        (float("inf"), "inf"),
        (True, "true"),
        (7, "7"),
        ([], "[]"),
        ([128, 128], "[\n    128,\n    128,\n]"),
        (["a,b", "c"], '[\n    "a,b",\n    "c",\n]'),
    ],
)
def test_text_of_a_value(value, text):
    """The text is that of version 0.1, whose runs can be compared line by line."""
    assert dumps({"name": value}) == f"name = {text}\n"
    assert tomllib.loads(f"name = {text}\n") == {"name": value}


def test_nan_reads_back():
    assert np.isnan(tomllib.loads(dumps({"x": float("nan")}))["x"])


def test_keys_are_quoted_where_they_must_be():
    assert dumps({"plain-key_1": 1, "two words": 2, "": 3}) == 'plain-key_1 = 1\n"two words" = 2\n"" = 3\n'


@pytest.mark.parametrize("value", [None, {"a": [1]}, [[1]], [None], b"x", 1j])
def test_what_toml_cannot_hold_is_refused(value):
    with pytest.raises(TypeError, match="name must be a string, a number, a truth value or a list of those"):
        dumps({"name": value})


def test_every_setting_reads_back():
    config = dataclasses.replace(
        SMALL, time_budget=60.0, learning_rate=1e-3, finetune=0.5, activation="softplus(5)", num_steps=3, divide=2,
        first_layer_scale=2.5, memory="2GB",
    )  # fmt: skip
    table = tomllib.loads(config_toml(config, 'C:\\data\\"new".csv', {"context_columns": ["a", "b c"]}).decode())
    assert table.pop("data") == 'C:\\data\\"new".csv'
    assert table.pop("context_columns") == ["a", "b c"]
    assert set(table) == {field.name for field in dataclasses.fields(TrainConfig)}  # none of them is None here
    assert TrainConfig.from_mapping(table) == config


def test_a_run_needs_no_extra(tmp_path):
    """What the extras bring is not there: training into a directory, reading it and resuming still work."""
    code = (
        "import sys\n"
        "for name in ('typer', 'rich', 'click', 'pandas', 'pyarrow', 'matplotlib', 'tomli_w', 'sklearn', 'h5py',\n"
        "             'scipy', 'torchdiffeq', 'zuko', 'jax'):\n"
        "    sys.modules[name] = None\n"
        "import torch\n"
        "from jkoflow import TrainConfig, train\n"
        "from jkoflow.training.run_directory import RunDirectory\n"
        f"config = TrainConfig.from_mapping({SMALL.to_mapping()})\n"
        "rows, run = torch.randn(100, 2), sys.argv[1]\n"
        "train(rows, config, run_dir=run)\n"
        "train(rows, config, run_dir=run, resume=True)\n"
        "assert RunDirectory(run).settings().config == config\n"
    )
    path = os.pathsep.join([str(Path(jkoflow.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The files of a finished conditional run."""
    path = tmp_path_factory.mktemp("contents") / "run"
    rows = split_rows(
        torch.randn(100, 2, generator=torch.Generator().manual_seed(0)),
        features=("x", "y"),
    ).condition_on(["y"])
    train(rows, SMALL, run_dir=path, source="rows.csv")
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def run(contents, tmp_path):
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return RunDirectory(tmp_path)


READERS = {
    "config.toml": "table",
    "metrics.json": "metrics",
    "history.jsonl": "history",
    "preview.npz": "preview",
    "environment.json": "environment",
    "model.safetensors": "model",
}


def test_everything_reads_back(run):
    assert run.is_finished()
    assert run.settings() == ("rows.csv", TableOptions(context_columns=("y",)), SMALL)
    assert run.table() == {"data": "rows.csv", "context_columns": ["y"], **SMALL.to_mapping()}
    assert run.metrics()["n_train"] == 80
    assert {record["event"] for record in run.history()} >= {"iteration", "block", "round"}
    assert "torch" in run.environment()
    assert (run.model().dim, run.model().context_dim) == (1, 1)
    preview = run.preview()
    assert (preview.features, preview.context_features) == (("x",), ("y",))
    assert preview.data.shape == preview.context.shape == (10, 1)


def test_metrics_that_are_added_are_returned_as_they_read_back(run):
    before = run.metrics()
    found = run.add_metrics({"name": "rose", "error": float("nan"), "figures": [{"nll": float("inf")}]})
    assert found == run.metrics()
    assert found == {**before, "name": "rose", "error": None, "figures": [{"nll": None}]}


@pytest.mark.parametrize(("name", "reader"), READERS.items())
def test_a_missing_file_is_named_with_the_fix(run, name, reader):
    (run.path / name).unlink()
    ended = run.is_finished()
    state = "though the run has ended; restore it" if ended else "the run has not ended; resume it with: .* --res"
    assert ended == (name not in ("model.safetensors", "metrics.json"))
    with pytest.raises(CheckpointError, match=f"{name}: no such file, {state}"):
        getattr(run, reader)()


@pytest.mark.parametrize(("name", "reader"), READERS.items())
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_file_is_named_with_the_fix(run, name, reader, damage):
    path = run.path / name
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2 - 1], "noise": b"\xff\x00[}" * 9, "empty": b""}[damage])
    if (name, damage) == ("config.toml", "empty"):  # an empty TOML file is a valid one
        assert run.table() == {}
        return
    with pytest.raises(CheckpointError, match=rf"{name}.*train the run again") as caught:
        getattr(run, reader)()
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_named(run, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CheckpointError, match=r"metrics\.json cannot be read: Permission denied; make it readable"):
        run.metrics()


def test_no_byte_of_the_preview_breaks_its_reader(run):
    """Whichever byte is wrong (here every third): it is told as damage, or it was of no account."""
    path = run.path / "preview.npz"
    whole, told = path.read_bytes(), []
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            run.preview()
        except CheckpointError as error:
            told.append(str(error))
    assert all(f"{path} is damaged: " in text for text in told)
    assert len(told) > len(whole) // 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 3\n", "config.toml is damaged: it does not name the data; start a new run"),
        ("data = 3\n", "it does not name the data"),
        ("data = 'rose'\ncontext_columns = 'y'\n", "context_columns must be a list of names, got 'y'"),
        ("data = 'rose'\ncontext_columns = [1]\n", "context_columns must be a list of names, got [1]"),
        ("data = 'rose'\nseed = 'three'\n", "seed must be int, got 'three'; start a new run"),
        ("data = 'rose'\nhidden = 3\n", "config.toml is damaged"),
        ("data = 'rose'\nnovelty = 3\n", "unknown setting 'novelty'"),
    ],
)
def test_settings_that_are_none_are_refused(run, text, message):
    (run.path / "config.toml").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        run.settings()
    assert message in str(caught.value)
    assert str(caught.value).endswith("; start a new run")


def test_settings_without_their_file(run):
    (run.path / "config.toml").unlink()
    with pytest.raises(CheckpointError, match=r"config\.toml: no such file; restore it, or start a new run"):
        run.settings()


def test_settings_of_version_0_1_are_understood(run):
    (run.path / "config.toml").write_text("data = 'rose'\nstep_size = 0.25\n")
    config = run.settings().config
    trained = TrainConfig(jko_step=0.25, optimizer="adam", weight_decay=0.0, first_layer_scale=1.0, divide=1)
    trained = dataclasses.replace(trained, initial_map="auto-0.1")
    assert config == trained  # by which it trained
    assert run.table() == {"data": "rose", "step_size": 0.25}  # as it stands there


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("test_nll", "low", "test_nll must be a number, got 'low'"),
        ("blocks", 1.5, "blocks must be a whole number, got 1.5"),
        ("movements", [None], "movements must be a list of numbers, got [None]"),
        ("rounds", [{"round": 0}], "rounds is not what a run writes"),
        ("seen", 3, "seen is not what a run writes"),
        ("experiment", "rose", "it has experiment and no reproduced_nll, reproduced_nll_stderr"),
        ("energy_distance_threshold", {}, "energy_distance_threshold is not what a run writes"),
    ],
)
def test_metrics_of_the_wrong_kind_are_refused(run, name, value, message):
    metrics = run.metrics()
    (run.path / "metrics.json").write_text(json.dumps({**metrics, name: value}))
    with pytest.raises(CheckpointError) as caught:
        run.metrics()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": np.zeros((5, 2))}, "it has no features"),
        ({"features": np.array(["x"])}, "it has no data"),
        ({"data": np.zeros((5, 1)), "features": np.array(["x"]), "context": np.zeros((5, 1))}, "no context_features"),
        ({"data": np.zeros((0, 1)), "features": np.array(["x"])}, "expected data of shape"),
        ({"data": np.zeros((5, 1)), "features": np.array("x")}, "expected a list of names"),
        ({"data": np.array([["x"]]), "features": np.array(["x"])}, "could not convert string to float"),
    ],
)
def test_a_preview_of_the_wrong_kind_is_refused(run, arrays, message):
    np.savez(run.path / "preview.npz", **arrays)
    with pytest.raises(CheckpointError, match=f"preview.npz is damaged: .*{message}.*; restore it, or train"):
        run.preview()


def test_a_preview_of_one_row_is_enough_to_name_the_columns(run):
    np.savez(run.path / "preview.npz", data=np.zeros((1, 2)), features=np.array(["x", "y"]))
    assert run.preview().features == ("x", "y")


# ------------------------------------------------------------------------------------------------------ a new directory


def test_the_names_of_all_files_are_known(contents):
    assert contents.keys() == {*FILES} - {"state.safetensors", "report.html"}


@pytest.mark.parametrize("names", [[name] for name in FILES] + [["history.jsonl", "report.html"]])
def test_files_of_somebody_else_are_not_overwritten(names, tmp_path):
    for name in names:
        (tmp_path / name).write_text("[tool]\nmine = true\n")
    what = "it" if len(names) == 1 else "them"
    for start, fix in (
        (lambda: train(torch.randn(100, 2), SMALL, run_dir=tmp_path), "choose another directory"),
        (lambda: settings.for_start("rose", tmp_path, settings.Given()), "choose another --out"),
    ):
        with pytest.raises(RunError) as caught:
            start()
        told = f"{tmp_path} holds {', '.join(names)}, a run would overwrite {what}; {fix}, or move {what} away"
        assert str(caught.value) == told
    assert {path.name for path in tmp_path.iterdir()} == {*names}
    assert all((tmp_path / name).read_text() == "[tool]\nmine = true\n" for name in names)


def test_a_directory_with_other_files_is_welcome(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.toml").write_text("mine")
    assert settings.for_start("rose", tmp_path, settings.Given())[0] == tmp_path
    train(torch.randn(100, 2), SMALL, run_dir=tmp_path)
    assert RunDirectory(tmp_path).is_finished()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("lost", [None, "model.safetensors", "metrics.json", "preview.npz"])
def test_a_run_is_called_a_run(run, lost):
    if lost is not None:
        (run.path / lost).unlink()
    with pytest.raises(RunError, match="already holds a run; resume it, or choose another directory"):
        train(torch.randn(100, 2), SMALL, run_dir=run.path)
    with pytest.raises(RunError, match="already holds a run; add --resume to go on with it, or choose another --out"):
        settings.for_start("rose", run.path, settings.Given())
