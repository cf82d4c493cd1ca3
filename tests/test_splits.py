"""The split: equal rows, groups and times stay together, and what crosses the parts all the same is told."""

import re
import warnings
from datetime import date

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jkoflow import TrainConfig, train
from jkoflow.data import DataError, Dataset, DataWarning, draw, load_dataset, split_rows
from jkoflow.data.repeats import made_by_chance, row_groups
from jkoflow.data.shapes import SHAPES
from jkoflow.data.splits import split_order

TINY = TrainConfig(hidden=(4,), max_blocks=1, iterations_per_block=2, batch_size=20, guard_rows=10, val_rows=10)


def generator():
    return np.random.default_rng(0)


def normal(rows, dim):
    return generator().standard_normal((rows, dim))


def places(order):
    """The part of each row."""
    found = np.full(sum(len(part) for part in order), -1)
    for number, part in enumerate(order):
        found[part] = number
    assert (found >= 0).all(), "a row is missing"
    return found


def is_whole(order, labels):
    """Tells whether rows with the same label are in the same part."""
    parts = places(order)
    return all(len(set(parts[labels == label])) == 1 for label in np.unique(labels))


def told(call, *arguments, **named):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call(*arguments, **named)
    assert all(issubclass(warning.category, DataWarning) for warning in caught)
    texts = [str(warning.message) for warning in caught]
    assert all("\n" not in text for text in texts)
    return found, texts


def error_of(call, *arguments, **named):
    with pytest.raises(DataError) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------- equal rows


@pytest.mark.parametrize("rows", [10, 11, 14, 15, 100, 1237])
@pytest.mark.parametrize("seed", [0, 5])
def test_without_repeats_the_split_is_that_of_version_0_1(rows, seed):
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    held_out = round(0.1 * rows)
    before = order.tensor_split([rows - 2 * held_out, rows - held_out])
    for part, wanted in zip(split_order([np.arange(float(rows))], seed), before, strict=True):
        np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize("dim", [1, 2, 4, 30])
@pytest.mark.parametrize(("distinct", "copies"), [(10, 2), (13, 100), (250, 4), (1000, 2)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_equal_rows_go_to_the_same_part(dim, distinct, copies, scale):
    rows = scale * np.repeat(normal(distinct, dim), copies, 0)
    order, texts = told(split_order, list(rows.T), 3)
    assert is_whole(order, np.repeat(np.arange(distinct), copies))
    count = f"{distinct * (copies - 1)} of {distinct * copies} rows repeat an earlier row"
    assert texts == [f"{count}; equal rows go to the same part of the split"]
    sizes = [len(part) / len(rows) for part in order]
    np.testing.assert_allclose(sizes, [0.8, 0.1, 0.1], atol=0.06 if distinct < 20 else 0.01)
    assert len(order[0]) == len(set(order[0].tolist()))


def test_the_result_depends_on_the_seed_alone():
    rows = np.repeat(normal(50, 2), 3, 0)
    with pytest.warns(DataWarning, match="100 of 150 rows repeat"):
        first, again, other = (split_order(list(rows.T), seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[2], other[2])


def test_a_few_repeats_among_many_rows():
    rows = normal(500, 3)
    rows = np.concatenate([rows, rows[:5]])
    order, texts = told(split_order, list(rows.T))
    assert is_whole(order, np.concatenate([np.arange(500), np.arange(5)]))
    assert texts == ["5 of 505 rows repeat an earlier row; equal rows go to the same part of the split"]


def test_a_row_that_makes_up_a_third_is_trained_on():
    rows = np.concatenate([normal(600, 2), np.zeros((300, 2))])
    order, texts = told(split_order, list(rows.T))
    assert np.isin(np.arange(600, 900), order[0]).all()
    assert len(texts) == 1
    assert 0.05 < len(order[2]) / 900 < 0.2


COLUMNS = {
    "float": np.array([0.5, -0.0, 1.0, np.nan, 0.1, 2.0]),
    "float32": np.array([0.5, -0.0, 1.0, np.nan, 0.1, 2.0], dtype=np.float32),
    "int": np.array([-1, 0, 7, 2**60, 2**60 + 1, 5]),
    "unsigned": np.array([1, 0, 7, 2**63, 2**64 - 1, 5], dtype=np.uint64),
    "text": np.array(["a", "b", None, "", "ab", "B"], dtype=object),
    "bool": np.array([True, False, None, True, False, True], dtype=object),
    "dates": np.array(["2020-01-01", "1066-10-14", "NaT", "2020-01-02", "2021-01-01", "1970-01-01"], "datetime64[D]"),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_equal_values_of_every_kind_are_seen(kind):
    values = COLUMNS[kind]
    other = np.arange(6)
    np.testing.assert_array_equal(row_groups([np.tile(values, 3), np.tile(other, 3)]), np.tile(other, 3))
    if kind != "bool":
        np.testing.assert_array_equal(row_groups([np.tile(values, 2)]), np.tile(other, 2))


def test_zeros_of_either_sign_are_equal():
    np.testing.assert_array_equal(row_groups([np.array([0.0, -0.0, 1e-300])]), [0, 0, 1])


@given(st.lists(st.tuples(st.integers(-1, 1), st.sampled_from(["a", "b"]), st.booleans()), min_size=1, max_size=30))
def test_groups_are_those_of_the_rows(rows):
    columns = [
        np.array(column, dtype=kind)
        for column, kind in zip(zip(*rows, strict=True), (float, object, bool), strict=True)
    ]
    first = list(dict.fromkeys(rows))
    assert row_groups(columns).tolist() == [first.index(row) for row in rows]


@pytest.mark.parametrize("distinct", [1, 3, 9])
def test_hardly_any_distinct_rows_are_an_error(distinct):
    rows = np.repeat(normal(distinct, 2), 50, 0)
    message = error_of(split_order, list(rows.T))
    assert f"only {distinct} of {50 * distinct} rows are distinct; give at least 10 distinct rows" in message


CHANCE = {
    "counts": lambda r, n: r.poisson(20, (n, 1)).astype(float),
    "two counts": lambda r, n: r.poisson(3, (n, 2)),
    "rounded to tenths": lambda r, n: r.standard_normal((n, 2)).round(1),
    "rounded to hundredths": lambda r, n: r.standard_normal((n, 1)).round(2),
    "rounded to 1e-4": lambda r, n: r.standard_normal((n, 1)).round(4).astype(np.float32),
    "prices": lambda r, n: r.poisson(1000, (n, 1)) * 0.05,
    "float32": lambda r, n: r.random((20 * n, 1)).astype(np.float32),
    "heavy tails": lambda r, n: r.standard_cauchy((n, 1)).round(3),
    "an outlier": lambda r, n: np.append(r.poisson(20, n - 1), 1e9)[:, None],
    "functions of one another": lambda r, n: r.standard_normal((n, 1)).round(2) * [1, 2, -3],
    "days": lambda r, n: (1000 * r.standard_normal((n, 1))).astype(int).astype("datetime64[D]").astype("datetime64[s]"),
}


@pytest.mark.parametrize("kind", CHANCE)
@pytest.mark.parametrize("rows", [1000, 20_000])
def test_rows_that_are_equal_by_chance_are_no_copies(kind, rows):
    """They are split as ever: otherwise the test would be of values that were never trained on."""
    table = CHANCE[kind](generator(), rows)
    order, texts = told(split_order, list(table.T))
    assert texts == []
    assert (
        np.concatenate(order).tolist()
        == torch.randperm(len(table), generator=torch.Generator().manual_seed(0)).tolist()
    )


@pytest.mark.parametrize("table", [normal(400, 1), normal(400, 2), normal(400, 3).round(2)])
def test_copies_are_not_by_chance(table):
    for rows in (
        np.repeat(table, 3, 0),
        np.concatenate([table, table[:100]]),
        table[generator().integers(0, 400, 400)],
    ):
        assert not made_by_chance(list(rows.T), row_groups(list(rows.T)))


# ------------------------------------------------------------------------------------------------------ near-duplicates


def assert_near(texts, least):
    (text,) = texts
    found = re.match(r"(\d+)% of the validation and test rows nearly equal a training row .*\(--group\)$", text)
    assert found
    assert int(found[1]) >= least


@pytest.mark.parametrize(("rows", "dim"), [(250, 4), (1000, 2), (500, 10), (5000, 6)])
@pytest.mark.parametrize("noise", [3e-4, 1e-6])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_copies_with_noise_are_told(rows, dim, noise, scale):
    table = np.repeat(normal(rows, dim), 4, 0)
    table = scale * (7 + table + noise * generator().standard_normal(table.shape))
    assert_near(told(split_order, list(table.T))[1], 80)


def test_rounded_copies_and_copies_of_some_rows_are_told():
    table = normal(2000, 4)
    assert_near(told(split_order, list(np.concatenate([table, table.round(3)]).T))[1], 50)
    some = np.concatenate([table, table[:400] + 1e-5])
    assert_near(told(split_order, list(some.T))[1], 10)


def test_copies_are_seen_beside_labels_and_missing_values():
    table = np.repeat(normal(500, 3), 2, 0) + 1e-6 * normal(1000, 3)
    table[::10, 0] = table[1::10, 0] = np.nan
    kinds = np.repeat(generator().choice(np.array(["a", "b", None], dtype=object), 500), 2)
    dates = np.repeat(generator().integers(0, 10**6, 500), 2).astype("datetime64[s]")
    assert_near(told(split_order, [*table.T, kinds, dates])[1], 60)
    other = np.tile(np.array(["a", "b"], dtype=object), 500)  # copies differ in a label
    assert told(split_order, [*table.T, other])[1] == []


NATURAL = {
    "normal": lambda r, n, d: r.standard_normal((n, d)),
    "heavy tails": lambda r, n, d: r.standard_cauchy((n, d)),
    "skewed": lambda r, n, d: np.exp(3 * r.standard_normal((n, d))),
    "rounded": lambda r, n, d: r.standard_normal((n, d)).round(3),
    "on a line": lambda r, n, d: r.standard_normal((n, 1)) @ r.standard_normal((1, d)),
    "on a curve": lambda r, n, d: np.sin(r.random((n, 1)) * np.arange(1, d + 1) * 3),
    "many zeros": lambda r, n, d: r.standard_normal((n, d)) * (r.random((n, d)) < 0.4),
    "a walk": lambda r, n, d: r.standard_normal((n, d)).cumsum(0),
    "shares": lambda r, n, d: r.dirichlet(np.ones(d), n),
    "clusters": lambda r, n, d: 10 * r.integers(0, 10, (n, 1)) + r.standard_normal((n, d)),
    "digits lost in float32": lambda r, n, d: (1e5 + r.standard_normal((n, d))).astype(np.float32),
}


@pytest.mark.parametrize("kind", NATURAL)
@pytest.mark.parametrize("dim", [2, 3, 8])
@pytest.mark.parametrize("rows", [200, 5000, 50_000])
def test_neighbours_of_a_dense_table_are_no_near_duplicates(kind, dim, rows):
    table = NATURAL[kind](generator(), rows, dim)
    assert not any("nearly" in text for text in told(split_order, list(table.T))[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_built_in_shapes_are_split_without_a_word(shape):
    for rows in (500, 20_000):
        assert told(split_rows, draw(shape, rows, 0))[1] == []


def test_many_rows_of_one_column_are_split_without_a_word():
    assert told(split_rows, torch.randn(300_000, 1))[1] == []


# ----------------------------------------------------------------------------------------------------- groups and times

GROUPS = {
    "numbers": lambda n: generator().integers(0, n // 10, n),
    "floats": lambda n: generator().integers(0, n // 10, n) / 7,
    "text": lambda n: np.array([f"person {i}" for i in generator().integers(0, n // 10, n)]),
    "objects": lambda n: np.array([f"person {i}" for i in generator().integers(0, n // 10, n)], dtype=object),
    "dates": lambda n: generator().integers(0, n // 10, n).astype("datetime64[D]"),
    "tensor": lambda n: torch.from_numpy(generator().integers(0, n // 10, n)),
}


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("rows", [200, 5000])
def test_a_group_is_not_divided(kind, rows):
    group = GROUPS[kind](rows)
    order = split_order(list(normal(rows, 2).T), 1, group=group)
    assert is_whole(order, np.asarray(group).astype(str))
    assert [round(len(part) / rows, 1) for part in order] == [0.8, 0.1, 0.1]


def test_groups_of_one_row_are_split_as_without_groups():
    columns = list(normal(100, 2).T)
    for part, wanted in zip(split_order(columns, 4, group=np.arange(100)), split_order(columns, 4), strict=True):
        np.testing.assert_array_equal(part, wanted)


def test_three_groups_are_enough_and_uneven_parts_are_told():
    order, texts = told(split_order, list(normal(90, 2).T), group=np.repeat([1, 2, 3], 30))
    assert [len(part) for part in order] == [30, 30, 30]
    assert len(texts) == 1
    assert "30 of 90 rows are for training, 30 for validation and 30 for the test, instead of 80/10/10" in texts[0]


BY = {
    "floats": lambda x: x,
    "numbers": lambda x: (1000 * x).astype(int),
    "dates": lambda x: (1e6 * x).astype("datetime64[s]"),
    "tensor": torch.from_numpy,
}


@pytest.mark.parametrize("kind", BY)
@pytest.mark.parametrize("rows", [10, 101, 5000])
def test_the_last_rows_of_a_time_are_held_out(kind, rows):
    times = BY[kind](normal(rows, 1)[:, 0])
    order = split_order(list(normal(rows, 2).T), by=times)
    known = np.asarray(times)
    assert known[order[0]].max() < known[order[1]].min() <= known[order[1]].max() < known[order[2]].min()
    places(order)
    assert abs(len(order[0]) - 0.8 * rows) <= 2 + 0.01 * rows


def test_equal_times_are_not_divided_and_keep_their_order():
    times = np.repeat(np.arange(20), 13)[::-1]
    order = split_order(list(normal(260, 2).T), by=times)
    assert is_whole(order, times)
    assert [len(part) for part in order] == [208, 26, 26]
    assert order[2].tolist() == [*range(13, 26), *range(13)]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"group": np.zeros(50)}, "group has 1 different value, fewer than one for each of the 3 parts; give a column"),
        ({"group": np.arange(50) % 2}, "group has 2 different values, fewer than one for each of the 3 parts"),
        ({"by": np.arange(50) % 2}, "split_by has 2 different values, fewer than one for each of the 3 parts"),
        ({"by": np.zeros(50)}, "split_by has 1 different value, fewer"),
        (
            {"by": np.where(np.arange(50) == 7, np.nan, 1)},
            "split_by is missing in row 7 (counting from 0) and in 1 row ",
        ),
        ({"group": np.array([*range(48), None, None])}, "group is missing in row 48 (counting from 0) and in 2 rows"),
        ({"group": np.ma.masked_equal(np.arange(50), 3)}, "group is missing in row 3"),
        ({"by": np.array(["2020-01-01", "NaT"] * 25, "datetime64[D]")}, "split_by is missing in row 1"),
        ({"by": np.array(["a", "b"] * 25)}, "split_by must be numbers or dates (datetime64), got <U1; use group"),
        ({"by": np.arange(49)}, "split_by must have one value for each of the 50 rows, got shape (49,)"),
        ({"group": np.zeros((50, 1))}, "group must have one value for each of the 50 rows, got shape (50, 1)"),
        ({"group": np.arange(50), "by": np.arange(50)}, "give one of them"),
    ],
)
def test_what_cannot_be_split_by_is_refused(named, message):
    assert message in error_of(split_order, list(normal(50, 2).T), **named)


def test_pandas_columns_are_taken():
    pandas = pytest.importorskip("pandas")
    columns = list(normal(60, 2).T)
    names = pandas.Series([f"p{i % 20}" for i in range(60)], dtype="category")
    assert is_whole(split_order(columns, group=names), names.to_numpy().astype(str))
    days = pandas.Series([date(2020, 1, 1 + i % 30) for i in range(60)]).astype("datetime64[ns]")
    assert is_whole(split_order(columns, by=days), days.to_numpy().astype(str))
    assert "missing in row 1" in error_of(split_order, columns, group=pandas.array([1, None] * 30, dtype="Int64"))


# -------------------------------------------------------------------------------------------------- data sets, training


def test_split_rows_takes_groups_and_times_with_and_without_context():
    rows = torch.arange(200.0).reshape(100, 2)
    for context in (None, torch.rand(100, 1)):
        data = split_rows(rows, context=context, split_by=torch.arange(100).flip(0))
        assert torch.equal(data.test, rows[:10].flip(0))
        data = split_rows(rows, context=context, group=np.arange(100) // 10)
        assert {int(x) // 20 for x in data.train[:, 0]}.isdisjoint({int(x) // 20 for x in data.test[:, 0]})


@pytest.mark.parametrize("how", ["group", "split_by"])
def test_training_splits_by_groups_and_times(how, monkeypatch):
    rows, values = torch.from_numpy(normal(100, 2)).float(), np.arange(100)
    group, split_by = (values // 5, None) if how == "group" else (None, values)
    seen: dict[str, Dataset] = {}

    def remember(data):
        seen["data"] = data
        raise KeyboardInterrupt

    monkeypatch.setattr("jkoflow.training.warn_once", remember)
    with pytest.raises(KeyboardInterrupt):
        train(rows, TINY, group=group, split_by=split_by)
    assert torch.equal(seen["data"].test, split_rows(rows, TINY.seed, group=group, split_by=split_by).test)
    with pytest.raises(ValueError, match="group and split_by must be left out"):
        train(seen["data"], TINY, group=group, split_by=split_by)


def test_repeated_rows_are_not_learnt_by_heart():
    """With equal rows on both sides of the split, the flow of these settings is 0.3 nats from the truth on new rows."""
    rows, new = torch.from_numpy(np.repeat(normal(250, 4), 4, 0)), torch.randn(4000, 4)
    config = TrainConfig(hidden=(64, 64), max_blocks=1, iterations_per_block=200, batch_size=200)
    with pytest.warns(DataWarning, match="750 of 1000 rows repeat an earlier row"):
        flow = train(rows, config)
    assert -flow.log_prob(new).mean() < 2 * np.log(2 * np.pi) + 2 + 0.15


def test_repeats_in_memory_are_told_by_training():
    with pytest.warns(DataWarning, match="75 of 150 rows repeat an earlier row"):
        train(torch.from_numpy(np.repeat(normal(75, 2), 2, 0)), TINY)


def test_repeats_in_a_file_are_told(tmp_path):
    np.save(tmp_path / "rows.npy", np.repeat(normal(75, 2), 2, 0))
    with pytest.warns(DataWarning, match="75 of 150 rows repeat an earlier row"):
        load_dataset(tmp_path / "rows.npy")


@pytest.mark.parametrize("where", ["file", "memory", "conditional"])
def test_rows_of_two_parts_are_counted_and_kept(where, tmp_path):
    rows = normal(300, 3).astype(np.float32)
    train_rows, val, test = (
        rows[:200],
        np.concatenate([rows[200:250], rows[:5]]),
        np.concatenate([rows[250:], rows[:9]]),
    )
    if where == "file":
        np.savez(tmp_path / "parts.npz", train=train_rows, val=val, test=test)
        data, texts = told(load_dataset, tmp_path / "parts.npz")
    else:
        parts = [torch.from_numpy(part) for part in (train_rows, val, test)]
        data, texts = told(Dataset, "parts", *parts, ("a", "b", "c"))
        if where == "conditional":
            data, more = told(data.condition_on, ["a"])
            assert more == []
    assert len(texts) == 1
    assert texts[0].startswith("5 of 55 validation rows and 9 of 59 test rows are training rows, too")
    assert (len(data.train), len(data.val), len(data.test)) == (200, 55, 59)


@pytest.mark.parametrize("mean", [0.2, 5, 50, 500])
@pytest.mark.parametrize("dim", [1, 2])
def test_parts_that_share_values_by_chance_are_fine(mean, dim):
    rows = torch.from_numpy(generator().poisson(mean, (3000, dim))).float()
    assert told(Dataset, "counts", rows[:2000], rows[2000:2500], rows[2500:], ("a", "b")[:dim])[1] == []


def test_equal_rows_of_different_groups_are_told():
    rows = np.concatenate([normal(100, 2), normal(100, 2)])
    with pytest.warns(DataWarning, match="test rows are training rows, too"):
        split_rows(rows, split_by=np.arange(200))


# -------------------------------------------------------------------------------------------------------- masked arrays


@pytest.mark.parametrize("places", [[(3, 1)], [(0, 0), (5, 1)], [(9, 0)]])
def test_masked_values_are_refused(places):
    rows = normal(40, 2)
    mask = np.zeros_like(rows, dtype=bool)
    for place in places:
        rows[place], mask[place] = -9999, True
    masked = np.ma.masked_array(rows, mask)
    row, column = places[0]
    message = f"the value in row {row} (counting from 0), column {column} is masked ({len(places)} such value"
    assert message in error_of(split_rows, masked)
    assert message in error_of(train, masked, TINY)
    assert "NaN in row" in error_of(train, [*masked], TINY)
    assert "is masked" in error_of(train, masked[:, column], TINY)
    assert f"column 'c{column}' is masked" in error_of(split_rows, normal(40, 2), context=masked, features=("a", "b"))
    part = torch.from_numpy(normal(20, 2)).float()
    assert f"in row {row} of val (counting" in error_of(Dataset, "d", part, masked, part, ("x0", "x1"))


def test_a_masked_array_without_a_masked_value_is_an_array():
    rows = normal(40, 2)
    for mask in (False, np.zeros_like(rows, dtype=bool)):
        assert torch.equal(split_rows(np.ma.masked_array(rows, mask)).test, split_rows(rows).test)
