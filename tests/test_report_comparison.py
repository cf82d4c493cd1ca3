"""The page of two runs: what differs, and the same test rows under both."""

import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from jkoflow.cli.commands import app
from jkoflow.errors import UserError
from jkoflow.report import comparison, comparison_page, write_comparison
from jkoflow.report.results import read_results
from test_report import Page, make_flow, make_run, sections


def another(path, like, seed=1, rows=None, **config):
    """A run as ``like``, of another flow, with other settings and perhaps other test rows."""
    path.mkdir()
    for file in like.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    dim = json.loads((like / "metrics.json").read_text())["dim"]
    make_flow(dim, seed=seed, scale=3.0).save(path / "model.safetensors")
    if rows is not None:
        with np.load(like / "preview.npz") as arrays:
            np.savez(path / "preview.npz", **{**arrays, "data": rows(arrays["data"])})
    if config:
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in config.items())
        (path / "config.toml").write_text((path / "config.toml").read_text() + text)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    first = make_run(root / "first", 3)
    return first, another(root / "second", first, seed=1, learning_rate=0.5)


def loaded(*runs):
    return [read_results(run) for run in runs]


def text_of(page):
    return " ".join("".join(Page(page).text).split())


def test_the_difference_is_that_of_the_same_rows_with_its_paired_error(pair):
    first, second = loaded(*pair)
    found = comparison.paired(first, second)
    with torch.no_grad():
        expected = (second.flow.log_prob(second.data) - first.flow.log_prob(first.data)).double().numpy()
    np.testing.assert_allclose(found.differences, expected, atol=1e-5)
    assert found.mean == pytest.approx(expected.mean(), abs=1e-6)
    assert found.stderr == pytest.approx(expected.std(ddof=1) / math.sqrt(300), rel=1e-4)
    turned = comparison.paired(second, first)
    assert turned.mean == pytest.approx(-found.mean, abs=1e-9)


def test_rows_are_paired_wherever_they_stand(pair, tmp_path):
    order = np.random.default_rng(0).permutation(300)[:120]
    strangers = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    other = another(tmp_path / "other", pair[0], rows=lambda data: np.concatenate([strangers, data[order]]))
    first, second = loaded(pair[0], other)
    places = comparison.common_rows(first, second)
    assert sorted(places[0]) == sorted(order)
    np.testing.assert_array_equal(first.data[places[0]], second.data[places[1]])
    assert len(comparison.paired(first, second).differences) == 120
    assert "120 of 300 kept test rows are also among the 160" in comparison.data_in_common(first, second)


def test_repeated_rows_are_paired_once_each(pair, tmp_path):
    many = another(tmp_path / "many", pair[0], rows=lambda data: np.concatenate([data[:1].repeat(5, 0), data[1:9]]))
    few = another(tmp_path / "few", pair[0], rows=lambda data: np.concatenate([data[:1].repeat(2, 0), data[3:5]]))
    places = comparison.common_rows(*loaded(many, few))
    assert len(set(places[0])) == len(set(places[1])) == len(places[0]) == 4


def test_why_rows_are_not_compared_is_said(pair, tmp_path):
    strangers = another(tmp_path / "strangers", pair[0], rows=lambda data: data + 1)
    assert "no test rows in common" in comparison.paired(*loaded(pair[0], strangers))
    columns = make_run(tmp_path / "columns", 3, features=["a", "b", "c"])
    assert "other columns: column 0, column 1, column 2, and a, b, c" in comparison.paired(*loaded(pair[0], columns))
    first, second = loaded(*pair)
    second.metrics["columns"] = [
        {"name": name, "measure": "mass" if k == 1 else "density"} for k, name in enumerate(second.names)
    ]
    assert "column 1 is a density for one and a mass for the other" in comparison.paired(first, second)


def test_the_verdict_names_the_better_run_only_beyond_twice_the_error():
    def says(mean):
        differences = mean + 0.1 * np.array([-1.0, 1.0] * 50)
        return comparison_page.verdict(comparison.Paired(differences, 0), ("old", "new"))

    assert says(0.5).startswith("new makes 100 common test rows more likely, by 0.5000 ± 0.0101 nats")
    assert says(-0.5).startswith("old makes")
    assert says(0.01).startswith("Neither is better")
    same = comparison.Paired(np.zeros(5), 0)
    assert comparison_page.verdict(same, ("old", "new")) == "Both make every common test row equally likely"


def test_the_page_shows_what_differs(pair):
    path = write_comparison(*pair)
    assert path == pair[0] / "comparison.html"
    page, text = path.read_text(), text_of(path.read_text())
    assert sections(page) == [
        "The same test rows under both", "Data", "Settings that differ", "Measures", "Training", "Data and samples"
    ]  # fmt: skip
    assert "<tr><td>learning_rate</td><td>–</td><td>0.5</td></tr>" in page
    assert "3 settings more are the same" not in text
    assert "2 settings more are the same in both" in text
    assert "common test rows" in text
    assert Page(page).open == []
    assert "://" not in page
    assert page.count('<svg role="img"') == page.count("<figcaption>") >= 2
    assert write_comparison(*pair).read_text() == page
    assert len(page.encode()) < 3_000_000


def test_the_same_fingerprint_means_the_same_data(pair):
    first, second = loaded(*pair)
    assert not comparison.is_same_data(first, second)
    assert "no fingerprint" in comparison.data_in_common(first, second)
    for run, mark in ((first, "abc"), (second, "abc")):
        run.metrics["fingerprint"] = mark
    assert "The same data" in comparison.data_in_common(first, second)
    second.metrics["fingerprint"] = "xyz"
    assert "The same 300 kept test rows; the fingerprints differ" in comparison.data_in_common(first, second)


@pytest.mark.parametrize("dim", [1, 2])
def test_small_flows_are_drawn_one_under_the_other(tmp_path, dim):
    first = make_run(tmp_path / "first", dim)
    page = write_comparison(first, another(tmp_path / "second", first)).read_text()
    drawn = page[page.index("<h2>Data and samples") :]
    assert drawn.count('<svg role="img"') == 2
    assert "of the run first" in drawn
    assert "of the run second" in drawn


def test_curves_are_placed_by_the_seconds_of_the_training():
    history = []
    for block, start in ((0, 10.0), (1, 50.0)):
        history.append({"event": "validation", "block": block, "iteration": 0, "nll": 5.0 - block})
        for i in range(0, 101, 50):
            history.append({"event": "iteration", "block": block, "iteration": i, "seconds": start + 0.2 * i})
        history.append({"event": "validation", "block": block, "iteration": 75, "nll": 4.0 - block})
    x, y, places = comparison.validation_curve(history)
    np.testing.assert_allclose(x, [10, 25, np.nan, 50, 65])
    np.testing.assert_allclose(y, [5, 4, np.nan, 4, 3])
    assert places[-1] == "round 1, block 2, iteration 75"
    assert len(comparison.validation_curve([{**r, "seconds": None} for r in history])[0]) == 0


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        make_run(tmp_path / parent / "run", 1, rows=20)
    assert comparison.labels(*loaded(tmp_path / "a/run", tmp_path / "b/run")) == ("a/run", "b/run")


def test_the_command_compares_two_and_refuses_more(pair, tmp_path, monkeypatch):
    def run(*arguments):
        return CliRunner().invoke(app, ["report", *map(str, arguments)])

    page = tmp_path / "page.html"
    result = run(*pair, "--out", page)
    assert (result.exit_code, result.output) == (0, f"report: {page}\n")
    assert page.is_file()
    refused = run(*pair, pair[0])
    assert refused.exit_code == 2
    assert "takes one run, or two to compare, got 3" in refused.output
    with pytest.raises(UserError, match="are the same run"):
        write_comparison(pair[0], pair[0] / ".." / pair[0].name)
