"""Flows of tables against known joint densities, in the user's own units and types."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import jkoflow
from jkoflow import TableFlow, TrainConfig
from jkoflow.checkpoint import CheckpointError
from jkoflow.data import DataError, DataWarning, TableOptions, load_dataset
from jkoflow.training.memory import rows_in_memory
from jkoflow.training.plan import Budget
from jkoflow.training.tables import completed

ROWS = 12_000
CONFIG = TrainConfig(hidden=(64, 64), max_blocks=2, iterations_per_block=500)
SMALL = TrainConfig(hidden=(16,), max_blocks=1, iterations_per_block=30, batch_size=100)
GAP = 0.035  # of categories 0.028 to 0.033, with seeds 0 to 3
"""Largest mean of the true log-density minus the flow's, in nats."""

pytestmark = pytest.mark.filterwarnings("ignore::jkoflow.data.DataWarning")


def poisson_gauss(random, n):
    k = random.poisson(3, n)
    rows = np.stack([k, 0.7 * k + 0.5 * random.standard_normal(n)], 1)
    return rows, lambda r: stats.poisson.logpmf(r[:, 0], 3) + stats.norm.logpdf(r[:, 1], 0.7 * r[:, 0], 0.5)


def wide_poisson_gauss(random, n):
    k = random.poisson(60, n)
    rows = np.stack([k, 0.1 * k + 0.3 * random.standard_normal(n)], 1)
    return rows, lambda r: stats.poisson.logpmf(r[:, 0], 60) + stats.norm.logpdf(r[:, 1], 0.1 * r[:, 0], 0.3)


def categories(random, n):
    means, spreads = np.array([[-3, 0], [0, 3], [3, -1]]), np.array([0.5, 1, 0.2])
    k = random.choice(3, n, p=[0.5, 0.3, 0.2])
    rows = np.column_stack([k, means[k] + spreads[k, None] * random.standard_normal((n, 2))])

    def log_density(r):
        k = r[:, 0].astype(int)
        inside = stats.norm.logpdf(r[:, 1:], means[k], spreads[k, None]).sum(1)
        return np.log(np.array([0.5, 0.3, 0.2]))[k] + inside

    return rows, log_density


def zero_inflated_lognormal(random, n):
    zero = random.random(n) < 0.6
    y = np.where(zero, 0, np.exp(1.5 * random.standard_normal(n)))
    rows = np.stack([y, random.standard_normal(n) + zero], 1)

    def log_density(r):
        zero = r[:, 0] == 0
        positive = math.log(0.4) + stats.lognorm.logpdf(np.where(zero, 1, r[:, 0]), 1.5)
        return np.where(zero, math.log(0.6), positive) + stats.norm.logpdf(r[:, 1], zero)

    return rows, log_density


def beta_with_edges(random, n):
    edge = random.random(n)
    x = np.where(edge < 0.1, 0, np.where(edge < 0.25, 1, random.beta(0.7, 2, n)))
    rows = np.stack([x, random.standard_normal(n)], 1)

    def log_density(r):
        x = r[:, 0]
        inside = math.log(0.75) + stats.beta.logpdf(np.where((x == 0) | (x == 1), 0.5, x), 0.7, 2)
        masses = np.where(x == 0, math.log(0.1), np.where(x == 1, math.log(0.15), inside))
        return masses + stats.norm.logpdf(r[:, 1])

    return rows, log_density


def integer_grid(random, n):
    a = random.integers(0, 12, n)
    rows = np.stack([a, a // 2 + random.integers(0, 5, n)], 1).astype(float)
    return rows, lambda r: np.full(len(r), -math.log(12) - math.log(5))


JOINT = [poisson_gauss, wide_poisson_gauss, categories, zero_inflated_lognormal, beta_with_edges, integer_grid]


@pytest.fixture(scope="module", params=JOINT, ids=lambda case: case.__name__)
def trained(request):
    random = np.random.default_rng(7)
    rows, _ = request.param(random, ROWS)
    return jkoflow.train(rows, CONFIG), *request.param(random, 4000)


def test_gap_to_the_true_density(trained):
    flow, rows, log_density = trained
    assert isinstance(flow, TableFlow)
    found = flow.log_prob(rows).numpy()
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    assert (log_density(rows) - found).mean() < GAP
    assert flow.metrics["test_nll_data_units"] == pytest.approx(-log_density(rows).mean(), abs=0.1)


def test_samples_have_the_true_density(trained):
    flow, rows, log_density = trained
    drawn = flow.sample(4000, generator=torch.Generator().manual_seed(0)).numpy()
    # the mean of log p over samples of q is that over samples of p if q is p
    inside = np.isfinite(log_density(drawn))
    assert inside.mean() > 0.995
    assert log_density(drawn[inside]).mean() == pytest.approx(log_density(rows).mean(), abs=0.12)
    repeated = [column for column in rows.T if len(np.unique(column)) < len(column) / 2]
    for column, values in zip(rows.T, drawn.T, strict=True):
        if any(column is other for other in repeated):
            assert np.isin(values, np.union1d(np.unique(column), np.arange(200))).mean() > 0.3


def test_masses_of_a_discrete_table_sum_to_one():
    rows, _ = integer_grid(np.random.default_rng(0), ROWS)
    flow = jkoflow.train(rows, SMALL)
    grid = np.stack(np.meshgrid(np.arange(-20, 60), np.arange(-20, 60), indexing="ij"), 2).reshape(-1, 2)
    assert float(flow.log_prob(grid.astype(float)).exp().sum()) == pytest.approx(1, abs=1e-4)


def test_masses_and_densities_of_a_mixed_table_sum_to_one():
    rows, _ = poisson_gauss(np.random.default_rng(0), ROWS)
    flow = jkoflow.train(rows, SMALL)
    x = np.linspace(-6, 16, 1500)
    total = sum(
        np.trapezoid(flow.log_prob(np.column_stack([np.full(len(x), k), x])).exp().numpy(), x) for k in range(40)
    )
    assert total == pytest.approx(1, abs=5e-3)


def test_masses_of_a_wide_integer_column_sum_to_one():
    rows, _ = wide_poisson_gauss(np.random.default_rng(0), ROWS)
    flow = jkoflow.train(rows[:, :1], SMALL)
    grid = np.arange(0, 400)[:, None]
    assert float(flow.log_prob(grid).exp().sum()) == pytest.approx(1, abs=5e-3)


# frames


@pytest.fixture(scope="module")
def frame():
    random = np.random.default_rng(3)
    n = 2000
    kind = np.array(["ash", "beech", "oak"])[random.integers(0, 3, n)]
    return pd.DataFrame(
        {
            "kind": kind,
            "rings": random.poisson(4, n),
            "height": np.exp(random.standard_normal(n) + (kind == "oak")),
            "felled": random.random(n) < 0.2,
            "day": pd.Timestamp("2021-03-01") + pd.to_timedelta(random.integers(0, 500, n), "D"),
            "snow": np.where(random.random(n) < 0.5, 0.0, random.gamma(2, 3, n)),
            "note": np.where(random.random(n) < 0.1, np.nan, random.standard_normal(n)),
        }
    )


@pytest.fixture(scope="module")
def forest(frame):
    return jkoflow.train(frame, SMALL, missing="indicator")


def test_samples_speak_the_types_of_a_frame(frame, forest):
    drawn = forest.sample(500, generator=torch.Generator().manual_seed(1))
    assert list(drawn.columns) == list(frame.columns)
    assert set(drawn["kind"]) == {"ash", "beech", "oak"}
    assert drawn["rings"].dtype.kind == "i"
    assert drawn["felled"].dtype == bool
    assert drawn["day"].dtype.kind == "M"
    assert (drawn["day"] == drawn["day"].dt.normalize()).all()
    assert (drawn["height"] > 0).all()
    assert 0.3 < (drawn["snow"] == 0).mean() < 0.7
    assert 0.02 < drawn["note"].isna().mean() < 0.25
    again, log_prob = forest.sample_and_log_prob(500, generator=torch.Generator().manual_seed(1))
    pd.testing.assert_frame_equal(drawn, again)
    assert torch.equal(log_prob, forest.log_prob(drawn))
    assert torch.isfinite(log_prob).all()


def test_columns_of_a_frame_are_found_by_name(frame, forest):
    rows = frame.head(20)
    expected = forest.log_prob(rows)
    assert torch.equal(forest.log_prob(rows[rows.columns[::-1]]), expected)
    assert torch.equal(forest.log_prob(rows.assign(other=1)), expected)
    with pytest.raises(DataError, match="lacks the column rings"):
        forest.log_prob(rows.drop(columns="rings"))


def test_rows_do_not_depend_on_their_neighbours(frame, forest):
    together = forest.log_prob(frame.head(50))
    alone = torch.cat([forest.log_prob(frame.iloc[[row]]) for row in range(50)])
    assert torch.equal(together, alone)


def test_what_cannot_be_has_density_zero(frame, forest):
    rows = frame.head(1)
    for change in ({"kind": "pine"}, {"rings": 2.5}, {"height": -1.0}):
        assert float(forest.log_prob(rows.assign(**change))) == -math.inf
    assert np.isfinite(float(forest.log_prob(rows.assign(rings=40))))


def test_the_one_odd_date_is_named(frame, forest):
    odd = frame.head(9).assign(day=["2021-05-17"] * 6 + ["17.05.2021"] + ["2021-05-18"] * 2)
    with pytest.raises(DataError, match=r"'17.05.2021' in row 6"):
        forest.log_prob(odd)


def test_a_table_flow_survives_its_file(frame, forest, tmp_path):
    forest.save(tmp_path / "m.safetensors")
    again = jkoflow.load(tmp_path / "m.safetensors")
    assert isinstance(again, TableFlow)
    assert torch.equal(again.log_prob(frame.head(100)), forest.log_prob(frame.head(100)))
    assert again.metrics == forest.metrics
    assert not any(parameter.requires_grad for parameter in again.parameters())
    with pytest.raises(CheckpointError, match=r"jkoflow\.load"):
        jkoflow.JKOFlow.load(tmp_path / "m.safetensors")
    plain = jkoflow.JKOFlow(2)
    plain.save(tmp_path / "p.safetensors")
    assert isinstance(jkoflow.load(tmp_path / "p.safetensors"), jkoflow.JKOFlow)
    with pytest.raises(CheckpointError, match=r"jkoflow\.load"):
        TableFlow.load(tmp_path / "p.safetensors")


def test_metrics_tell_the_columns(frame, forest):
    columns = {column["name"]: column for column in forest.metrics["columns"]}
    assert {name: column["kind"] for name, column in columns.items()} == {
        "kind": "category",
        "rings": "integer",
        "height": "log",
        "felled": "boolean",
        "day": "date",
        "snow": columns["snow"]["kind"],
        "note": "real+missing",
    }
    assert columns["snow"]["kind"].endswith("+spikes")
    assert columns["snow"]["measure"] == "mass and density"


# conditioning


def test_a_table_may_be_conditional_on_columns_of_any_kind():
    random = np.random.default_rng(5)
    n = 6000
    kind = np.array(["a", "b"], object)[random.integers(0, 2, n)]
    c = random.standard_normal(n)
    c[0] = 1e6
    x = np.where(kind == "a", np.sin(2 * np.clip(c, -9, 9)), -2) + 0.3 * random.standard_normal(n)
    k = random.poisson(np.where(kind == "a", 1, 6))
    frame, context = pd.DataFrame({"x": x, "k": k}), pd.DataFrame({"c": c, "kind": kind})
    flow = jkoflow.train(frame, CONFIG, context=context)
    assert flow.context_features == ("c", "kind")
    mean = np.where(kind == "a", np.sin(2 * c), -2)
    true = stats.norm.logpdf(x, mean, 0.3) + stats.poisson.logpmf(k, np.where(kind == "a", 1, 6))
    found = flow.log_prob(frame, context).numpy()
    assert (true - found)[1:].mean() < 0.08
    joint = flow.log_prob(pd.concat([frame, context], axis=1)).numpy()
    np.testing.assert_array_equal(joint, found)
    drawn = flow.sample(n, context, generator=torch.Generator().manual_seed(0))
    assert drawn["k"][kind == "b"].mean() == pytest.approx(6, abs=0.4)
    with pytest.raises(DataError, match="context must have the columns c, kind"):
        flow.sample(3)
    with pytest.raises(DataError, match="'z' in row 0"):
        flow.sample(1, pd.DataFrame({"c": [0.0], "kind": ["z"]}))


# runs


def test_a_run_of_a_table_resumes_and_is_refused_for_other_data(frame, tmp_path):
    first = jkoflow.train(frame, SMALL, missing="indicator", run_dir=tmp_path / "run")
    again = jkoflow.train(frame, SMALL, missing="indicator", run_dir=tmp_path / "run", resume=True)
    assert torch.equal(again.log_prob(frame.head(9)), first.log_prob(frame.head(9)))
    changed = frame.assign(height=frame["height"] * 1.01)
    with pytest.raises(jkoflow.training.RunError, match="data have changed"):
        jkoflow.train(changed, SMALL, missing="indicator", run_dir=tmp_path / "run", resume=True)


def test_a_table_flow_can_be_trained_further(frame, forest):
    further = jkoflow.train(frame, SMALL, missing="indicator", start=forest)
    assert isinstance(further, TableFlow)
    assert further.metrics["test_nll"] <= forest.metrics["test_nll"] + 0.02


def test_kinds_of_numbers_are_told_and_those_of_text_are_not(frame):
    with pytest.warns(DataWarning) as told:
        jkoflow.train(frame.drop(columns="note"), SMALL)
    texts = [str(warning.message) for warning in told]
    assert any("'rings' is taken for integer" in text for text in texts)
    assert not any("'kind'" in text or "'day'" in text for text in texts)


# row numbers, and columns by name


@pytest.mark.filterwarnings("default::jkoflow.data.DataWarning")
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", ["Unnamed: 0", "id", None])
def test_row_numbers_in_memory_are_left_out_unless_an_option_is_about_them(start, name):
    random = np.random.default_rng(0)
    numbers = random.standard_normal((1000, 2))
    rows = np.insert(numbers, 0, np.arange(1000) + start, 1)
    given = rows if name is None else pd.DataFrame(rows, columns=[name, "a", "b"])
    column = "x0" if name is None else name
    with pytest.warns(DataWarning, match=rf"left out row numbers: '{column}'; columns=.*keeps"):
        flow = jkoflow.train(given, SMALL)
    assert flow.sample(5).shape == (5, 2)
    if isinstance(given, pd.DataFrame):
        assert torch.equal(flow.log_prob(given), flow.log_prob(given[["a", "b"]]))
        assert jkoflow.train(given, SMALL, split_by=name).dim == 2
        assert jkoflow.train(given.assign(**{name: rows[:, 0] // 10}), SMALL, group=name).dim == 2
    kept = jkoflow.train(given, SMALL, columns={column: "integer"})
    assert kept.features[0] == column
    assert torch.isfinite(kept.log_prob(given)).all()


def test_plain_flows_find_columns_of_frames_by_name():
    random = np.random.default_rng(0)
    rows = pd.DataFrame(random.standard_normal((1000, 3)) * [1, 5, 20], columns=["a", "b", "c"])
    flow = jkoflow.train(rows, SMALL)
    assert torch.equal(flow.log_prob(rows[["c", "a", "b"]].assign(d=0)), flow.log_prob(rows.to_numpy()))
    given = jkoflow.train(rows[["a", "b"]], SMALL, context=rows[["c"]])
    wanted = given.log_prob(rows[["a", "b"]].to_numpy(), rows[["c"]].to_numpy())
    assert torch.equal(given.log_prob(rows), wanted)
    assert torch.equal(given.log_prob(rows[["b", "a"]], rows[["b", "c"]]), wanted)


def test_a_function_is_refused_where_values_are_missing_too():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 1000))
    absent = random.random(1000) < 0.2
    for rows in ([np.where(absent, np.nan, a), b, 2 * a], [a, b, np.where(absent, np.nan, a + b)]):
        with pytest.raises(DataError, match="'x2' is a function of others"):
            jkoflow.train(np.stack(rows, 1), SMALL, missing="indicator")


@pytest.mark.parametrize("seconds", [0.0, 0.2, 10.0])
def test_no_more_masses_are_integrated_than_a_time_budget_has_time_for(seconds):
    random = np.random.default_rng(0)
    rows = np.stack([random.poisson(60, 4000), random.standard_normal(4000)], 1)
    data, _ = rows_in_memory(rows, 0)
    model = jkoflow.train(data, SMALL)
    now, told = [0.0], list[str]()

    def clock():
        now[0] += 50 * seconds  # between two looks, for the 50 rows that are timed
        return now[0]

    complete = completed(data, model.masses, Budget(clock, 80.0), told.append)
    found = complete(model.flow, {**model.metrics, "n_test": 400})[1]
    wanted = {0.0: 400, 0.2: 275, 10.0: 200}[seconds]
    assert found["n_test"] == wanted
    assert told == [] if wanted == 400 else f"{wanted} of 400" in told[0]


@pytest.mark.parametrize("rows", [np.zeros((0, 2)), pd.DataFrame({"a": [], "b": []}), pd.DataFrame({"a": ["x"]})[:0]])
def test_a_table_without_rows_is_refused_as_such(rows):
    with pytest.raises(DataError, match="has 0 rows; give at least 10"):
        jkoflow.train(rows, SMALL)


def test_numbers_and_text_in_one_column_are_names_if_told(tmp_path):
    random = np.random.default_rng(0)
    mix = np.array(["1", "2", "x"], object)[random.choice(3, 600, p=[0.5, 0.4, 0.1])]
    unit = np.array(["5%", "7%"], object)[random.integers(0, 2, 600)]
    frame = pd.DataFrame({"mix": mix, "unit": unit, "y": random.standard_normal(600)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=r"'x' in row .*--columns mix=category or mix=drop"):
        load_dataset(tmp_path / "t.csv", options=TableOptions(columns={"unit": "drop"}))
    with pytest.raises(DataError, match=r"with a unit.*--columns unit=category"):
        load_dataset(tmp_path / "t.csv", options=TableOptions(columns={"mix": "category"}))
    told = {"mix": "category", "unit": "category"}
    data = load_dataset(tmp_path / "t.csv", options=TableOptions(columns=told))
    assert data.schema.levels == [3, 2]
    mixed = frame.assign(mix=[int(value) if value.isdigit() else value for value in mix])
    flow = jkoflow.train(mixed, SMALL, columns=told)
    assert torch.isfinite(flow.log_prob(mixed)).all()
    assert set(flow.sample(200)["mix"]) <= {"1", "2", "x"}
