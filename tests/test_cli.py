"""The command line: what each command does when everything is right."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import jkoflow
from jkoflow import cli
from jkoflow.cli import commands, console, training_run
from jkoflow.cli.commands import app
from jkoflow.data import load_dataset
from jkoflow.environment import describe
from jkoflow.flow import JKOFlow
from jkoflow.training.interruption import Interrupted

SMALL = """
hidden = [16]
batch_size = 100
iterations_per_block = 20
max_blocks = 3
guard_rows = 40
"""


def run_cli(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def python(*args, **options):
    """The arguments of subprocess that run a Python which finds this jkoflow."""
    path = os.pathsep.join([str(Path(jkoflow.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        "args": [sys.executable, *map(str, args)],
        "env": {**os.environ, "PYTHONPATH": path},
        "text": True,
        **options,
    }


@pytest.fixture
def no_report(monkeypatch):
    """Training without its report, which takes longer than a small training."""
    monkeypatch.setattr(training_run, "write_report", lambda run: run / "report.html")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A directory with data, settings and a finished run of two blocks."""
    path = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    rows = rng.normal([20, -3], [4, 0.5], (600, 2))
    rows[:, 1] += 0.1 * rows[:, 0]
    pd.DataFrame(rows, columns=["warm", "wide"]).to_csv(path / "rows.csv", index=False)
    (path / "small.toml").write_text(SMALL)
    result = run_cli(
        *("train", path / "rows.csv", "--out", path / "run", "--config", path / "small.toml", "--blocks", 2),
        *("--seed", 5),
    )
    assert result.exit_code == 0, result.output
    (path / "train.txt").write_text(result.stdout)
    return path


def test_train_leaves_a_run_with_report_and_prints_the_results(work):
    names = {file.name for file in (work / "run").iterdir()}
    assert names == {
        "config.toml",
        "environment.json",
        "history.jsonl",
        "metrics.json",
        "model.safetensors",
        "preview.npz",
        "report.html",
    }
    metrics = json.loads((work / "run/metrics.json").read_text())
    output = (work / "train.txt").read_text()
    assert "480 rows to train on, 60 to choose by, 60 to report on, 2 columns" in output
    assert "block 1: 20 iterations" in output
    assert "block 2: validation NLL" in output
    assert f"{metrics['test_nll']:.4f} ±" in output
    assert f"report: {work / 'run/report.html'}" in output
    assert f"{metrics['test_bits_per_dim']:.4f} ±" in output
    assert f"{metrics['energy_distance']:.2e} ±" in output
    page = (work / "run/report.html").read_text()
    for expected in ("bits per column", "MMD², median bandwidth", "Energy distance", "exact inverse"):
        assert expected in page, expected
    assert "<html" in (work / "run/report.html").read_text()


def test_flags_win_over_the_file_and_the_file_over_the_defaults(work):
    config = tomllib.loads((work / "run/config.toml").read_text())
    assert config["max_blocks"] == 2  # flag; 3 in the file
    assert config["seed"] == 5  # flag
    assert config["hidden"] == [16]  # file
    assert config["jko_step"] == 0.5  # default
    assert config["data"] == str(work / "rows.csv")


def test_an_optimizer_is_chosen_or_refused(work, tmp_path, no_report):
    common = ("train", work / "rows.csv", "--config", work / "small.toml", "--blocks", 1)
    assert run_cli(*common, "--out", tmp_path / "run", "--optimizer", "soap").exit_code == 0
    assert tomllib.loads((tmp_path / "run/config.toml").read_text())["optimizer"] == "soap"
    result = run_cli(*common, "--out", tmp_path / "other", "--optimizer", "sgd")
    assert result.exit_code != 0
    assert "optimizer must be one of adam, muon, soap, got 'sgd'" in result.output
    assert not (tmp_path / "other").exists()


def test_fine_tuning_is_asked_for_and_told(work, tmp_path, no_report):
    settings = tmp_path / "small.toml"
    settings.write_text(SMALL)
    run = tmp_path / "tuned"
    result = run_cli(
        "train", work / "rows.csv", "--out", run, "--config", settings, "--blocks", 2, "--finetune", 0.5, "--seed", 5
    )
    assert result.exit_code == 0, result.output
    assert tomllib.loads((run / "config.toml").read_text())["finetune"] == 0.5
    assert "round 2, finetune: 2 blocks to train together" in result.output
    assert "all blocks: 20 iterations" in result.output
    assert "all blocks: validation NLL" in result.output
    result = run_cli("train", work / "rows.csv", "--out", tmp_path / "none", "--finetune", 1)
    assert result.exit_code == 2
    assert "finetune must be at least 0 and less than 1, got 1" in result.output


def test_the_run_records_its_environment(work):
    recorded = json.loads((work / "run/environment.json").read_text())
    assert recorded["torch"] == torch.__version__
    assert recorded.keys() == describe().keys()


def test_a_config_file_may_name_the_data(work, tmp_path, no_report):
    run = tmp_path / "again"
    result = run_cli("train", "--config", work / "run/config.toml", "--out", run)
    assert result.exit_code == 0, result.output
    first, again = (json.loads((path / "metrics.json").read_text()) for path in (work / "run", run))
    assert again["test_nll"] == first["test_nll"]


def test_one_dimension_trains(work, tmp_path):
    np.save(tmp_path / "line.npy", np.random.default_rng(1).gamma(3, size=300))
    result = run_cli(
        "train", tmp_path / "line.npy", "--out", tmp_path / "run", "--config", work / "small.toml", "--blocks", 1
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run/metrics.json").read_text())["dim"] == 1
    assert (tmp_path / "run/report.html").exists()


def test_time_budget_and_built_in_data(work, tmp_path, no_report):
    result = run_cli(
        *("train", "moons", "--out", tmp_path / "run", "--config", work / "small.toml", "--blocks", 1),
        *("--time-budget", 1.5),
    )
    assert result.exit_code == 0, result.output
    assert tomllib.loads((tmp_path / "run/config.toml").read_text())["data"] == "moons"
    assert tomllib.loads((tmp_path / "run/config.toml").read_text())["time_budget"] == 1.5


def test_rounds_are_flags_and_are_told(work, tmp_path, no_report):
    result = run_cli(
        *("train", "moons", "--out", tmp_path / "run", "--config", work / "small.toml", "--seed", 5),
        *("--reparam-rounds", 1, "--refine", 2),
    )
    assert result.exit_code == 0, result.output
    config = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert (config["reparam_rounds"], config["refine"]) == (1, 2)
    rounds = json.loads((tmp_path / "run/metrics.json").read_text())["rounds"]
    assert [record["kind"] for record in rounds] == ["build", "reparametrize", "refine"]
    assert "round 2, reparametrize: 3 blocks to train again" in result.stdout
    assert "round 3, refine: 6 blocks to train again" in result.stdout
    assert f"build: validation NLL {rounds[0]['val_nll']:.4f}" in result.stdout


def test_gasturbine_shows_its_attribution(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_run, "train_flow", stop)
    result = run_cli("train", "gasturbine", "--out", tmp_path / "run")
    assert "CC BY 4.0" in result.stdout
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted before the run began\n"


@pytest.mark.parametrize("form", ["train --resume RUN", "train DATA --out RUN --resume"])
def test_resuming_a_finished_run_shows_it_again(work, form, monkeypatch):
    pages = []
    monkeypatch.setattr(training_run, "write_report", pages.append)
    words = {"DATA": work / "rows.csv", "RUN": work / "run"}
    result = run_cli(*(words.get(word, word) for word in form.split()))
    assert result.exit_code == 0, result.output
    assert "already ended" in result.output
    assert "test NLL" in result.output
    assert pages == [work / "run"]


def test_ctrl_c_tells_how_to_resume_and_resuming_works(work, tmp_path, monkeypatch, no_report, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have it ignore
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    settings = tmp_path / "saving.toml"
    settings.write_text(SMALL + "save_seconds = 0\n")
    run = tmp_path / "a run"
    update = console.TrainingLines.update

    def press_ctrl_c(self, block, iteration, terms):
        update(self, block, iteration, terms)
        if (block, iteration) == (1, 11):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(console.TrainingLines, "update", press_ctrl_c)
        result = run_cli("train", work / "rows.csv", "--out", run, "--config", settings, "--seed", 5)
    assert result.exit_code == 130
    assert result.stderr == f"error: interrupted by SIGINT; continue with: jkoflow train --resume '{run}'\n"
    assert (run / "state.safetensors").exists()
    assert not (run / "model.safetensors").exists()

    result = run_cli("train", "--resume", run)
    assert result.exit_code == 0, result.output
    assert "block 1:" not in result.stdout  # it was finished before
    assert not (run / "state.safetensors").exists()
    undisturbed = run_cli("train", work / "rows.csv", "--out", tmp_path / "b", "--config", settings, "--seed", 5)
    assert undisturbed.exit_code == 0
    resumed, straight = (json.loads((path / "metrics.json").read_text()) for path in (run, tmp_path / "b"))
    assert resumed["test_nll"] == straight["test_nll"]


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_score_writes_the_log_densities_in_file_order(work, tmp_path, suffix):
    out = tmp_path / f"scores{suffix}"
    result = run_cli("score", work / "run", work / "rows.csv", "--out", out)
    assert result.exit_code == 0, result.output
    rows = torch.from_numpy(pd.read_csv(work / "rows.csv").to_numpy(np.float32))
    with torch.no_grad():
        expected = JKOFlow.load(work / "run").log_prob(rows).numpy()
    if suffix == ".npy":
        scores = np.load(out)
    else:
        frame = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
        assert list(frame.columns) == ["log_prob", "outside"]
        scores = frame["log_prob"].to_numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    mean, error = expected.mean(), expected.std(ddof=1) / len(expected) ** 0.5
    assert "rows: 600" in result.stdout
    assert f"mean log-likelihood: {mean:.4f} ± {error:.4f} nats" in result.stdout
    assert f"{-mean / (2 * np.log(2)):.4f} bits per column" in result.stdout


def test_score_of_the_test_split_is_the_metric_of_the_run(work, tmp_path):
    out = tmp_path / "scores.npy"
    result = run_cli("score", work / "run", work / "rows.csv", "--out", out, "--split", "test")
    assert result.exit_code == 0, result.output
    metrics = json.loads((work / "run/metrics.json").read_text())
    scores = np.load(out).astype(np.float64)
    assert len(scores) == 60
    assert -scores.mean() == pytest.approx(metrics["test_nll_data_units"], abs=1e-3)
    assert scores.std(ddof=1) / 60**0.5 == pytest.approx(metrics["test_nll_stderr"], rel=1e-2)
    standardised = re.search(r"on standardised columns: (\S+)", result.stdout)
    assert standardised is not None
    assert -float(standardised[1]) == pytest.approx(metrics["test_nll"], abs=1e-3)


def test_score_compares_rows_with_samples(work, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    arguments = ("score", work / "run", work / "rows.csv", "--out", tmp_path / "s.npy", "--two-sample")
    result = run_cli(*arguments)
    assert result.exit_code == 0, result.output
    for name in ("MMD², median bandwidth", "MMD², bandwidth 1", "energy distance"):
        assert re.search(
            rf"^{re.escape(name)}: \S+e-\d+ ± \S+ \(by chance up to \S+e-\d+\)$", result.stdout, re.MULTILINE
        )
    found = re.search(r"classifier accuracy: (\S+) ± (\S+) ", result.stdout)
    assert found is not None
    assert 0.4 < float(found[1]) < 0.8
    np.save(tmp_path / "few.npy", np.ones((3, 2)))
    few = run_cli("score", work / "run", tmp_path / "few.npy", "--out", tmp_path / "s.npy", "--two-sample")
    assert few.exit_code == 2
    assert "needs at least 20 rows, got 3" in few.stderr


def test_score_without_scikit_learn_says_how_to_install_it(work, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = run_cli("score", work / "run", work / "rows.csv", "--out", tmp_path / "s.npy", "--two-sample")
    assert result.exit_code == 2
    assert 'pip install "jkoflow[sklearn]"' in result.stderr
    assert not (tmp_path / "s.npy").exists()


def test_score_finds_the_columns_by_name(work, tmp_path):
    frame = pd.read_csv(work / "rows.csv").head(50)
    frame[["wide", "warm"]].assign(more=1.0).to_csv(tmp_path / "turned.csv", index=False)
    for name, path in (("straight", work / "rows.csv"), ("turned", tmp_path / "turned.csv")):
        assert run_cli("score", work / "run", path, "--out", tmp_path / f"{name}.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "turned.npy"), np.load(tmp_path / "straight.npy")[:50])


@pytest.mark.parametrize("command", ["score", "sample"])
def test_a_preview_of_another_run_is_told(work, tmp_path, command):
    run = tmp_path / "mixed"
    run.mkdir()
    for name in ("model.safetensors", "config.toml"):
        (run / name).write_bytes((work / "run" / name).read_bytes())
    np.savez(run / "preview.npz", data=np.zeros((4, 3)), features=np.array(["a", "b", "c"]))
    out = tmp_path / "s.npy"
    result = run_cli(command, run, *([work / "rows.csv"] if command == "score" else ["-n", 3]), "--out", out)
    assert result.exit_code == 2
    assert "preview.npz names 3 columns and 0 of the context, the flow beside it has 2 and 0" in result.stderr
    assert not out.exists()


def test_score_one_row_and_a_bare_model_file(work, tmp_path):
    np.save(tmp_path / "one.npy", np.array([[20.0, -1.0]]))
    result = run_cli("score", work / "run/model.safetensors", tmp_path / "one.npy", "--out", tmp_path / "s.npy")
    assert result.exit_code == 0, result.output
    assert "±" not in result.stdout
    assert np.load(tmp_path / "s.npy").shape == (1,)


@pytest.mark.parametrize(
    ("bad", "first"),
    [([0, 1, 2], "3 of 3 rows of"), ([2], "(row 2, counting from 0)"), ([1, 2], "(the first is row 1,")],
)
def test_score_leaves_densities_that_are_not_finite_out_of_the_mean_and_names_them(
    work, tmp_path, monkeypatch, bad, first
):
    density = torch.full((3,), -1.5)
    density[bad] = -torch.inf
    monkeypatch.setattr(JKOFlow, "log_prob", lambda self, x, context, num_steps=None: density)
    np.save(tmp_path / "far.npy", np.zeros((3, 2)))
    result = run_cli("score", work / "run", tmp_path / "far.npy", "--out", tmp_path / "s.npy", "--explain", 0)
    assert result.exit_code == 0, result.output
    assert "note: no finite density for " in result.stderr
    assert first in " ".join(result.stderr.split())
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), density.numpy())
    assert f"rows: 3, {3 - len(bad)} of them with a finite density" in result.stdout
    mean = "not finite" if len(bad) == 3 else "-1.5000"
    assert f"mean log-likelihood: {mean}" in result.stdout
    assert "nan" not in result.stdout.lower()


def test_sample_is_seeded_and_in_data_units(work, tmp_path):
    outs = [tmp_path / name for name in ("a.csv", "b.csv", "c.csv")]
    for out, seed in zip(outs, (1, 1, 2), strict=True):
        result = run_cli("sample", work / "run", "-n", 300, "--out", out, "--seed", seed)
        assert result.exit_code == 0, result.output
    a, b, c = (pd.read_csv(out) for out in outs)
    assert list(a.columns) == ["warm", "wide"]
    assert len(a) == 300
    assert a.equals(b)
    assert not a.equals(c)
    assert abs(a["warm"].mean() - 20) < 2


def test_sample_in_several_chunks(work, tmp_path, monkeypatch):
    monkeypatch.setattr("jkoflow.cli.sample.CHUNK", 64)
    assert run_cli("sample", work / "run", "-n", 150, "--out", tmp_path / "s.npy").exit_code == 0
    samples = np.load(tmp_path / "s.npy")
    assert samples.shape == (150, 2)
    assert len(np.unique(samples, axis=0)) == 150


def test_sample_exactly(work, tmp_path, monkeypatch):
    sample, asked = JKOFlow.rsample, []

    def spy(self, *arguments, exact=False, **options):
        asked.append(exact)
        return sample(self, *arguments, exact=exact, **options)

    monkeypatch.setattr(JKOFlow, "rsample", spy)
    for options in ([], ["--exact"]):
        result = run_cli("sample", work / "run", "-n", 50, "--out", tmp_path / "s.npy", *options)
        assert result.exit_code == 0, result.output
    assert asked == [False, True]
    flow, generator = JKOFlow.load(work / "run"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        expected = flow.rsample(50, generator=generator, exact=True)
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), expected.numpy())


def test_report_writes_the_page_again(work):
    page = work / "run/report.html"
    page.unlink(missing_ok=True)
    result = run_cli("report", work / "run")
    assert result.stdout == f"report: {page}\n"
    assert page.exists()


def test_doctor_as_text_and_as_json():
    text = run_cli("doctor")
    assert text.exit_code == 0
    for word in (jkoflow.__version__, torch.__version__, "cpu kernels", "cuda kernels", "instruction set"):
        assert word in text.stdout
    found = json.loads(run_cli("doctor", "--json").stdout)
    assert found == {"event": "result", "command": "doctor", **json.loads(json.dumps(describe()))}


def test_doctor_says_why_a_kernel_is_missing(monkeypatch):
    environment = describe()
    kernels = {"cpu": "no compiler was there", "cuda": None, "isa": None, "isas": [], "threads": 1}
    kernels |= {"bf16x3": "no compiler was there", "openmp": False}
    monkeypatch.setattr(commands, "describe", lambda: {**environment, "kernels": kernels})
    output = run_cli("doctor").stdout
    assert "not available: no compiler was there" in output
    assert "no: the kernels run on one thread" in output


def test_version_and_help():
    assert run_cli("--version").stdout == f"jkoflow {jkoflow.__version__}\n"
    for args in ([], ["--help"]):
        result = run_cli(*args)
        assert result.exit_code == 0
        assert all(
            command in result.stdout
            for command in ("train", "score", "sample", "report", "doctor", "bench", "reproduce")
        )


def test_python_m_jkoflow():
    done = subprocess.run(**python("-m", "jkoflow", "--version", capture_output=True, timeout=120))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"jkoflow {jkoflow.__version__}\n", "")


@pytest.mark.parametrize("options", [["-u"], []])  # unbuffered: the first line fails; buffered: the last flush does
def test_a_reader_that_has_gone_ends_the_command_in_silence(options):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = python(*options, "-m", "jkoflow", "doctor", timeout=120)
        done = subprocess.run(**process, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_without_typer_main_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert 'pip install "jkoflow[cli]"' in capsys.readouterr().err


def test_import_jkoflow_needs_no_extra():
    code = (
        "import sys\n"
        "for name in ('typer', 'rich', 'pandas', 'pyarrow', 'matplotlib'): sys.modules[name] = None\n"
        "import jkoflow, jkoflow.data, jkoflow.environment, jkoflow.cli\n"
        "jkoflow.data.load_dataset('moons'); jkoflow.data.load_dataset('gasturbine')"
    )
    done = subprocess.run(**python("-c", code, capture_output=True, timeout=120))
    assert done.returncode == 0, done.stderr


# what training shows

TERMS = {"loss": 1.5, "potential": 1.0, "divergence": 0.3, "movement": 0.2}
SUMMARY = {"iterations": 80, "val_nll": 1.25, "movement": 0.5, "step_size": 0.5, "seconds": 2.0}


@pytest.mark.parametrize("width", [80, 140])
def test_bars_show_terms_and_results(width):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=width, color_system=None)
    with console.TrainingBars(terminal) as bars:
        bars.start_block(0, 100)
        bars.update(0, 10, TERMS)
        bars._bars.refresh()
        bars.start_block(0, 120)  # the plan has changed
        bars.message("guard: num_steps [3] -> 6")
        bars._bars.refresh()
        bars.end_block(0, SUMMARY)
        bars.start_round(1, "refine", 2)
        bars.start_block(0, 70)
        bars.update(0, 30, TERMS)
        bars._bars.refresh()
    drawn = screen.getvalue()
    assert "10/100" in drawn
    assert "10/120" in drawn
    assert "80/80" in drawn
    assert "round 2, refine: 2 blocks" in drawn
    assert "30/70" in drawn
    assert "guard: num_steps [3] -> 6" in drawn
    assert "loss 1.500" in drawn
    assert ("= 1.000 potential + 0.300 divergence + 0.200 movement" in drawn) == (width == 140)
    assert "NLL 1.250" in drawn


def test_lines_are_few(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    lines = console.TrainingLines()
    lines.start_block(1, 100)
    for iteration in range(10):
        now[0] += 3
        lines.update(1, iteration, TERMS)
    lines.end_block(1, {**SUMMARY, "step_size": None})
    lines.message("done")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "block 2: 100 iterations"
    assert printed[1] == "block 2: 3/100 loss 1.500 = 1.000 potential + 0.300 divergence + 0.200 movement"
    assert len(printed) == 5
    assert printed[-2:] == ["block 2: validation NLL 1.250, movement 0.500, free, 2.0 s", "note: done"]


def test_terminal_gets_a_table_that_fits(monkeypatch, capsys):
    metrics = {
        "test_nll": 1.25, "test_nll_stderr": 0.1, "test_nll_data_units": 2.0, "eval_num_steps": 3, "blocks": 12,
        "inversion_error_mean": 1e-5, "inversion_error_max": 1e-4, "movements": [0.5] * 12, "guard_events": 0,
        "train_seconds": 1.0, "n_train": 10, "dim": 2,
    }  # fmt: skip
    console.show_metrics(metrics)
    plain = capsys.readouterr().out.splitlines()
    assert f"movements                       {' '.join(['0.500'] * 12)}" in plain  # in a pipe: as long as it is
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    console.show_metrics(metrics)
    drawn = capsys.readouterr().out
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in drawn.splitlines()]
    assert drawn.startswith("\x1b[2mtest NLL, standardised columns\x1b[0m")  # names are dim
    assert max(map(len, lines)) <= 60
    assert len(lines) > len(plain)  # what does not fit goes on below
    text = " ".join("".join(lines).split())
    for line in plain:
        assert line.split("  ")[0] in text
    assert sum(line.count("0.500") for line in lines) == 12


def test_results_that_are_not_to_be_trusted_are_said_so(capsys):
    metrics = {
        "test_nll": None, "test_nll_stderr": 0.1, "test_nll_data_units": 2.0, "eval_num_steps": 3, "blocks": 1,
        "inversion_error_mean": 1e-5, "inversion_error_max": 1e-4, "movements": [0.5], "guard_events": 0,
        "train_seconds": 1.0, "n_train": 10, "dim": 2, "test_nll_converged": False,
    }  # fmt: skip
    console.show_metrics(metrics)
    output = capsys.readouterr()
    assert "not finite" in output.out
    assert "do not trust it" in " ".join(output.out.split())


def test_load_dataset_of_the_test_file_is_what_was_trained_on(work):
    data = load_dataset(work / "rows.csv", seed=5)
    with np.load(work / "run/preview.npz") as preview:
        np.testing.assert_array_equal(preview["data"], data.test.numpy())
        assert tuple(preview["features"]) == data.features


# a first look


def test_demo_trains_twice_and_says_where_the_reports_are(tmp_path, monkeypatch, no_report):
    monkeypatch.chdir(tmp_path)
    result = run_cli("demo", "--seconds", 4)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    for name in ("rose", "gasturbine"):
        run = tmp_path / "runs/demo" / name
        assert f"  {run / 'report.html'}" in lines
        assert tomllib.loads((run / "config.toml").read_text())["time_budget"] == 2
        assert JKOFlow.load(run).dim == (2 if name == "rose" else 11)
    again = run_cli("demo")
    assert again.exit_code == 2
    assert "already holds a run; open its report.html, or choose another --out" in again.stderr
    events = run_cli("demo", "--seconds", 4, "--out", "other", "--json").stdout.splitlines()
    result = json.loads(events[-1])
    assert [found["run"] for found in result["runs"]] == ["other/rose", "other/gasturbine"]
    assert [json.loads(line)["event"] for line in events].count("result") == 1


def test_what_is_interrupted_says_so(monkeypatch):
    def interrupted(run, out):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(commands, "write_report", interrupted)
    result = run_cli("report", "run")
    assert (result.exit_code, result.stdout, result.stderr) == (143, "", "error: interrupted by SIGTERM\n")
