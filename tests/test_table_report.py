"""The report of a table: every column by its kind, in the user's units, against samples."""

import html
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import jkoflow
from jkoflow.checkpoint import CheckpointError
from jkoflow.data.columns.codec import Category, Count, Lattice, fit_lattice
from jkoflow.data.columns.kinds import plan_column
from jkoflow.report import column_views, page, probes, table_figures, write_report
from jkoflow.report.baseline import independent_nll
from jkoflow.report.column_views import column_views as views_of
from jkoflow.report.column_views import table_samples
from jkoflow.report.pair_choice import choose_pairs
from jkoflow.report.results import read_results
from jkoflow.report.snippet import load_snippet
from jkoflow.training.run_directory import RunDirectory
from test_report import Page, sections

CONFIG = jkoflow.TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=20, batch_size=100, val_rows=60)


def every_kind(count=600, seed=0):
    random = np.random.default_rng(seed)
    shop = random.choice(["Aarhus", "<b>Berlin</b>", "Cork $x$"], count)
    far = shop == "Aarhus"
    return pd.DataFrame(
        {
            "shop": shop,
            "member": random.random(count) < 0.3,
            "visits": random.poisson(2.0, count),
            "steps": random.geometric(1 / 4000, count),
            "day": np.datetime64("2021-03-01") + random.integers(0, 700, count).astype("timedelta64[D]"),
            "income": np.exp(random.normal(10 + 2 * far, 1.5, count)),
            "rain": np.where(random.random(count) < 0.3, 0.0, np.exp(random.normal(1, 1.5, count))),
            "sensor": np.where(random.random(count) < 0.2, np.nan, random.normal(15, 6, count)),
            "grade": pd.Series(random.choice(["low", "high"], count)).where(random.random(count) > 0.1),
            "height": random.normal(170, 10, count),
        }
    )


def trained(path, rows, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kinds are told, and the flow is hardly trained
        jkoflow.train(rows, CONFIG, run_dir=path, missing="indicator", **options)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root, rows = tmp_path_factory.mktemp("runs"), every_kind()
    given = ["shop", "day", "sensor"]
    return {
        "all": trained(root / "all", rows),
        "given": trained(root / "given", rows[["visits", "income", "grade"]], context=rows[given]),
        "discrete": trained(root / "discrete", rows[["shop", "member", "visits"]]),
        "one": trained(root / "one", rows[["rain"]]),
        "plain": trained(root / "plain", rows[["height", "income"]]),
        "array": trained(root / "array", rows[["visits", "height"]].to_numpy(float)),
    }


@pytest.fixture(scope="module")
def pages(runs):
    return {name: write_report(run).read_text() for name, run in runs.items() if name != "array"}


COLUMNS, PAIRS = "Data and samples, column by column", "Data and samples, pair by pair"
END = ["Calibration", "Columns", "Training", "Results", "Load the model", "Configuration", "Environment"]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("all", [COLUMNS, PAIRS, "Noise"]),
        ("given", [COLUMNS, PAIRS, "Noise"]),
        ("discrete", [COLUMNS, PAIRS]),
        ("one", [COLUMNS, "Noise"]),
        ("plain", ["Data and model", "From data to noise, and back", "Noise"]),
    ],
)
def test_every_section_is_there(pages, name, own):
    asked = ["What if"] if name == "given" else []
    assert sections(pages[name]) == own + END[:1] + asked + END[1:]


@pytest.mark.parametrize("name", ["all", "given", "discrete", "one", "plain"])
def test_pages_are_self_contained_and_follow_the_theme(pages, name):
    page = Page(pages[name])
    assert page.open == []
    assert not {"link", "iframe", "img", "b"} & set(page.tags)
    assert page.tags.count("script") == 1
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert pages[name].count('<svg role="img"') == page.tags.count("figcaption") > 0
    assert "#1f2329" not in pages[name].split("<svg", 1)[1]
    assert "://" not in pages[name]


def test_a_page_is_the_same_when_written_again(runs, pages):
    assert write_report(runs["one"]).read_text() == pages["one"]


def text_of(page):
    return " ".join("".join(Page(page).text).split())


def test_kinds_reasons_and_ranges_of_all_columns_are_told(runs, pages):
    text = text_of(pages["all"])
    for column in RunDirectory(runs["all"]).metrics()["columns"]:
        for said in ("name", "kind", "reason", "treatment", "measure"):
            assert " ".join(column[said].split()) in text
    columns = RunDirectory(runs["all"]).preview().columns
    first, last = columns["day"].astype("datetime64[D]").min(), columns["day"].astype("datetime64[D]").max()
    assert f"{first} to {last}" in text
    assert f"{columns['visits'].min()} to {columns['visits'].max()}" in text
    assert "false, true" in text
    assert "<b>Berlin</b>, Aarhus, Cork $x$" in text
    assert "mean and deviation describe it" in text_of(pages["plain"])
    assert "given shop, day, sensor" in text_of(pages["given"])


def test_figures_of_the_run_are_those_of_a_table(pages):
    text = text_of(pages["all"])
    assert "nats per row, masses and numbers on the flow's scale" in text
    assert "standardised columns" not in text
    assert "Independent columns for comparison" in text
    assert "Gaussian for comparison" not in text
    assert "Gaussian" not in text_of(pages["discrete"])
    assert "where a number is missing or repeated, noise stands in" in text
    assert "The masses of 3 discrete columns, trained on" in text_of(pages["discrete"])
    for gone in ("Inversion error", "Total movement", "Guard events", "Converged at"):
        assert gone not in text_of(pages["discrete"])
        assert gone in text


@pytest.mark.parametrize(("name", "shape"), [("all", (1000, 10)), ("given", (50, 3)), ("array", (1000, 2))])
def test_load_snippet_works(runs, monkeypatch, name, shape):
    monkeypatch.chdir(runs[name].parent)
    source = (
        load_snippet(runs[name], jkoflow.load(runs[name])).removeprefix("<pre><code>").removesuffix("</code></pre>")
    )
    rows = every_kind(50)
    known = {"all": rows, "given": rows[["visits", "income", "grade"]], "array": rows[["visits", "height"]].to_numpy()}
    names = {"x": known[name], "c": rows[["shop", "day", "sensor"]]}
    exec(html.unescape(source), names)
    assert names["samples"].shape == shape
    assert names["log_p"].shape == (50,)
    assert isinstance(names["samples"], torch.Tensor if name == "array" else pd.DataFrame)


# ---- What a run keeps


def test_a_run_keeps_the_users_columns_of_test_rows(runs):
    rows = every_kind()
    for run, names in (("all", list(rows)), ("given", ["visits", "income", "grade", "shop", "day", "sensor"])):
        columns = RunDirectory(runs[run]).preview().columns
        assert list(columns) == names
        kept = pd.DataFrame(columns)
        assert len(kept) == 60
        kinds = {name: values.dtype.kind for name, values in columns.items()}
        assert kinds.items() <= dict(zip(rows, "ObiiMfffOf", strict=True)).items()
        key = "income"  # no two rows share it
        expected = rows.set_index(key).loc[kept[key]].reset_index()[names]
        absent = kept.isna()
        assert absent.equals(expected.isna())
        assert absent.to_numpy().any()
        for name in names:
            assert kept[name][~absent[name]].tolist() == expected[name][~absent[name]].tolist()


def test_a_plain_run_keeps_no_columns_beside_its_rows(runs):
    assert RunDirectory(runs["plain"]).preview().columns is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {k: v for k, v in a.items() if not k.startswith("column")}, "has not the columns of model"),
        (lambda a: {**a, "columns": a["columns"][::-1]}, "has not the columns of model"),
        (lambda a: {k: v for k, v in a.items() if k != "column1"}, "damaged: it has no column of the name 'member'"),
        (lambda a: {**a, "column1": a["column1"][:9]}, "damaged: its columns must have as many rows"),
        (lambda a: {**a, "column0": np.array(["{"] * 60)}, "damaged"),
        (lambda a: {**a, "column0": np.array([{}] * 60)}, "damaged"),
    ],
)
def test_wrong_columns_are_refused(runs, tmp_path, change, message):
    run = tmp_path / "run"
    run.mkdir()
    for file in runs["all"].iterdir():
        (run / file.name).write_bytes(file.read_bytes())
    with np.load(run / "preview.npz") as arrays:
        np.savez(run / "preview.npz", **change(dict(arrays)))
    with pytest.raises(CheckpointError, match=f"preview.npz.*{message}.*train the run again"):
        write_report(run)


# ---- Columns by their kinds


@pytest.fixture(scope="module")
def views(runs):
    run = read_results(runs["all"])
    return {view.name: view for view in views_of(run.table, run.columns, table_samples(run.table, run.columns))}


def test_columns_are_drawn_by_their_kinds(views):
    assert {name: (view.form, view.scale, view.measure) for name, view in views.items()} == {
        "shop": ("levels", "linear", "TV"),
        "member": ("levels", "linear", "TV"),
        "visits": ("counts", "linear", "KS"),
        "steps": ("numbers", "log", "KS"),
        "day": ("numbers", "date", "KS"),
        "income": ("numbers", "log", "KS"),
        "rain": ("numbers", "log", "KS"),
        "sensor": ("numbers", "linear", "KS"),
        "grade": ("levels", "linear", "TV"),
        "height": ("numbers", "linear", "KS"),
    }
    assert views["rain"].labels == ("other values", "0")
    assert views["sensor"].labels == ("other values", "missing")
    assert views["grade"].labels == ("high", "low", "missing")
    assert views["member"].labels == ("false", "true")


def test_shares_and_numbers_are_those_of_the_rows(runs, views):
    columns = read_results(runs["all"]).columns
    for name, level in (("shop", "Aarhus"), ("grade", "low")):
        assert views[name].shares()[0][views[name].labels.index(level)] == pytest.approx(
            np.mean(columns[name] == level)
        )
    assert views["member"].shares()[0][1] == pytest.approx(columns["member"].mean())
    assert views["rain"].shares()[0][1] == pytest.approx(np.mean(columns["rain"] == 0))
    assert views["sensor"].shares()[0][1] == pytest.approx(np.isnan(columns["sensor"]).mean())
    np.testing.assert_array_equal(views["rain"].others()[0], columns["rain"][columns["rain"] > 0])
    np.testing.assert_array_equal(views["income"].numbers[0], columns["income"])
    days = (columns["day"] - np.datetime64("1970-01-01")) / np.timedelta64(1, "D")
    np.testing.assert_array_equal(views["day"].numbers[0], days)
    for view in views.values():
        assert len(view.numbers[1]) == len(view.states[1]) == 60
        if view.labels:
            assert [shares.sum() for shares in view.shares()] == pytest.approx([1, 1])


def test_samples_are_drawn_under_the_context_of_test_rows(runs, monkeypatch):
    run = read_results(runs["given"])
    asked = {}

    def sample_columns(n, context=None, **more):
        asked.update(n=n, context=context)
        return {}

    monkeypatch.setattr(run.table, "sample_columns", sample_columns)
    table_samples(run.table, run.columns)
    assert asked["n"] == 60
    assert asked["context"].features == ("shop", "day", "sensor")
    for name, values in zip(asked["context"].features, asked["context"].parts["all"], strict=True):
        assert values is run.columns[name] or pd.Series(values).equals(pd.Series(run.columns[name]))


def view_of(data, drawn, codec=None):
    model = jkoflow.TableFlow.__new__(jkoflow.TableFlow)
    torch.nn.Module.__init__(model)
    codec = plan_column("x", "x", np.concatenate([data, drawn])).codec if codec is None else codec
    model.schema = jkoflow.table_flow.Schema(("x",), (codec,))
    return views_of(model, {"x": data}, {"x": drawn})[0]


def test_distances_agree_with_their_definitions():
    from scipy.stats import ks_2samp

    random = np.random.default_rng(0)
    data, drawn = random.poisson(3, 500), random.poisson(3.5, 400)
    assert view_of(data, drawn).distance == pytest.approx(ks_2samp(data, drawn, method="asymp").statistic)
    text = np.array(["a", "b", "b", "c"], object), np.array(["a", "a", "b", "b"], object)
    assert view_of(*text, Category(["a", "b", "c"])).distance == pytest.approx(0.25)
    holes = np.array([np.nan, 1.0, 2.0, 3.0]), np.array([np.nan, np.nan, 2.0, 3.0])
    codec = column_views.Mixed(column_views.Real({"kind": "real"}, 0.0, 1.0), [], True)
    assert view_of(*holes, codec).distance == pytest.approx(0.25)


@pytest.mark.parametrize(
    "draw",
    [
        lambda random, n: random.choice(np.array(["a", "b", "c", "d"], object), n, p=[0.5, 0.3, 0.15, 0.05]),
        lambda random, n: random.poisson(2.0, n),
        lambda random, n: random.poisson(400.0, n),
        lambda random, n: np.where(random.random(n) < 0.6, 0.0, random.exponential(size=n)),
        lambda random, n: random.normal(size=n),
    ],
    ids=["levels", "counts", "wide counts", "spikes", "plain"],
)
def test_chance_exceeds_what_is_told_in_about_one_case_of_twenty(draw):
    random = np.random.default_rng(1)
    codec = plan_column("x", "x", draw(random, 5000)).codec
    found = [view_of(draw(random, 300), draw(random, 200), codec) for _ in range(150)]
    assert 0.015 <= np.mean([view.distance > view.chance for view in found]) <= 0.1


@pytest.mark.parametrize(
    ("codec", "values"),
    [
        (Lattice(0.0, 1.0, [0, 1], [0.0, 0.5], (0.0, 1.0)), np.random.default_rng(0).poisson(300.0, 400)),
        (Lattice(0.0, 1.0, [0, 1], [0.0, 0.5], (0.0, 1.0)), np.random.default_rng(0).geometric(1 / 500, 400)),
        (Lattice(0.0, 0.25, [0, 1], [0.0, 0.5], (0.0, 1.0)), np.random.default_rng(0).poisson(90.0, 400) / 4 - 7),
    ],
    ids=["linear", "log", "quarters"],
)
def test_edges_of_a_lattice_lie_between_its_values(codec, values):
    values = values.astype(float)
    fitted = fit_lattice(values, float(values.min()), codec.step, False)
    edges = table_figures.number_edges(view_of(values, values, fitted), len(values))
    places = (edges - values.min()) / codec.step
    np.testing.assert_allclose(places - np.floor(places), 0.5, atol=1e-6)
    assert np.mean((values > edges[0]) & (values < edges[-1])) > 0.98


def test_many_columns_and_many_levels_are_thinned():
    random = np.random.default_rng(0)
    names = np.array([f"level {k}" for k in range(40)], object)
    many = view_of(random.choice(names, 300), random.choice(names, 300), Category(names.tolist()))
    labels, data, drawn = table_figures.shown_levels(many)
    assert len(labels) == len(data) == table_figures.MOST_BARS
    assert labels[-1] == "32 others"
    assert [data.sum(), drawn.sum()] == pytest.approx([1, 1])
    figure = table_figures.columns_figure([many] * 30)
    assert sum(bool(ax.get_title(loc="left")) for ax in figure.axes) == probes.MAX_COLUMNS


@pytest.mark.parametrize("data", [[0.0] * 9, [math.nan] * 9, [0.0] * 8 + [5.0]], ids=["spike", "missing", "one"])
def test_a_column_without_other_values_is_drawn(data):
    codec = column_views.Mixed(column_views.Real({"kind": "real"}, 0.0, 1.0), [0.0], True)
    view = view_of(np.array(data), np.array([0.0, 0.0, math.nan]), codec)
    assert "<svg" in page.svg(table_figures.columns_figure([view]), "one column")


def test_counts_beyond_those_seen_have_names():
    view = view_of(np.array([0, 1, 2, 9]), np.array([0, 1, 1, 3]), Count(0.0, 1.0, 3, True))
    assert view.labels == ("0", "1", "2", "over 2", "under 0")
    assert view.shares()[0].tolist() == [0.25, 0.25, 0.25, 0.25, 0]


def test_telling_pairs_are_found_whatever_the_kinds():
    random = np.random.default_rng(0)
    count = 1000
    a, b = random.integers(0, 2, (2, count))
    columns = {
        "noise": random.normal(size=count),
        "a": np.array(["x", "y"], object)[a],
        "b": np.array(["u", "v"], object)[b],
        "even": (a + b) % 2 == 0,
        "size": 3.0 * a + random.normal(size=count),
        "names": random.choice(np.array([f"n{k}" for k in range(30)], object), count),
        "double": 0.0,
    }
    columns["double"] = columns["noise"] ** 2 + 0.01 * random.normal(size=count)
    views = [view_of(values, values) for values in columns.values()]
    names = list(columns)
    choice = choose_pairs(views, 2)
    found = [(names[pair.first], names[pair.second], pair.quantity) for pair in choice.pairs]
    assert found == [("noise", "double", "dependence"), ("a", "size", "dependence")]
    assert len({(pair.first, pair.second) for pair in choose_pairs(views, 6).pairs}) == 6
    assert [(pair.first, pair.second) for pair in choose_pairs(views[:2], 6).pairs] == [(0, 1)]


def test_the_baseline_is_the_likelihood_of_independent_columns(tmp_path):
    random = np.random.default_rng(0)
    count = 4000
    rows = pd.DataFrame(
        {
            "colour": random.choice(["red", "blue"], count, p=[0.8, 0.2]),
            "length": random.normal(5, 3, count),
            "width": np.exp(random.normal(2, 1.5, count)),
            "rain": np.where(random.random(count) < 0.4, 0.0, random.normal(1, 2, count)),
            "calls": random.poisson(900.0, count),
        }
    )
    gaussian = 0.5 * math.log(2 * math.pi * math.e)
    expected = (
        -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
        + (gaussian + math.log(3))
        + (gaussian + math.log(1.5) + 2)
        + (-(0.4 * math.log(0.4) + 0.6 * math.log(0.6)) + 0.6 * (gaussian + math.log(2)))
        + (gaussian + math.log(30))
    )
    run = read_results(trained(tmp_path / "run", rows))
    found = independent_nll(run)
    assert found == pytest.approx(expected, abs=0.2)
    # test rows alone decide: the same shares and moments, to rounding, whatever the flow has learned
    assert found < run.metrics["test_nll_data_units"] + 0.2
