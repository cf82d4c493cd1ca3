"""What a shell completes, the examples in the help, and the help itself."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from jkoflow import experiments
from jkoflow.cli import completion, examples
from jkoflow.cli.commands import app
from jkoflow.data import BUILT_IN
from jkoflow.training.run_directory import CONFIG_FILE

COMMANDS = typer.main.get_command(app).commands


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A working directory with tables, settings and runs, some of them in folders."""
    for name in ("rows.csv", "rows.parquet", "notes.md", "small.toml", "tables/more.npy", ".hidden.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for run in ("first", "runs/rose", "runs/gas", "runs/deep/er"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / CONFIG_FILE).touch()
    (tmp_path / "runs/empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def completed(words):
    """What bash is offered for the last of some words."""
    env = {"_JKOFLOW_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    result = CliRunner().invoke(app, [], prog_name="jkoflow", env=env)
    assert result.exit_code == 0, result.output
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("jkoflow tra", ["train"]),
        ("jkoflow train ro", ["rose", "rows.csv", "rows.parquet"]),
        ("jkoflow train ", [*BUILT_IN, "rows.csv", "rows.parquet"]),
        ("jkoflow train tables/", ["tables/more.npy"]),
        ("jkoflow train .h", [".hidden.csv"]),
        ("jkoflow train ./ro", ["./rows.csv", "./rows.parquet"]),
        ("jkoflow train rose --config ", ["small.toml"]),
        ("jkoflow train rose --optimizer m", ["muon"]),
        ("jkoflow train rose --tens", ["--tensorboard"]),
        ("jkoflow train --resume ", ["first", "runs/gas", "runs/rose"]),
        ("jkoflow report ", ["first", "runs/gas", "runs/rose"]),
        ("jkoflow report r", ["runs/gas", "runs/rose"]),
        ("jkoflow report runs/r", ["runs/rose"]),
        ("jkoflow report runs/deep/", ["runs/deep/er"]),
        ("jkoflow report notes", []),  # then the shell offers all files
        ("jkoflow report missing/folder/", []),
        ("jkoflow score first ro", ["rose", "rows.csv", "rows.parquet"]),
        ("jkoflow sample fi", ["first"]),
        ("jkoflow inspect r", ["rows.csv", "rows.parquet"]),
        ("jkoflow reproduce ", experiments.names()),
        ("jkoflow reproduce rose --config sm", ["small.toml"]),
        ("jkoflow score first rows.csv --split t", ["train", "test"]),
    ],
)
def test_what_is_offered(files, words, offered):
    assert completed(words) == offered


def test_a_folder_that_cannot_be_read_offers_nothing(files, monkeypatch):
    monkeypatch.setattr(completion.Path, "iterdir", lambda path: (_ for _ in ()).throw(PermissionError()))
    assert completion.tables("") == completion.runs("") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_after_the_installation(files, tmp_path):
    program = tmp_path / "bin/jkoflow"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m jkoflow "$@"\n')
    program.chmod(0o755)
    script = (
        "jkoflow --install-completion\n"
        "source ~/.bash_completions/jkoflow.sh\n"
        "COMP_WORDS=(jkoflow train mo) COMP_CWORD=2\n"
        "_jkoflow_completion jkoflow\n"
        'printf "offered %s\\n" "${COMPREPLY[@]}"\n'
        "complete -p jkoflow\n"
    )
    (tmp_path / "try.sh").write_text(script)
    env = {**os.environ, "HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(["bash", "try.sh"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "bash completion installed" in done.stdout, done.stderr
    assert "offered moons" in done.stdout
    assert "-o default -F _jkoflow_completion jkoflow" in done.stdout
    assert "bash_completions/jkoflow.sh" in (tmp_path / ".bashrc").read_text()


def test_every_command_has_examples_and_they_are_command_lines():
    assert set(examples.EXAMPLES) == set(COMMANDS)
    for name, lines in examples.EXAMPLES.items():
        assert lines, name
        for line in lines:
            program, command, *words = shlex.split(line.partition(" | ")[0])
            assert (program, command) == ("jkoflow", name)
            with COMMANDS[name].make_context(name, words):  # options that do not exist would be refused
                pass


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_eighty_columns_and_shows_the_examples_line_by_line(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, [*filter(None, [name]), "--help"], prog_name="jkoflow").stdout.splitlines()
    assert max(map(len, shown)) <= 80
    for line in examples.EXAMPLES.get(name, ()):
        assert f"    {line}" in shown
    if not name:  # what the commands do is not cut short
        assert not any(line.endswith("...") for line in shown if not line.startswith("Usage"))
