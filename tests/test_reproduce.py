"""jkoflow reproduce: every experiment's file, and the command from files to comparison."""

import json
import tomllib

import numpy as np
import pytest
from typer.testing import CliRunner

from jkoflow import TrainConfig, experiments
from jkoflow.cli import training_run
from jkoflow.cli.commands import app
from jkoflow.experiments import ExperimentError, comparison
from jkoflow.images import AutoencoderConfig
from test_images import write_set

SMALL = "hidden = [8]\nbatch_size = 100\niterations_per_block = 10\nmax_blocks = 2\nguard_rows = 40\n"


def invoke(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*args, says):
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert says in result.stderr, result.stderr
    assert len([line for line in result.stderr.splitlines() if not line.startswith("note: ")]) == 1


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path / "small.toml"


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(training_run, "write_report", lambda run: run / "report.html")


def test_the_experiments_of_the_issue_are_there():
    assert {"rose", "fractal_tree", "rings", "checkerboard", "fashion_mnist", "power_2007h1"} <= set(
        experiments.names()
    )
    assert {"power", "gas", "hepmass", "miniboone", "bsds300"} <= set(experiments.names())


@pytest.mark.parametrize("name", experiments.names())
def test_every_file_is_a_whole_experiment(name):
    experiment = experiments.load(name)
    config = TrainConfig.from_mapping(experiment.settings)
    assert experiment.summary
    assert "\n" not in experiment.summary
    assert experiment.units.startswith("nats per ")
    assert not experiment.remark.endswith(".")
    text = (experiments.FOLDER / f"{name}.toml").read_text()
    assert "paper" in text.split("summary")[0]  # the head says which numbers are whose
    if experiment.data.partition(":")[0] in ("rose", "fractal_tree", "rings", "checkerboard"):
        assert config.hidden == (128, 128, 128)
        assert config.activation == "softplus(20)"
    for figure in experiment.published:
        assert figure.source.startswith("arXiv ")


def test_step_sizes_of_the_two_dimensional_sets_are_the_authors():
    config = TrainConfig.from_mapping(experiments.load("rose").settings)
    sizes = [min(config.jko_step * config.jko_step_growth**k, config.jko_step_max) for k in range(config.max_blocks)]
    np.testing.assert_allclose(sizes, [0.25, 0.35, 0.49, 0.69, 0.96, 1.34, 1.88, 2.64], atol=0.006)


def test_list_has_a_line_for_each():
    lines = invoke("reproduce", "--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == experiments.names()
    assert all(len(line) <= 120 for line in lines)


def test_a_shape_from_start_to_comparison(tmp_path, small, monkeypatch):
    rows = experiments.load("rose")
    monkeypatch.setattr(experiments, "load", lambda name: rows.__class__(**{**vars(rows), "data": "rose:600"}))
    run = tmp_path / "run"
    result = invoke("reproduce", "rose", "--out", run, "--config", small, "--seed", 3)
    assert result.exit_code == 0, result.output
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["data"] == "rose:600"
    assert (config["hidden"], config["seed"]) == ([8], 3)  # file, flag
    assert (config["activation"], config["jko_step"]) == ("softplus(20)", 0.25)  # the experiment's
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["experiment"] == "rose"
    assert metrics["paper_nll"] == 2.64
    assert metrics["paper_nll_comparable"] is False
    assert metrics["reproduced_nll"] == metrics["test_nll_data_units"]
    assert [figure["model"] for figure in metrics["published"]] == ["JKO-iFlow", "FFJORD", "OT-Flow"]
    assert f"reproduced NLL                    {metrics['reproduced_nll']:.3f} ±" in result.stdout
    assert "2.64 (our rose" in result.stdout
    assert "FFJORD 2.95, OT-Flow 3.30" in result.stdout
    page = (run / "report.html").read_text()
    assert "Beside published figures" in page
    assert "do not compare one to one" in page
    assert "2.95" in page
    # resuming a finished run trains nothing, and the comparison survives
    again = invoke("reproduce", "rose", "--out", run, "--resume")
    assert again.exit_code == 0, again.output
    assert "already ended" in again.output
    assert json.loads((run / "metrics.json").read_text()) == metrics
    refused("reproduce", "rose", "--out", run, says="already holds a run; add --resume")
    other = experiments.parse("rings", {**_content("rings"), "data": "rings:600"})
    monkeypatch.setattr(experiments, "load", lambda name: other)
    refused("reproduce", "rings", "--out", run, "--resume", says="is not a run of rings: its data are rose:600")


def _content(name):
    return tomllib.loads((experiments.FOLDER / f"{name}.toml").read_text())


def test_an_experiment_from_files(tmp_path, small, no_report):
    rng = np.random.default_rng(0)
    (tmp_path / "maf/miniboone").mkdir(parents=True)
    np.save(tmp_path / "maf/miniboone/data.npy", rng.normal(2, 3, (800, 43)))
    run = tmp_path / "run"
    result = invoke("reproduce", "miniboone", "--out", run, "--data", tmp_path / "maf", "--config", small)
    assert result.exit_code == 0, result.output
    assert "do not compare with published ones" in result.stderr
    assert tomllib.loads((run / "config.toml").read_text())["data"] == f"miniboone:{tmp_path / 'maf'}"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["paper_nll"] == 10.55
    assert metrics["paper_nll_comparable"] is True
    assert f"10.55, ours is {metrics['reproduced_nll'] - 10.55:+.2f}" in result.stdout
    assert (metrics["dim"], metrics["n_train"]) == (43, 648)


def test_an_interrupted_experiment_tells_how_to_go_on(tmp_path, small, no_report, monkeypatch):
    np.savez(tmp_path / "power_2007h1.npz", train=_rows(300), val=_rows(40), test=_rows(50))
    train = training_run.train_flow

    def interrupted(*args, **kwargs):
        train(*args, **kwargs)
        raise KeyboardInterrupt

    words = ["reproduce", "power_2007h1", "--out", tmp_path / "run", "--data", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "train_flow", interrupted)
        result = invoke(*words, "--config", small)
    assert result.exit_code == 130
    told = " ".join(map(str, [*words, "--resume"]))
    assert result.stderr.strip() == f"error: interrupted; continue with: jkoflow {told}"
    again = invoke(*words, "--resume")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "run/metrics.json").read_text())["experiment"] == "power_2007h1"


def _rows(count):
    return np.random.default_rng(count).normal(size=(count, 6))


def test_images_from_files_to_samples(tmp_path, small, monkeypatch):
    content = _content("fashion_mnist")
    content["autoencoder"] = {"dim": 3, "channels": [4, 8], "epochs": 2, "batch_size": 20}
    tiny = experiments.parse("fashion_mnist", content)
    monkeypatch.setattr(experiments, "load", lambda name: tiny)
    write_set(tmp_path / "set", packed=True)
    run = tmp_path / "run"
    result = invoke("reproduce", "fashion_mnist", "--out", run, "--data", tmp_path / "set", "--config", small)
    assert result.exit_code == 0, result.output
    assert "autoencoder: epoch 2/2, error 0." in result.stdout
    assert {"autoencoder.safetensors", "latents.npz", "images.png", "report.html"} <= {p.name for p in run.iterdir()}
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["paper_nll"] is None
    assert 0 < metrics["reconstruction_error"] < 0.6
    assert "the paper's NLL" in result.stdout
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 1
    assert "<h2>Images</h2>" in page
    before = (run / "autoencoder.safetensors").read_bytes()
    again = invoke("reproduce", "fashion_mnist", "--out", run, "--data", tmp_path / "set", "--resume")
    assert again.exit_code == 0, again.output
    assert (run / "autoencoder.safetensors").read_bytes() == before
    (run / "images.png").unlink()
    refused("report", run, says="images.png: no such file")


def test_images_share_their_time_with_the_flow(tmp_path, small, no_report, monkeypatch):
    content = _content("fashion_mnist")
    content["autoencoder"] = {"dim": 2, "channels": [4, 8], "batch_size": 100}
    tiny = experiments.parse("fashion_mnist", content)
    monkeypatch.setattr(experiments, "load", lambda name: tiny)
    write_set(tmp_path / "set")
    words = ["reproduce", "fashion_mnist", "--out", tmp_path / "run", "--data", tmp_path / "set", "--config", small]
    result = invoke(*words, "--time-budget", 3)
    assert result.exit_code == 0, result.output
    assert 0.3 <= tomllib.loads((tmp_path / "run/config.toml").read_text())["time_budget"] <= 2


def test_arguments_that_do_not_fit(tmp_path, small):
    run = tmp_path / "run"
    refused("reproduce", says="name the experiment")
    refused("reproduce", "rose", says="name the run's directory")
    refused("reproduce", "rosse", "--out", run, says="did you mean rose?")
    refused("reproduce", "rose", "--out", run, "--data", tmp_path, says="rose needs no files; leave --data out")
    refused("reproduce", "power", "--out", run, says="power needs files: jkoflow reproduce power --data DIR")
    refused("reproduce", "power", "--out", run, "--data", tmp_path, says="UCI 235")
    refused("reproduce", "fashion_mnist", "--out", run, "--data", tmp_path, says="dataset-fashion-mnist")
    refused("reproduce", "rose", "--out", run, "--resume", says="holds no run to resume")
    small.write_text('data = "moons"\n')
    refused("reproduce", "rose", "--out", run, "--config", small, says="must not name data")
    small.write_text("hidden = [0]\n")
    refused("reproduce", "rose", "--out", run, "--config", small, says="hidden must list")
    small.write_text('device = "nonsense"\nbatch_size = 10\n')
    write_set(tmp_path / "set")
    words = ["reproduce", "fashion_mnist", "--out", run, "--data", tmp_path / "set", "--config", small]
    refused(*words, says="device must be one")
    small.write_text("batch_size = 100000\n")
    refused(*words, says="fewer than a batch of 100000")
    assert not run.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"units": None}, "units"),
        ({"novelty": 1}, "novelty"),
        ({"settings": {"hidden": [0]}}, "hidden"),
        ({"published": [{"model": "x"}]}, "nll"),
        ({"autoencoder": {"dim": 0}}, "dim"),
    ],
)
def test_badly_described_experiments(change, says):
    content = {**_content("rings"), **change}
    content = {key: value for key, value in content.items() if value is not None}
    with pytest.raises(ExperimentError, match=says):
        experiments.parse("mine", content)


def test_comparison_of_a_run_that_diverged():
    metrics = {"test_nll_data_units": None, "test_nll_stderr": None}
    found = comparison(experiments.load("power"), metrics)
    assert (found["paper_nll"], found["reproduced_nll"]) == (-0.40, None)
    from jkoflow.cli.console import published

    assert published(found)["reproduced NLL"].startswith("not finite")
    assert "ours is" not in published(found)["the paper's NLL"]


def test_autoencoder_of_the_images():
    assert experiments.load("fashion_mnist").autoencoder == AutoencoderConfig()
