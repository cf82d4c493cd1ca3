"""Kinds of columns: what they are taken for, and that masses and densities are exact."""

import numpy as np
import pytest
import torch
from scipy import stats

from jkoflow.data import DataError, Dataset, DataWarning, TableOptions, as_table
from jkoflow.data.columns.codec import Category, Count, Lattice, fit_lattice
from jkoflow.data.columns.dependence import Rounding, find_dependences
from jkoflow.data.columns.inspection import inspect_table
from jkoflow.data.columns.kinds import plan_column
from jkoflow.data.columns.lattice import find_spacing
from jkoflow.data.columns.numbers import Mixed, Real, Weekly
from jkoflow.data.columns.override import parse_override, parse_overrides, split_overrides
from jkoflow.data.columns.prepare import prepare
from jkoflow.data.columns.schema import Schema
from jkoflow.data.continuous import choose_links
from jkoflow.data.table import Table
from jkoflow.quadrature import quadrature

ROWS = 3000


@pytest.fixture
def random():
    return np.random.default_rng(0)


def plan(values, kind=None):
    override = None if kind is None else parse_override("x", kind)
    return plan_column("x", "column 'x'", values, override=override)


def some_columns(random):
    days = np.datetime64("2020-01-01") + random.integers(0, 600, ROWS).astype("timedelta64[D]")
    spiked = np.where(random.random(ROWS) < 0.6, 0.0, np.exp(random.standard_normal(ROWS) + 8))
    return {
        "real": random.standard_normal(ROWS),
        "float32": random.standard_normal(ROWS).astype(np.float32),
        "large": (1e10 * random.standard_normal(ROWS)).astype(np.float32),
        "tiny": 1e-30 * random.standard_normal(ROWS),
        "clock": 1.7e9 + 100 * random.standard_normal(ROWS),
        "log": np.exp(3 * random.standard_normal(ROWS)),
        "logit": random.beta(0.5, 0.5, ROWS),
        "integer": random.poisson(4, ROWS),
        "integer wide": random.poisson(400, ROWS).astype(float),
        "integer skewed": np.floor(np.exp(2 * random.standard_normal(ROWS) + 3)),
        "grid": random.standard_normal(ROWS).round(1),
        "grid quarter": random.integers(0, 70, ROWS) * 0.25,
        "boolean": random.random(ROWS) < 0.3,
        "category": np.array(["a", "bb", "c"], object)[random.integers(0, 3, ROWS)],
        "category 01": (random.random(ROWS) < 0.3).astype(float),
        "category of numbers": np.array([0.1, 0.37, 2.2, 9.0])[random.integers(0, 4, ROWS)],
        "date": days,
        "date second": days.astype("datetime64[s]") + random.integers(0, 86400, ROWS).astype("timedelta64[s]"),
        "log+spikes": spiked,
        "integer+spikes": spiked.round(),
        "real+spikes": np.where(random.random(ROWS) < 0.01, -999.0, random.standard_normal(ROWS)),
        "real+missing": np.where(random.random(ROWS) < 0.1, np.nan, random.standard_normal(ROWS)),
        "integer+missing": np.where(random.random(ROWS) < 0.1, np.nan, random.poisson(60, ROWS)),
        "constant": np.full(ROWS, 3.0),
        "constant text": np.array(["same"] * ROWS, object),
    }


NAMES = list(some_columns(np.random.default_rng(0)))


@pytest.mark.parametrize("name", NAMES)
def test_kind_is_found_and_every_value_comes_back(random, name):
    values = some_columns(random)[name]
    found = plan(values)
    assert found.kind == name.partition(" ")[0].replace("float32", "real").replace("large", "real").replace(
        "tiny", "real"
    ).replace("clock", "real")
    assert found.reason
    assert found.treatment
    coded = found.codec.encode(values, random.random(ROWS))
    assert (coded.states >= 0).all()
    assert (coded.states < found.codec.states).all()
    back = found.codec.decode(coded.states, coded.numbers)
    if values.dtype.kind == "f":
        np.testing.assert_allclose(back.astype(float), values, rtol=1e-9, atol=1e-12 * np.nanstd(values))
    else:
        np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("constant")])
def test_numbers_are_of_moderate_size_and_features_finite(random, name):
    found = plan(some_columns(random)[name])
    coded = found.codec.encode(some_columns(np.random.default_rng(0))[name], random.random(ROWS))
    assert np.abs(coded.numbers).max() < 12
    features = found.codec.features(some_columns(np.random.default_rng(0))[name])
    assert features.shape[0] == ROWS
    assert np.isfinite(features).all()
    assert np.abs(features).max() < 12


def test_text_that_names_rows_is_left_out(random):
    found = plan(np.array([f"id{row}" for row in range(ROWS)], object))
    assert found.codec is None
    assert "identifier" in found.reason
    assert plan(np.array([f"id{row}" for row in range(ROWS)], object), "category").codec.states == ROWS


# exact masses


def mass(codec, values, points=64):
    """The mass of values of a lattice under a flow that is the identity, whose density is the Gaussian's."""
    nodes, log_weights = quadrature(1, points)
    terms = []
    for node, weight in zip(nodes[:, 0], log_weights, strict=True):
        coded = codec.encode(values, np.full(len(values), node))
        terms.append(coded.log_weights + stats.norm.logpdf(coded.numbers) + weight)
    return np.exp(np.logaddexp.reduce(terms, 0)) * (coded.states >= 0)


@pytest.mark.parametrize("mean", [0.7, 5, 40, 900])
def test_masses_of_a_lattice_sum_to_one_and_are_those_of_the_data(random, mean):
    values = random.poisson(mean, 20_000)
    codec = fit_lattice(values.astype(float), float(values.min()), 1.0, natural=values.min() == 0)
    grid = np.arange(0, 4 * mean + 60)
    masses = mass(codec, grid)
    assert masses.sum() == pytest.approx(1, abs=1e-4)
    true = stats.poisson.pmf(grid, mean)
    excess = (true * (np.log(np.maximum(true, 1e-300)) - np.log(np.maximum(masses, 1e-300)))).sum()
    assert excess < (0.01 if mean < 100 else 0.025)  # a histogram of 200 bins costs more than one of a few values


def test_a_lattice_has_tails_beyond_the_values_seen_and_none_below_natural_ones():
    codec = fit_lattice(np.arange(0.0, 50).repeat(20), 0.0, 1.0, natural=True)
    outside = mass(codec, np.array([-1, -5, 50, 60, 200]))
    np.testing.assert_array_equal(outside[:2], 0)
    assert (outside[2:4] > 0).all()
    assert (np.diff(outside[2:]) < 0).all()
    both = fit_lattice(np.arange(10.0, 50).repeat(20), 10.0, 1.0, natural=False)
    assert (mass(both, np.array([9, 5])) > 0).all()


def test_values_off_the_lattice_are_impossible():
    codec = fit_lattice(np.arange(0.0, 50).repeat(20), 0.0, 1.0, natural=True)
    assert codec.encode(np.array([1.0, 2.5, 3.0]), np.full(3, 0.5)).states.tolist() == [0, -1, 0]
    count = Count(0.0, 1.0, 5, False)
    assert count.encode(np.array([0.0, 4.0, 5.0, 9.0, -1.0, 0.5]), np.zeros(6)).states.tolist() == [0, 4, 5, 5, -1, -1]


def test_masses_beyond_a_count_fall_geometrically_and_sum_to_one():
    count = Count(2.0, 1.0, 3, True, ratio=0.4)
    beyond = count.encode(np.arange(5, 200), np.zeros(195))
    assert (beyond.states == 3).all()
    assert np.exp(beyond.log_weights).sum() == pytest.approx(1)
    below = count.encode(np.arange(1, -100, -1), np.zeros(101))
    assert (below.states == 4).all()
    assert np.exp(below.log_weights).sum() == pytest.approx(1)


@pytest.mark.parametrize("link", ["real", "log", "logit:0:1"])
def test_density_of_a_real_column_integrates_to_one(random, link):
    values = random.beta(2, 3, ROWS)
    codec = plan(values, link).codec
    x = np.linspace(1e-9, 1 - 1e-9, 200_001) if link != "real" else np.linspace(-3, 4, 200_001)
    x = np.linspace(1e-9, 40, 400_001) if link == "log" else x
    coded = codec.encode(x, np.full(len(x), 0.5))
    density = np.exp(coded.log_weights + stats.norm.logpdf(coded.numbers))
    assert np.trapezoid(density, x) == pytest.approx(1, abs=2e-3)


def test_filler_of_a_spike_integrates_to_one(random):
    values = np.where(random.random(ROWS) < 0.5, 0.0, random.standard_normal(ROWS))
    codec = plan(values).codec
    assert isinstance(codec, Mixed)
    np.testing.assert_allclose(mass(codec, np.zeros(3)), 1, atol=1e-9)


@pytest.mark.parametrize(("weeks", "unit"), [(8, "D"), (60, "D"), (500, "D"), (8, "s"), (60, "us"), (500, "h")])
@pytest.mark.parametrize("start", ["1931-03-01", "1970-01-01", "2024-02-27"])
def test_dates_with_a_weekly_pattern_have_states_for_the_days_of_the_week(random, weeks, unit, start):
    days = random.choice(7, ROWS, p=[0.2, 0.2, 0.2, 0.2, 0.14, 0.05, 0.01]) + 7 * random.integers(0, weeks, ROWS)
    values = np.datetime64(start) + days.astype("timedelta64[D]")
    if unit != "D":
        ticks = int(np.timedelta64(1, "D") / np.timedelta64(1, unit))
        values = values.astype(f"datetime64[{unit}]") + random.integers(0, ticks, ROWS).astype(f"timedelta64[{unit}]")
    values = values.astype("datetime64[us]")
    found = plan(values)
    assert isinstance(found.codec, Weekly)
    assert "weekly" in found.reason
    coded = found.codec.encode(values, random.random(ROWS))
    assert sorted(set(coded.states)) == list(range(7))
    shares = np.bincount(coded.states) / ROWS
    np.testing.assert_allclose(np.sort(shares)[-1], 0.2, atol=0.04)
    back = found.codec.decode(coded.states, coded.numbers)
    assert np.abs((back - values) / np.timedelta64(1, unit)).max() <= (0 if unit != "us" else 1)
    assert found.codec.features(values).shape == (ROWS, 8)
    schema = Schema(("t",), (found.codec,))
    assert Schema.from_description(schema.describe()) == schema
    if unit == "D":
        grid = values.min() + np.arange(-6000, 7 * weeks + 6000).astype("timedelta64[D]")
        assert mass(found.codec, grid).sum() == pytest.approx(7, abs=1e-2)  # one for each state


def test_dates_without_a_weekly_pattern_have_no_states(random):
    values = (np.datetime64("2020-01-01") + random.integers(0, 2000, ROWS).astype("timedelta64[D]")).astype("M8[us]")
    assert plan(values).codec.states == 1
    months = (np.datetime64("2015-01") + random.integers(0, 48, ROWS).astype("timedelta64[M]")).astype("M8[us]")
    found = plan(months)
    assert found.kind == "date"
    assert not isinstance(found.codec, Weekly)
    assert found.codec.encode(np.array(["2019-02-01"], "M8[us]"), np.full(1, 0.5)).states == 0  # later ones may come


@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        (np.array([True, False] * 20), "integer", "true or false, which cannot be integer"),
        (np.array([True, False] * 20, object), "real", "true or false, which cannot be real"),
        (np.arange(40.0), "boolean", "not true or false: it has 40 different values"),
        (np.array(["a", "b", "c"] * 20, object), "boolean", "not true or false"),
        (np.arange(40).astype("M8[D]").astype("M8[us]"), "category", "dates, which cannot be category"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(values, kind, says):
    with pytest.raises(DataError, match=says):
        plan(values, kind)


def test_dates_may_be_called_dates(random):
    values = (np.datetime64("2020-01-01") + random.integers(0, 600, ROWS).astype("timedelta64[D]")).astype("M8[us]")
    assert plan(values, "date") == plan(values)


@pytest.mark.parametrize(
    ("bound", "low", "high", "decimals"),
    [
        (0.0, 0.0, np.inf, None),
        (0.0, 0.0, np.inf, 2),
        (0.0, 0.0, np.inf, 0),
        (1.0, 0.0, 1.0, None),
        (100.0, 0.0, 100.0, 2),
    ],
)
def test_a_repeated_bound_is_an_edge_of_the_other_values(random, bound, low, high, decimals):
    others = 8000 * np.exp(0.4 * random.standard_normal(ROWS)) if bound == 0 else bound * random.beta(3, 3, ROWS)
    if decimals is not None:
        others = np.clip(others.round(decimals), low + 10.0**-decimals, high - 10.0**-decimals)
    values = np.where(random.random(ROWS) < 0.3, bound, others)
    codec = plan(values).codec
    assert isinstance(codec, Mixed)
    drawn = codec.decode(np.zeros(ROWS, np.int64), 6 * random.standard_normal(ROWS)).astype(float)
    assert (drawn >= low).all()
    assert (drawn <= high).all()


@pytest.mark.parametrize("codes", [[1, 5000, 90000], [1, 2, 1000]])
def test_irregular_numbers_may_be_called_integers(random, codes):
    values = np.array(codes)[random.integers(0, len(codes), ROWS)]
    found = plan(values, "integer")
    assert (found.codec.encode(values, random.random(ROWS)).states >= 0).all()


@pytest.mark.parametrize(
    ("spike", "mean", "step"), [(0, 30, 1), (-999, 300, 1), (3000, 300, 1), (500, 500, 1), (-1, 40, 0.1), (0, 4000, 2)]
)
def test_spikes_of_a_lattice_are_states_and_their_cells_have_no_other_mass(random, spike, mean, step):
    values = step * np.where(random.random(ROWS) < 0.4, spike, random.poisson(mean, ROWS))
    values = values.round(6) if step < 1 else values
    found = plan(values)
    assert isinstance(found.codec, Mixed)
    assert found.kind == ("integer+spikes" if step == 1 else "grid+spikes")
    coded = found.codec.encode(values, random.random(ROWS))
    assert (coded.states >= 0).all()
    assert coded.states.mean() == pytest.approx((np.abs(values - step * spike) < step / 2).mean())
    np.testing.assert_allclose(found.codec.decode(coded.states, coded.numbers), values, rtol=1e-12, atol=1e-9)
    grid = (step * np.arange(-200, 3 * mean + 200)).round(6)
    grid = grid[np.abs(grid - step * spike) > step / 2]
    assert mass(found.codec, grid).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "codes", [[1, 2, 3, 99], [1067, 10115, 20095, 50667], [0.5, 1, 2.5, 10], [1, 8, 64, 512, 4096]]
)
def test_few_irregular_numbers_are_names(random, codes):
    values = np.array(codes)[random.integers(0, len(codes), ROWS)]
    found = plan(values)
    assert found.kind == "category"
    assert "irregular" in found.reason
    assert found.codec.levels == codes
    values[:3] = np.array(codes[:1]) + np.arange(1, 4)  # numbers that are rare: there may be others
    assert plan(values).kind != "category" or codes[-1] > 1000


def test_many_irregular_numbers_keep_cells_of_their_own(random):
    codes = np.sort(random.choice(90_000, 300, replace=False))
    values = codes[random.integers(0, 300, 10 * ROWS)]
    found = plan(values)
    assert isinstance(found.codec, Lattice)
    assert mass(found.codec, codes).sum() > 0.99


def test_a_slope_of_frequent_counts_has_no_spikes(random):
    assert plan(random.negative_binomial(0.3, 0.001, ROWS)).kind == "integer"
    assert plan(np.floor(random.pareto(0.6, ROWS))).kind == "integer"


@pytest.mark.parametrize("rows", [2000, 20_000])
def test_the_numbers_beside_a_value_of_nearly_all_rows_are_no_names(random, rows):
    values = np.zeros(rows)
    values[:: rows // 8] = random.standard_normal(len(values[:: rows // 8]))
    assert plan(values).kind == "real+spikes"


def test_quadrature_is_exact_for_smooth_functions():
    for dims, tolerance in ((1, 1e-9), (2, 0.05), (5, 0.2)):
        nodes, log_weights = quadrature(dims, 256)
        assert np.exp(log_weights).sum() == pytest.approx(1)
        assert ((nodes > 0) & (nodes < 1)).all()
        value = (np.exp(log_weights) * np.prod(3 * nodes**2, 1)).sum()
        assert value == pytest.approx(1, abs=tolerance)


# overrides


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("whole", "must be one of"),
        ("integr", "did you mean integer"),
        ("logit:1", "between two edges"),
        ("logit:1:0", "between two edges"),
        ("log:a", "not numbers"),
        ("grid:-1", "must be positive"),
        ("category+spikes", "for real numbers"),
        ("real+tails", "must be one of"),
    ],
)
def test_wrong_kinds_are_refused(text, says):
    with pytest.raises(DataError, match=says) as caught:
        parse_override("x", text)
    assert "\n" not in str(caught.value)


def test_overrides_are_read_from_the_command_line_and_checked_against_names():
    assert split_overrides("age=integer, my column=logit:0:100") == {"age": "integer", "my column": "logit:0:100"}
    with pytest.raises(DataError, match="name=kind"):
        split_overrides("age")
    with pytest.raises(DataError, match="did you mean 'age'"):
        parse_overrides({"aeg": "integer"}, ("age", "x"))


@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        (np.array([0.5, 1.0, 2.0] * 20), "integer", "not whole"),
        (np.array([-1.0, 1.0, 2.0] * 20), "log", "not above the edge"),
        (np.array([-1.0, 0.5] * 20), "logit:0:1", "not between the edges"),
        (np.array(["a", "b"] * 20, object), "real", "is text"),
        (np.random.default_rng(0).standard_normal(50), "constant", "is not constant"),
        (np.random.default_rng(0).standard_normal(50), "date", "not dates"),
        (np.random.default_rng(0).standard_normal(50), "grid:0.1", "not a grid"),
    ],
)
def test_kinds_that_do_not_fit_are_refused_with_the_column(values, kind, says):
    with pytest.raises(DataError, match=says) as caught:
        plan(values, kind)
    assert "column 'x'" in str(caught.value)


def test_kinds_that_are_told_win(random):
    values = random.poisson(4, ROWS).astype(float)
    assert isinstance(plan(values, "real").codec, Real)
    assert isinstance(plan(values, "category").codec, Category)
    assert plan(values, "drop").codec is None
    assert isinstance(plan(random.poisson(60, ROWS), "grid:1").codec, Lattice)


# dependences


def dependences(**columns):
    return {
        hit.name: hit.formula for hit in find_dependences(columns, {name: rounding(c) for name, c in columns.items()})
    }


def rounding(values):
    spacing = find_spacing(values.astype(float), values.dtype)
    step = 0.5 * spacing.step if spacing is not None and not spacing.whole else 0.0
    return Rounding(8 * float(np.finfo(values.dtype).eps), step)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_functions_of_other_columns_are_found(random, dtype, scale):
    a, b, c = (scale * random.standard_normal((3, ROWS))).astype(dtype)
    e = np.exp(b / dtype(scale))
    shares = random.dirichlet([1, 2, 3], ROWS).astype(dtype)
    assert dependences(a=a, y=2 * a) == {"y": "2 a"}
    assert dependences(a=a, b=b, y=a + b) == {"y": "a + b"}
    assert dependences(a=a, y=a.copy()) == {"y": "a copy of a"}
    assert list(dependences(a=a, b=b, c=c, y=(a + b + c) / 3)) == ["y"]
    assert list(dependences(p=shares[:, 0], q=shares[:, 1], r=shares[:, 2])) == ["r"]
    assert dependences(b=b, y=e) == {"y": "a function of b, increasing"}
    u, v = e, np.exp(random.standard_normal(ROWS)).astype(dtype)
    assert dependences(u=u, v=v, y=u * v) == {"y": "u * v"}
    assert dependences(a=a, b=b, y=a * b) == {"y": "+-|a| * |b|"}
    assert dependences(a=a, y=a**2) == {"y": "|a|^2"}
    assert dependences(a=a, y=dtype(3) * np.abs(a)) == {"y": "3 * |a|"}


@pytest.mark.parametrize("size", [1e4, 1e7, 1e9])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_wild_row_makes_no_function_of_noise_and_hides_none(random, dtype, size):
    a, b = random.standard_normal((2, ROWS)).astype(dtype)
    a[7] = b[7] = size
    assert dependences(a=a, b=b) == {}
    assert dependences(a=a, y=a + dtype(0.01) * b) == {}
    assert list(dependences(a=a, y=2 * a)) == ["y"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_noise_of_a_product_is_seen_however_far_its_values_spread(random, dtype):
    u, v = np.exp(3 * random.standard_normal((2, ROWS))).astype(dtype)
    assert dependences(u=u, v=v, y=u * v) == {"y": "u * v"}
    assert dependences(u=u, v=v, y=u * v * np.exp(1e-3 * random.standard_normal(ROWS)).astype(dtype)) == {}


def test_rounding_does_not_hide_a_dependence(random):
    shares = random.dirichlet([1, 2, 3], ROWS).round(2)
    assert dependences(p=shares[:, 0], q=shares[:, 1], r=shares[:, 2]) == {"r": "- p - q + 1"}
    celsius = (10 * random.standard_normal(ROWS) + 15).round(1)
    assert dependences(c=celsius, f=(1.8 * celsius + 32).round(1)) == {"f": "1.8 c + 32"}


def test_noise_is_no_dependence(random):
    a, b = random.standard_normal((2, ROWS))
    assert dependences(a=a, y=a + 1e-3 * b) == {}
    assert dependences(a=a.round(1), y=(a + b).round(1)) == {}
    assert dependences(a=a[:12], b=b[:12], c=(a * b)[:12], d=(a + b**2)[:12]) == {}  # too few rows to tell


# whole tables


def table(**columns):
    return Table({"all": list(columns.values())}, tuple(columns))


def test_dependent_columns_are_refused_dropped_or_repeated(random):
    a, b = random.standard_normal((2, ROWS))
    rows = table(a=a, b=b, y=2 * a - b + 1)
    with pytest.raises(DataError, match=r"'y' is a function of others \(y = 2 a - b \+ 1\).*--columns y=drop"):
        prepare(rows, "t", 0, TableOptions(), frames=False)
    dropped = prepare(rows, "t", 0, TableOptions(columns={"y": "drop"}), frames=False)
    assert dropped.features == ("a", "b")
    repeated = prepare(rows, "t", 0, TableOptions(columns={"y": "dependent"}), frames=False)
    coded = repeated.schema.encode(repeated.columns["test"], np.full((300, 3), 0.5))
    assert np.isfinite(coded.log_weights).all()
    back = repeated.schema.decode(coded.states, coded.numbers)
    np.testing.assert_allclose(back["y"], repeated.columns["test"]["y"], rtol=1e-9)
    broken = dict(repeated.columns["test"])
    broken["y"] = broken["y"] + 1e-3
    assert np.isneginf(repeated.schema.encode(broken, np.full((300, 3), 0.5)).log_weights).all()


def test_a_dependent_column_with_missing_values_cannot_be_repeated(random):
    a = random.standard_normal(ROWS)
    y = np.where(np.arange(ROWS) < 30, np.nan, 2 * a)
    options = TableOptions(columns={"y": "dependent"}, missing="indicator")
    with pytest.raises(DataError, match=r"'y' cannot be repeated by samples, since values of y are missing.*y=drop"):
        prepare(table(a=a, b=random.standard_normal(ROWS), y=y), "t", 0, options, frames=False)


def test_a_function_of_the_context_is_refused(random):
    c = random.standard_normal(ROWS)
    rows = table(y=3 * c, x=random.standard_normal(ROWS), c=c)
    with pytest.raises(DataError, match="'y' is a function of others"):
        prepare(rows, "t", 0, TableOptions(context_columns=("c",)), frames=False)


def test_missing_values_are_refused_with_their_number_in_every_column(random):
    x, y = random.standard_normal((2, ROWS))
    x[[5, 7]], y[3] = np.nan, np.nan
    with pytest.raises(
        DataError, match=r"NaN in row 3 .*column 'y' \(3 such values\).*'x': 2, column 'y': 1.*--missing"
    ):
        prepare(table(x=x, y=y), "t", 0, TableOptions(), frames=False)
    text = np.array(["a", None, "b"] * (ROWS // 3), object)
    with pytest.raises(DataError, match=r"column 'k' \(1000 such values\)"):
        prepare(table(x=random.standard_normal(ROWS), k=text), "t", 0, TableOptions(), frames=False)
    data = prepare(table(x=random.standard_normal(ROWS), k=text), "t", 0, TableOptions(missing="indicator"), False)
    assert data.schema.levels == [3]


def test_schema_reads_back(random):
    columns = {name: values for name, values in some_columns(random).items() if not name.startswith("constant")}
    plans = inspect_table(table(**columns)).plans
    schema = Schema(tuple(columns), tuple(found.codec for found in plans), ("c",), (plans[0].codec,))
    again = Schema.from_description(schema.describe())
    assert again == schema
    noise = random.random((ROWS, len(columns)))
    for before, after in zip(schema.encode(columns, noise), again.encode(columns, noise), strict=True):
        np.testing.assert_array_equal(before, after)


def test_tables_of_plain_numbers_stay_datasets(random):
    x = random.standard_normal((500, 3))
    data = prepare(Table.of_array(x, ("x0", "x1", "x2")), "t", 3, TableOptions(), frames=False)
    assert data.train.dtype == torch.float32
    assert data.links is None
    told = prepare(Table.of_array(np.exp(x), ("x0", "x1", "x2")), "t", 3, TableOptions(columns={"x1": "log"}), False)
    assert [link and link.kind for link in told.links] == [None, "log", None]


@pytest.mark.parametrize("wrong", [1, 50, 250])
def test_a_function_in_nearly_all_rows_is_told(random, wrong):
    a, b = random.standard_normal((2, ROWS))
    y = 2 * a
    y[:wrong] += 1 + random.random(wrong)
    with pytest.warns(
        DataWarning, match=rf"'y' is a function of others in {1 - wrong / ROWS:.2%} of the rows \(y = 2 a"
    ):
        assert isinstance(prepare(table(a=a, b=b, y=y), "t", 0, TableOptions(), frames=False), Dataset)
    zero = random.random(ROWS) < 0.95
    both = find_dependences(
        {"a": np.where(zero, 0, a), "b": np.where(zero, 0, b)}, dict.fromkeys("ab", Rounding(0.0, 0.0))
    )
    assert both == []


def test_arrays_and_lists_of_text_are_tables(random):
    rows = [
        [str(kind), float(x)]
        for kind, x in zip(random.choice(["u", "v"], 300), random.standard_normal(300), strict=True)
    ]
    for given in (rows, np.array(rows, dtype=object)):
        found = as_table(given)
        assert [values.dtype.kind for values in found.parts["all"]] == ["O", "f"]
        assert found.features == ("x0", "x1")
    assert as_table(np.array(["u", "v", "u"])).parts["all"][0].tolist() == ["u", "v", "u"]
    with pytest.raises(DataError, match="must be real numbers"):
        as_table(np.zeros((3, 2), complex))


@pytest.mark.parametrize("share", [0.002, 0.04, 0.3])
@pytest.mark.parametrize("decimals", [0, 1, 2, 6])
def test_a_code_far_from_all_values_is_a_spike_on_every_lattice(random, share, decimals):
    values = np.round(1012 + 6 * random.standard_normal(ROWS), decimals)
    values[: int(share * ROWS)] = -999
    found = plan(values)
    assert found.kind.endswith("+spikes")
    assert found.codec.values == [-999]
    assert plan(values, "real+spikes").codec.values == [-999]
    with pytest.raises(DataError, match=r"leave \+spikes out"):
        plan(random.standard_normal(ROWS), "real+spikes")


def test_wild_values_that_do_not_repeat_are_no_codes(random):
    values = random.standard_normal(ROWS)
    values[:30] = 1e6 * random.standard_normal(30)
    assert plan(values).kind == "real"


@pytest.mark.parametrize("name", ["customer_id", "id", "userId", "order nr"])
def test_numbers_that_identify_rows_are_left_out(random, name):
    values = 10_000 + random.permutation(5 * ROWS)[:ROWS]
    assert plan_column(name, name, values).codec is None
    assert plan_column(name, name, values, override=parse_override(name, "integer")).codec is not None
    assert plan_column("paid", "paid", values).codec is not None


def test_values_somewhat_beyond_a_lattice_are_possible(random):
    codec = plan(random.integers(18, 90, ROWS)).codec
    masses = mass(codec, np.array([95, 120, 200]))
    assert (masses > 0).all()
    assert (np.diff(masses) < 0).all()


def test_a_kind_that_is_told_leaves_the_treatment_of_the_other_columns(random):
    a, b, c = random.standard_normal((3, ROWS))
    a, b[0], c[0] = np.exp(a), 1e6, 1e6
    rows = table(a=a, b=b, c=c)
    chosen = prepare(rows, "t", 0, TableOptions(context_columns=("c",)), frames=False)
    told = prepare(rows, "t", 0, TableOptions(("c",), {"a": "log", "c": "asinh"}), frames=False)
    assert choose_links(told).columns[1] == choose_links(chosen).columns[1]
    assert choose_links(told).columns[1].link.kind == "asinh"
    assert [link.kind for link in told.context_links] == ["asinh"]


def test_asinh_may_be_told(random):
    values = 3 * random.standard_normal(ROWS) + 1
    codec = plan(values, "asinh").codec
    assert codec.link["kind"] == "asinh"
    back = codec.decode(np.zeros(ROWS, int), codec.encode(values, np.full(ROWS, 0.5)).numbers)
    np.testing.assert_allclose(back, values, rtol=1e-9)
