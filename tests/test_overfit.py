"""Few rows: nothing is learned from them by chance, and what more rows would help is told."""

import dataclasses
import json

import pytest
import torch
from sklearn.covariance import ledoit_wolf

from jkoflow import JKOFlow, TrainConfig, train
from jkoflow.data import Dataset, split_rows
from jkoflow.gain import Gain, paired_gain
from jkoflow.initial_map import InitialMap
from jkoflow.metrics import row_nll
from jkoflow.report import write_report
from jkoflow.training import overfit, rounds
from jkoflow.training.objectives import JKO
from jkoflow.training.progress import Silent

SMALL = TrainConfig(
    initial_map="whiten", hidden=(32, 32), max_blocks=2, iterations_per_block=60, validate_every=10, guard_rows=50
)


class Messages(Silent):
    def __init__(self):
        self.texts = []

    def message(self, text):
        self.texts.append(text)


def drawn(rows, dim, seed=0, apart=0.0):
    """Correlated Gaussian rows, in two clusters that are so far apart."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator) / dim**0.5 + torch.eye(dim)
    x = torch.randn(rows, dim, generator=generator) @ root.T
    x[: rows // 2, 0] += apart
    return x[torch.randperm(rows, generator=generator)]


def few(rows, dim, seed=0, apart=0.0):
    """A data set of few rows, split as a table is, with 4000 test rows."""
    x = drawn(rows + 4000, dim, seed, apart)
    parts = split_rows(x[:rows], seed)
    return Dataset("few", parts.train, parts.val, x[rows:], parts.features, warned=True)


def gaussian_nll(data):
    """NLL of the test rows under the shrunk Gaussian of the training rows."""
    train_rows = data.train.double()
    mean, scale = train_rows.mean(0), train_rows.std(0, correction=0)
    covariance = torch.from_numpy(ledoit_wolf(((train_rows - mean) / scale).numpy(), assume_centered=True)[0])
    gaussian = torch.distributions.MultivariateNormal(torch.zeros_like(mean), covariance)
    return scale.log().sum() - gaussian.log_prob((data.test.double() - mean) / scale)


# --------------------------------------------------------------------------------------------------- what may be taken


@pytest.mark.parametrize("jko_step", [0.5, float("inf")])
def test_the_losses_of_rows_have_the_mean_of_the_objective(jko_step):
    x, y, logdet = torch.randn(50, 3), torch.randn(50, 3), torch.randn(50)
    objective = JKO(jko_step)
    loss = objective.validate(x, y, logdet).total
    torch.testing.assert_close(objective.rows(x, y, logdet).mean(), loss, rtol=1e-12, atol=0.0)
    still = objective.rows(x, x, torch.zeros(50)).mean()
    assert float(still) == pytest.approx(objective.of_identity(x), rel=1e-6)


def test_a_gain_by_chance_counts_where_rows_are_many_alone():
    """The same distribution of gains, 0.1 nats in the mean with a spread of 1, over few rows and over many."""
    generator = torch.Generator().manual_seed(0)
    taken = {}
    for count in (50, 20_000):
        x = torch.randn(count, 2, generator=generator)
        gains = 0.1 + torch.randn(count, generator=generator)
        gains += 0.1 - gains.mean()
        taken[count] = overfit.beats_identity(JKO(float("inf")), x, x, gains)
    assert taken == {50: False, 20_000: True}
    assert not overfit.beats_identity(JKO(1.0), x, x, torch.zeros(len(x)))


@pytest.mark.parametrize(
    ("gain", "kept"),
    [(None, True), (Gain(0.1, 0.01), True), (Gain(0.01, 0.01), False), (Gain(0.0, 0.0), False)],
)
def test_a_round_is_kept_for_a_clear_gain(gain, kept):
    assert rounds.record(1, rounds.REFINE, [], [], 1.0, gain, 0.0)["kept"] is kept


@pytest.mark.parametrize(("rows", "dim", "apart"), [(40, 2, 0.0), (200, 8, 0.0), (200, 30, 0.0), (300, 2, 8.0)])
def test_a_flow_of_few_rows_is_no_worse_than_a_shrunk_gaussian(rows, dim, apart):
    data = few(rows, dim, apart=apart)
    flow = train(data, SMALL)
    gain = paired_gain(gaussian_nll(data), row_nll(flow, data.test))
    assert gain.value >= -gain.stderr
    assert gain.is_clear or apart == 0


def test_a_gaussian_of_few_rows_stays_one():
    told = Messages()
    data = few(200, 8)
    flow = train(data, SMALL, progress=told)
    assert not any(flow.metrics["movements"])
    torch.testing.assert_close(row_nll(flow, data.test), row_nll(flow.with_blocks([]), data.test))
    assert any("no block is clearly better than none on 20 validation rows" in text for text in told.texts)


def test_a_batch_of_more_rows_than_there_are_is_all_rows():
    told = Messages()
    flow = train(few(60, 2), dataclasses.replace(SMALL, iterations_per_block=5), progress=told)
    assert flow.metrics["n_train"] == 48
    assert "batch_size = 250 is more than there are: a batch has all 48 rows" in told.texts


# --------------------------------------------------------------------------------------------- what more rows would do


def whitened(rows):
    flow = JKOFlow(rows.shape[1])
    flow.initial_map = InitialMap.fit(rows, "whiten")
    return flow


def test_the_gap_is_that_of_the_two_means():
    data = few(100, 12)
    flow = whitened(data.train)
    found = overfit.measured(flow, (data.train, None), (data.test, None))
    inside, outside = row_nll(flow, data.train), row_nll(flow, data.test)
    assert found["train_nll"] == pytest.approx(float(inside.mean()))
    assert found["overfit_gap"] == pytest.approx(float(outside.mean() - inside.mean()))
    error = (inside.var() / len(inside) + outside.var() / len(outside)).sqrt()
    assert found["overfit_gap_stderr"] == pytest.approx(float(error))
    assert tuple(found) == overfit.KEYS
    assert Gain(found["overfit_gap"], found["overfit_gap_stderr"]).is_clear


def test_many_rows_have_no_gap():
    rows = drawn(20_000, 4)
    flow = whitened(rows[:10_000])
    found = overfit.measured(flow, (rows[:10_000], None), (rows[10_000:], None))
    assert abs(found["overfit_gap"]) < 3 * found["overfit_gap_stderr"]
    assert found["overfit_gap_stderr"] < 0.05


METRICS = {"blocks": 2, "movements": [0.5, 0.0], "n_train": 800, "n_val": 100, "initial_map": "whiten"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, []),
        ({"overfit_gap": None, "overfit_gap_stderr": None}, []),
        ({"overfit_gap": 0.1, "overfit_gap_stderr": 0.09}, []),
        ({"overfit_gap": 0.5, "overfit_gap_stderr": 0.1}, ["more rows than 800 would help"]),
        (
            {"overfit_gap": 0.5, "overfit_gap_stderr": 0.1, "movements": [0.0, 0.0]},
            ["no block is clearly better than none on 100 validation rows", "0.500 ± 0.100 nats"],
        ),
    ],
)
def test_what_is_told(more, said):
    texts = overfit.told({**METRICS, **more})
    assert len(texts) == len(said)
    assert all(part in text for part, text in zip(said, texts, strict=True))


def test_a_run_that_learns_by_heart_says_so_everywhere(tmp_path):
    """A block that is taken for its gain goes on to learn the rows themselves."""
    told = Messages()
    x = drawn(400, 10, apart=12.0)
    flow = train(x, SMALL, run_dir=tmp_path / "run", progress=told)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {*overfit.KEYS, "n_val"} <= metrics.keys()
    assert metrics["n_val"] == 40
    assert flow.metrics["train_nll"] == metrics["train_nll"]
    page = write_report(tmp_path / "run").read_text()
    assert "Learned by heart" in page
    assert overfit.in_short(metrics) in page
    for text in overfit.told(metrics):
        assert text in told.texts
        assert text[1:] in page
