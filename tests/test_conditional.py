"""Conditional flows from the data to the report: the density of some columns given others."""

import dataclasses
import json
import math
import tomllib

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from jkoflow import Block, JKOFlow, TrainConfig, checkpoint, metrics, train
from jkoflow.cli.commands import app
from jkoflow.data import DataError, Dataset, load_dataset, load_rows, split_rows
from jkoflow.training.guard import read_guard
from jkoflow.training.pushed import Batches, push_rows
from oracles import random_velocity

CONFIG = TrainConfig(
    initial_map="whiten", hidden=(32, 32), max_blocks=3, iterations_per_block=250, batch_size=400,
    learning_rate=1e-2, val_rows=1000, gain_tolerance=-9.0, movement_tolerance=0.0,
)  # fmt: skip


def conditional_gaussian(n, seed=0):
    """Rows (n, 2) in odd units, their context (n, 2), and the exact log-densities of rows given context (n,)."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 2 - 1
    a, b = context.unbind(1)
    mean = torch.stack([1000 + 60 * a, -2 + 0.2 * torch.sin(2 * b)], 1)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    std, slope = 20 * (0.6 * b).exp(), 0.005 * a  # of the first column, and of the second on the first
    rows = mean + torch.stack([std * noise[:, 0], slope * std * noise[:, 0] + 0.1 * noise[:, 1]], 1)
    log_prob = -0.5 * noise.square().sum(1) - math.log(2 * math.pi) - (0.1 * std).log()
    return rows.float(), (context * torch.tensor([5.0, 0.01]) + 7).float(), log_prob.float()


@pytest.fixture(scope="module")
def data():
    rows, context, _ = conditional_gaussian(12_000)
    return split_rows(rows, context=context, name="gauss", features=("u", "v"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("conditional") / "run"
    return train(data, CONFIG, run_dir=path), path


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# ----------------------------------------------------------------------------------------------------------- the flow


@torch.no_grad()
def test_a_conditional_gaussian_is_learned(run):
    flow, _ = run
    rows, context, exact = conditional_gaussian(4000, seed=1)
    divergence = (exact - flow.log_prob(rows, context)).mean().item()  # KL of the flow from the truth, given context
    assert -0.01 < divergence < 0.05
    shuffled = context[torch.randperm(len(context))]
    assert (exact - flow.log_prob(rows, shuffled)).mean().item() > 1  # it does use the context


@torch.no_grad()
def test_samples_follow_their_context(run):
    flow, _ = run
    _, context, _ = conditional_gaussian(1, seed=2)
    a, b = ((context[0] - 7) / torch.tensor([5.0, 0.01])).tolist()
    x = flow.sample(4000, context.expand(4000, -1), generator=torch.Generator().manual_seed(0))
    std = 20 * math.exp(0.6 * b)
    assert x[:, 0].mean().item() == pytest.approx(1000 + 60 * a, abs=0.2 * std)
    assert x[:, 0].std().item() == pytest.approx(std, rel=0.15)
    assert x[:, 1].mean().item() == pytest.approx(-2 + 0.2 * math.sin(2 * b), abs=0.03)
    residual = x[:, 1] - 0.005 * a * (x[:, 0] - 1000 - 60 * a)
    assert residual.std().item() == pytest.approx(0.1, rel=0.2)


def test_metrics_of_a_conditional_run(run, data):
    flow, path = run
    result = json.loads((path / "metrics.json").read_text())
    assert (result["dim"], result["context_dim"]) == (2, 2)
    with torch.no_grad():
        nll = -flow.log_prob(data.test, data.test_context).mean().item()
    assert result["test_nll_data_units"] == pytest.approx(nll, abs=1e-3)
    assert result["inversion_error_mean"] < 1e-3
    assert result["inversion_error_exact_max"] < 1e-4


@torch.no_grad()
def test_a_conditional_flow_survives_its_file(run, data):
    flow, path = run
    loaded = JKOFlow.load(path)
    assert loaded.context_dim == 2
    assert torch.equal(loaded.standardize_context.mean, data.train_context.double().mean(0).float())
    expected = flow.log_prob(data.test, data.test_context)
    assert torch.equal(loaded.log_prob(data.test, data.test_context), expected)


@torch.no_grad()
def test_context_is_standardised():
    blocks = [Block(random_velocity(2, context_dim=2, scale=0.7, seed=k)) for k in range(2)]
    mean, std = torch.tensor([7.0, -3.0]).double(), torch.tensor([5.0, 0.01]).double()
    plain, scaled = JKOFlow(2, blocks), JKOFlow(2, blocks, context_mean=mean, context_std=std)
    x, context = torch.randn(9, 2).double(), torch.randn(9, 2).double()
    for method in ("forward", "inverse", "log_prob"):
        torch.testing.assert_close(getattr(scaled, method)(x, context * std + mean), getattr(plain, method)(x, context))
    torch.testing.assert_close(scaled.trajectory(x, context * std + mean).x, plain.trajectory(x, context).x)
    exact, _ = scaled.inverse(scaled(x, context * std + mean)[0], context * std + mean, exact=True)
    torch.testing.assert_close(exact, x, rtol=0, atol=1e-12)
    for changed in (scaled.refine(2), scaled.reparametrize() if scaled.measure_movements(x, context) else scaled):
        assert changed.standardize_context is not None
        assert torch.equal(changed.standardize_context.mean, mean)


def test_files_of_earlier_versions_take_context_as_it_is(tmp_path):
    flow = JKOFlow(2, [Block(random_velocity(2, context_dim=1))])
    flow.save(tmp_path / "flow")
    tensors, description = checkpoint.load(tmp_path / "flow", "flow")
    del description["context_dim"], description["standardize_context"]
    checkpoint.save(tmp_path / "old", "flow", tensors, description)
    old, x, context = JKOFlow.load(tmp_path / "old"), torch.randn(3, 2).double(), torch.randn(3, 1).double()
    assert old.context_dim == 1
    assert torch.equal(old.log_prob(x, context), flow.log_prob(x, context))


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, r"context must have shape \(4, 2\) for this conditional flow, got None"),
        (torch.zeros(4, 3), r"context must have shape \(4, 2\) to match x and the flow, got \(4, 3\)"),
        (torch.zeros(1, 2), r"context must have shape \(4, 2\) to match x and the flow, got \(1, 2\)"),
        (torch.full((4, 2), math.nan), "context must be finite, got nan in row 0, column 0"),
    ],
)
@pytest.mark.parametrize("method", ["forward", "inverse", "log_prob", "trajectory"])
def test_wrong_context_is_refused(run, method, context, message):
    with pytest.raises(ValueError, match=message):
        getattr(run[0], method)(torch.zeros(4, 2), context)


def test_superfluous_context_and_mixed_blocks_are_refused():
    with pytest.raises(ValueError, match="context must be None for a flow without conditioning variables"):
        JKOFlow(2).log_prob(torch.zeros(4, 2), torch.zeros(4, 1))
    blocks = [Block(random_velocity(2, context_dim=c)) for c in (1, 0)]
    with pytest.raises(ValueError, match=r"every block must have velocity.context_dim 1, got 0"):
        JKOFlow(2, blocks)
    with pytest.raises(ValueError, match="context_mean and context_std must be given together"):
        JKOFlow(2, context_mean=torch.zeros(1))


# ----------------------------------------------------------------------------------------------------------- training


def test_rows_keep_their_context_in_every_batch():
    rows = torch.arange(103.0).unsqueeze(1)
    batches = Batches(rows, 20, 1, 0, context=-rows)
    for iteration in (0, 3, 7):
        batch = batches(iteration)
        assert torch.equal(batches.context(iteration), -batch)
    assert torch.equal(batches.context(7), Batches(rows, 20, 1, 0, context=-rows).context(7))
    assert Batches(rows, 20, 1, 0).context(0) is None


def test_chunks_keep_rows_and_context_together(monkeypatch):
    block = Block(random_velocity(2, context_dim=1))
    x, context = torch.randn(25, 2).double(), torch.randn(25, 1).double()
    whole = push_rows(block, x, context)
    flow = JKOFlow(2, [block])
    nll, error = metrics.mean_nll(flow, x, context=context), metrics.inversion_error(flow, x, context=context)
    monkeypatch.setattr(metrics, "CHUNK", 10)
    for one, other in zip(push_rows(block, x, context), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert metrics.mean_nll(flow, x, context=context) == pytest.approx(nll, rel=1e-12)
    assert metrics.inversion_error(flow, x, context=context) == pytest.approx(error, rel=1e-9)
    reading, without = read_guard(block, x, context), read_guard(block, x, torch.zeros_like(context))
    assert reading.nll_difference > 0
    assert reading != without


def test_tensors_and_datasets_train_the_same_flow():
    rows, context, _ = conditional_gaussian(600)
    config = dataclasses.replace(CONFIG, hidden=(8,), max_blocks=1, iterations_per_block=5)
    one = train(rows, config, context=context)
    other = train(split_rows(rows, context=context.numpy()), config)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match=r"context must be None with a Dataset, which brings its own"):
        train(split_rows(rows), config, context=context)
    with pytest.raises(ValueError, match="start must have the 2 context columns of the data, got a flow with 0"):
        train(rows, config, context=context, start=JKOFlow(2, [Block(random_velocity(2, dtype=torch.float32))]))
    again = train(rows, config, context=context, start=one.refine(2))
    assert len(again.blocks) == 2
    assert torch.equal(again.standardize_context.std, one.standardize_context.std)


def test_another_context_is_other_data(tmp_path):
    rows, context, _ = conditional_gaussian(600)
    config = dataclasses.replace(CONFIG, hidden=(8,), max_blocks=2, iterations_per_block=5, save_seconds=0.0)

    class Stop:
        def __getattr__(self, name):
            def call(*arguments):
                if name == "end_block":
                    raise KeyboardInterrupt

            return call

    with pytest.raises(KeyboardInterrupt):
        train(rows, config, context=context, run_dir=tmp_path, progress=Stop())
    with pytest.raises(ValueError, match="the data have changed"):
        train(rows, config, context=context + 1, run_dir=tmp_path, resume=True)
    resumed = train(rows, config, context=context, run_dir=tmp_path, resume=True)
    whole = train(rows, config, context=context)
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True)
    )


# ----------------------------------------------------------------------------------------------------------- the data


def test_columns_become_context(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a", "b", "c"])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    whole, data = (load_dataset(tmp_path / "rows.csv", 3, columns) for columns in ((), ("c", "a")))
    assert (data.features, data.context_features) == (("b",), ("c", "a"))
    assert torch.equal(data.test, whole.test[:, [1]])
    assert torch.equal(data.test_context, whole.test[:, [2, 0]])
    np.save(tmp_path / "plain.npy", frame.to_numpy())
    plain = load_dataset(tmp_path / "plain.npy", 3, ("x1",))
    assert (plain.features, plain.context_features) == (("x0", "x2"), ("x1",))
    # columns without names are found by the names that training gave them
    rows = load_rows(tmp_path / "plain.npy", features=("x0", "x2", "x1"))
    assert np.array_equal(rows.numpy(), frame[["a", "c", "b"]].to_numpy(np.float32))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["z"], "context columns of moons must be different names out of x, y; unknown z"),
        (["x", "x"], "must be different names out of x, y; got x, x"),
        (["x", "y"], "features must name at least one column, got none; not all columns can be context"),
        ([], "got none"),
    ],
)
def test_wrong_context_columns_are_refused(names, message):
    with pytest.raises(DataError, match=message):
        load_dataset("moons").condition_on(names)


def test_a_dataset_checks_its_context():
    rows, context, _ = conditional_gaussian(30)
    data = split_rows(rows, context=context)
    assert (data.dim, data.context_dim, data.context_features) == (2, 2, ("c0", "c1"))
    with pytest.raises(DataError, match="is conditional already, on c0, c1"):
        data.condition_on(["x0"])
    with pytest.raises(DataError, match="test_context must have 3 rows as test, got 2"):
        dataclasses.replace(data, test_context=data.test_context[:2])
    with pytest.raises(DataError, match="val_context must be a tensor to match the 2 context_features, got None"):
        dataclasses.replace(data, val_context=None)
    with pytest.raises(DataError, match="column 'c0', column 'c1' are constant in train_context"):
        dataclasses.replace(data, train_context=torch.ones_like(data.train_context))
    with pytest.raises(DataError, match="context must have 30 rows as rows has, got 29"):
        split_rows(rows, context=context[1:])
    with pytest.raises(DataError, match="train_context must be None to match the 0 context_features"):
        Dataset("d", rows, rows, rows, ("a", "b"), train_context=context)


# --------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def commands_run(tmp_path_factory):
    """A finished conditional run on a file, made by the commands."""
    path = tmp_path_factory.mktemp("cli")
    rows, context, _ = conditional_gaussian(600)
    table = torch.cat([context[:, :1], rows, context[:, 1:]], 1).numpy()
    pd.DataFrame(table, columns=["p", "u", "v", "q"]).to_csv(path / "rows.csv", index=False)
    (path / "small.toml").write_text("hidden = [8]\nbatch_size = 100\niterations_per_block = 20\nmax_blocks = 2\n")
    result = invoke(
        *("train", path / "rows.csv", "--out", path / "run", "--config", path / "small.toml"),
        *("--context-columns", "q, p"),
    )
    assert result.exit_code == 0, result.output
    assert "2 columns given q, p" in result.stdout
    return path


def test_config_of_a_conditional_run(commands_run, tmp_path, monkeypatch):
    settings = tomllib.loads((commands_run / "run/config.toml").read_text())
    assert settings["context_columns"] == ["q", "p"]
    monkeypatch.setattr("jkoflow.cli.training_run.write_report", lambda run: run)
    again = invoke("train", "--config", commands_run / "run/config.toml", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    one, other = (
        json.loads((path / "metrics.json").read_text()) for path in (commands_run / "run", tmp_path / "again")
    )
    assert one["test_nll"] == other["test_nll"]
    resumed = invoke("train", "--resume", commands_run / "run", "--context-columns", "q,p")
    assert resumed.exit_code == 0, resumed.output
    other = invoke("train", "--resume", commands_run / "run", "--context-columns", "p")
    assert other.exit_code == 2
    assert "was started with context_columns" in other.stderr


def test_score_of_a_conditional_run(commands_run, tmp_path):
    frame = pd.read_csv(commands_run / "rows.csv")
    frame[["v", "q", "u", "p"]].to_parquet(tmp_path / "turned.parquet")
    for name, file in (("straight", commands_run / "rows.csv"), ("turned", tmp_path / "turned.parquet")):
        result = invoke("score", commands_run / "run", file, "--out", tmp_path / f"{name}.npy")
        assert result.exit_code == 0, result.output
    flow = JKOFlow.load(commands_run / "run")
    rows, context = (torch.tensor(frame[names].to_numpy(np.float32)) for names in (["u", "v"], ["q", "p"]))
    with torch.no_grad():
        expected = flow.log_prob(rows, context)
    for name in ("straight", "turned"):
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected, rtol=1e-5, atol=1e-5)


def test_samples_of_a_conditional_run_stand_beside_their_context(commands_run, tmp_path):
    frame = pd.DataFrame({"p": [5.0, 9.0], "q": [7.002, 6.995], "more": [1.0, 2.0]})
    frame.to_csv(tmp_path / "given.csv", index=False)
    result = invoke(
        "sample", commands_run / "run", "-n", 300, "--context", tmp_path / "given.csv", "--out", tmp_path / "s.csv"
    )
    assert result.exit_code == 0, result.output
    assert "600 rows, 4 columns" in result.stdout
    drawn = pd.read_csv(tmp_path / "s.csv")
    assert list(drawn.columns) == ["u", "v", "q", "p"]
    np.testing.assert_allclose(drawn["p"], np.repeat([5.0, 9.0], 300), rtol=1e-6)
    np.testing.assert_allclose(drawn["q"], np.repeat([7.002, 6.995], 300), rtol=1e-6)
    flow = JKOFlow.load(commands_run / "run")
    context = torch.tensor(drawn[["q", "p"]].to_numpy(np.float32))
    with torch.no_grad():
        expected = flow.sample(600, context, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(drawn[["u", "v"]], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "RUN", "-n", "3", "--out", "s.npy"], "is conditional; add --context FILE with the columns q, p"),
        (["sample", "RUN", "-n", "3", "--context", "bad.csv", "--out", "s.npy"], "lacks the column p"),
        (["score", "RUN", "bad.csv", "--out", "s.npy"], "bad.csv lacks the columns u, v, p"),
        (["train", "moons", "--context-columns", "z", "--out", "new"], "context columns of moons must be different"),
        (["train", "moons", "--context-columns", " ,", "--out", "new"], "--context-columns must name columns"),
        (
            ["train", "moons", "--config", "wrong.toml", "--out", "new"],
            "context_columns must be a list of names, got 'x' (wrong.toml)",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(commands_run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"q": [7.0], "z": [1.0]}).to_csv("bad.csv", index=False)
    (tmp_path / "wrong.toml").write_text('context_columns = "x"\n')
    result = invoke(*(commands_run / "run" if word == "RUN" else word for word in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "s.npy").exists()


def test_context_for_an_unconditional_flow_is_refused(tmp_path):
    JKOFlow(2).save(tmp_path / "flow")
    result = invoke("sample", tmp_path / "flow", "-n", 3, "--context", "rows.csv", "--out", tmp_path / "s.npy")
    assert result.exit_code == 2
    assert "is not conditional; leave --context out" in result.stderr


@pytest.mark.parametrize("columns", ["x", "x0,x1", "x0,x1,x2"])
def test_report_of_a_conditional_run(tmp_path, columns):
    """Of one, two and more columns given others."""
    rows, context, _ = conditional_gaussian(300)
    table = {"x": rows, "x0,x1": torch.cat([rows, context], 1), "x0,x1,x2": torch.cat([rows, context, rows.sin()], 1)}
    data = "moons" if columns == "x" else tmp_path / "rows.npy"
    if columns != "x":
        np.save(tmp_path / "rows.npy", table[columns].numpy())
    (tmp_path / "small.toml").write_text("hidden = [4]\nbatch_size = 100\niterations_per_block = 3\nmax_blocks = 1\n")
    result = invoke(
        "train", data, "--out", tmp_path / "run", "--config", tmp_path / "small.toml", "--context-columns", columns
    )
    assert result.exit_code == 0, result.output
    text = (tmp_path / "run/report.html").read_text()
    assert f"given {', '.join(columns.split(','))}" in text
    assert "flow.sample(len(c), c)" in text
    if columns != "x0,x1,x2":
        assert "averaged over 16 rows of the context" in text
