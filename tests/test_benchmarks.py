"""The MAF benchmark's files: published preprocessing on small files in its formats, and every way they can be wrong."""

import sys

import numpy as np
import pandas as pd
import pytest

from jkoflow.data import BENCHMARKS, DataError, DataWarning, MissingExtraError, load_dataset, load_rows, place
from jkoflow.data.benchmarks import ALIKE, read_benchmark

RNG = np.random.default_rng(7)


def read(name, directory):
    with pytest.warns(DataWarning, match="do not compare"):
        table = read_benchmark(name, directory)
    return {part: table.numbers(part) for part in table.parts}


def power_file(path, rows=1000):
    path.mkdir(parents=True, exist_ok=True)
    columns = [RNG.gamma(2, 1, rows), RNG.random(rows), RNG.normal(240, 3, rows), RNG.gamma(2, 5, rows)]
    columns += [RNG.integers(0, 40, rows) for _ in range(3)] + [np.arange(rows)]
    table = np.stack(columns, 1).astype(float)
    np.save(path / "data.npy", table)
    return table


def gas_file(path, rows=4000):
    """UCI's layout: a line of prose, then 19 columns; sensors 3 and 7 follow sensor 1, sensor 5 is its mirror image."""
    path.mkdir(parents=True, exist_ok=True)
    sensors = RNG.normal(1000, 50, (rows, 16))
    sensors[:, 3] = sensors[:, 1] + RNG.normal(0, 1, rows)
    sensors[:, 7] = 2 * sensors[:, 1] + RNG.normal(0, 1, rows)
    sensors[:, 5] = -sensors[:, 1]
    table = np.column_stack([0.01 * np.arange(rows), np.full(rows, 2.0), np.full(rows, 3.0), sensors])
    head = "Time (seconds), CO conc (ppm), Ethylene conc (ppm), sensor readings (16 channels)"
    np.savetxt(path / "ethylene_CO.txt", table, fmt="%.6f", header=head, comments="")
    return sensors


def hepmass_files(path, train_rows=600, test_rows=300):
    path.mkdir(parents=True, exist_ok=True)
    for name, rows, spare in (("1000_train.csv", train_rows, 0), ("1000_test.csv", test_rows, 1)):
        features = RNG.normal(0, 1, (rows, 5 + spare))
        features[:, 2] = RNG.integers(0, 3, rows)  # its smallest value recurs
        features[:, 4] = np.minimum(features[:, 4], 0.5)  # its largest value recurs: that column is kept, as published
        table = np.column_stack([RNG.integers(0, 2, rows), features])
        names = ["# label", *(f"f{k}" for k in range(5)), *["mass"] * spare]
        pd.DataFrame(table, columns=names).to_csv(path / name, index=False)


def test_power_is_the_published_preprocessing(tmp_path):
    table = power_file(tmp_path / "power")
    parts = read("power", tmp_path / "power")
    assert [len(parts[part]) for part in ("train", "val", "test")] == [810, 90, 100]
    assert all(part.dtype == np.float32 and part.shape[1] == 6 for part in parts.values())
    known = np.concatenate([parts["train"], parts["val"]]).astype(float)
    np.testing.assert_allclose(known.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(known.std(0), 1, atol=1e-5)
    # the last column has no noise, so it tells where each row went, and with it how much noise the others got
    state = np.random.RandomState(42)
    shuffled = table.copy()
    state.shuffle(shuffled)
    joined = np.concatenate([parts[part] for part in ("train", "val", "test")]).astype(float)
    times, kept = shuffled[:, 7], shuffled[:, [0, 2, 4, 5, 6]]
    np.testing.assert_allclose(joined[:, 5], (times - times[:900].mean()) / times[:900].std(), atol=1e-5)
    # undo the standardisation by regression; what the noise adds lies within its range
    for column, width in enumerate((0.001, 0.01, 1.0, 1.0, 1.0)):
        slope, offset = np.polyfit(joined[:, column], kept[:, column], 1)
        residual = slope * joined[:, column] + offset - kept[:, column]
        assert 0.4 * width < np.ptp(residual) <= 1.2 * width, column


def test_power_noise_is_drawn_in_the_published_order(tmp_path):
    table = np.zeros((50, 8))
    (tmp_path / "power").mkdir()
    np.save(tmp_path / "power/data.npy", table)
    state = np.random.RandomState(42)
    state.shuffle(table.copy())
    voltage, active, meters = state.rand(50, 1), state.rand(50, 1), state.rand(50, 3)
    with np.errstate(invalid="ignore"):
        parts = read("power", tmp_path)
    joined = np.concatenate([parts[part] for part in ("train", "val", "test")])[:, :5]
    noise = np.hstack([active, voltage, meters])
    known = noise[: len(parts["train"]) + len(parts["val"])]
    np.testing.assert_allclose(joined, (noise - known.mean(0)) / known.std(0), rtol=1e-5, atol=1e-5)


def test_gas_keeps_one_of_the_sensors_that_follow_each_other(tmp_path):
    sensors = gas_file(tmp_path)
    parts = read("gas", tmp_path)
    joined = np.concatenate([parts[part] for part in ("train", "val", "test")]).astype(float)
    assert joined.shape == (1000, 14)  # a quarter; without sensors 1 and 3, which sensor 7 follows
    assert [len(parts[part]) for part in ("train", "val", "test")] == [810, 90, 100]
    assert (np.corrcoef(joined.T) > ALIKE).sum() == 14
    assert np.corrcoef(joined.T).min() < -ALIKE  # the mirror image stays, as published
    np.testing.assert_allclose(joined.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(joined.std(0, ddof=1), 1, atol=1e-5)
    own = np.sort(sensors[:, 0])  # rows are drawn, not made
    back = joined[:, 0] * sensors[:, 0].std() + sensors[:, 0].mean()
    assert np.ptp(back) <= 1.1 * np.ptp(own)
    again = read("gas", tmp_path)
    assert np.array_equal(again["test"], parts["test"])


def test_hepmass_is_the_signal_without_piled_up_columns(tmp_path):
    hepmass_files(tmp_path / "hepmass")
    parts = read("hepmass", tmp_path)
    train, test = (pd.read_csv(tmp_path / "hepmass" / f"1000_{part}.csv").to_numpy() for part in ("train", "test"))
    train, test = (rows[rows[:, 0] == 1][:, [1, 2, 4, 5]] for rows in (train, test))
    assert len(parts["val"]) == int(0.1 * len(train))
    joined = np.concatenate([parts["train"], parts["val"]])
    mean, std = train.mean(0), train.std(0, ddof=1)
    np.testing.assert_allclose(joined, (train - mean) / std, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(parts["test"], (test - mean) / std, rtol=1e-5, atol=1e-5)


def test_hepmass_takes_the_first_rows_only(tmp_path, monkeypatch):
    hepmass_files(tmp_path)
    whole = read("hepmass", tmp_path)
    monkeypatch.setattr("jkoflow.data.benchmarks.HEPMASS_ROWS", (300, 100))
    part = read("hepmass", tmp_path)
    label = pd.read_csv(tmp_path / "1000_train.csv").to_numpy()[:300, 0]
    assert len(part["train"]) + len(part["val"]) == int(label.sum())
    assert len(part["test"]) < len(whole["test"])


def test_miniboone_is_split_at_the_tail(tmp_path):
    rows = RNG.normal(3, 2, (200, 43))
    (tmp_path / "MINIBOONE").mkdir()
    np.save(tmp_path / "MINIBOONE/data.npy", rows)
    parts = read("miniboone", tmp_path)
    assert [len(parts[part]) for part in ("train", "val", "test")] == [162, 18, 20]
    known = rows[:180]
    np.testing.assert_allclose(parts["test"], (rows[180:] - known.mean(0)) / known.std(0), rtol=1e-4, atol=1e-5)


def bsds_parts():
    return {part: RNG.normal(0, 0.1, (n, 63)) for part, n in (("train", 50), ("val", 10), ("test", 20))}


def test_bsds300_from_an_own_draw(tmp_path):
    made = bsds_parts()
    np.savez(tmp_path / "bsds300.npz", **made)
    parts = read("bsds300", tmp_path)
    np.testing.assert_allclose(parts["test"], made["test"].astype(np.float32))


def test_bsds300_from_the_benchmarks_file(tmp_path):
    h5py = pytest.importorskip("h5py", exc_type=ImportError)
    made = bsds_parts()
    (tmp_path / "BSDS300").mkdir()
    with h5py.File(tmp_path / "BSDS300/BSDS300.hdf5", "w") as file:
        for part, name in (("train", "train"), ("val", "validation"), ("test", "test")):
            file[name] = made[part]
    parts = read("bsds300", tmp_path)
    np.testing.assert_allclose(parts["val"], made["val"].astype(np.float32))
    (tmp_path / "BSDS300/BSDS300.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match="damaged or not the benchmark's file"):
        read_benchmark("bsds300", tmp_path)


def test_hdf5_without_h5py_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "BSDS300.hdf5").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"jkoflow\[hdf5\]"):
        read_benchmark("bsds300", tmp_path)


def test_published_sizes_are_no_warning(tmp_path, recwarn, monkeypatch):
    np.save(tmp_path / "data.npy", RNG.normal(0, 1, (100, 43)))
    small = BENCHMARKS["miniboone"].__class__(**{**vars(BENCHMARKS["miniboone"]), "sizes": (81, 9, 10)})
    monkeypatch.setitem(BENCHMARKS, "miniboone", small)
    read_benchmark("miniboone", tmp_path)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "missing", "origin"),
    [
        ("power", "data.npy", "UCI 235"),
        ("gas", "ethylene_CO.txt", "UCI 322"),
        ("hepmass", "1000_train.csv, 1000_test.csv", "UCI 347"),
        ("miniboone", "data.npy", "UCI 199"),
        ("bsds300", "BSDS300.hdf5 or bsds300.npz", "Berkeley"),
    ],
)
def test_missing_files_are_named_with_their_origin(tmp_path, name, missing, origin):
    for source in (f"{name}:{tmp_path}", f"{name}:{tmp_path / 'nowhere'}"):
        with pytest.raises(DataError) as caught:
            load_dataset(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError) as caught:
        load_dataset(f"{name}:{tmp_path}")
    assert f"lacks {missing};" in str(caught.value)
    assert origin in str(caught.value)


@pytest.mark.parametrize("name", ["power", "gas"])
def test_other_columns_than_the_benchmarks(tmp_path, name):
    np.save(tmp_path / "data.npy", RNG.random((20, 5)))
    np.savetxt(tmp_path / "ethylene_CO.txt", RNG.random((20, 5)), header="head")
    with pytest.raises(DataError, match=r"must have .* columns as the benchmark's file, got 5"):
        read_benchmark(name, tmp_path)


def test_damaged_text_and_files_without_signal(tmp_path):
    (tmp_path / "ethylene_CO.txt").write_text("head\n1 2 three\n")
    with pytest.raises(DataError, match=r"ethylene_CO\.txt is damaged"):
        read_benchmark("gas", tmp_path)
    hepmass_files(tmp_path)
    frame = pd.read_csv(tmp_path / "1000_test.csv")
    frame.assign(**{"# label": 0}).to_csv(tmp_path / "1000_test.csv", index=False)
    with pytest.raises(DataError, match=r"1000_test\.csv has no rows with label 1"):
        read_benchmark("hepmass", tmp_path)
    frame.iloc[:, :3].assign(**{"# label": 1}).to_csv(tmp_path / "1000_test.csv", index=False)
    with pytest.raises(DataError, match="must have the 5 features"):
        read_benchmark("hepmass", tmp_path)


def test_benchmarks_are_data_like_any_other(tmp_path, monkeypatch):
    power_file(tmp_path / "power")
    with pytest.warns(DataWarning, match="POWER has 1,659,917 / 184,435 / 204,928 rows"):
        data = load_dataset(f"power:{tmp_path}")
    with pytest.warns(DataWarning, match="these files give 810 / 90 / 100"):
        rows = load_rows(f"power:{tmp_path}", "test")
    assert (data.name, data.dim) == ("power", 6)
    assert np.array_equal(rows.numpy(), data.test.numpy())
    monkeypatch.chdir(tmp_path)
    assert place("power:.") == f"power:{tmp_path}"
    assert place("rose:500") == "rose:500"
    assert place("rows.npy") == str(tmp_path / "rows.npy")
    with pytest.raises(DataError, match="miniboone:DIRECTORY"):
        load_dataset("miniboone")


def test_shapes_with_a_number_of_rows():
    data = load_dataset("rings:500", seed=3)
    assert [len(part) for part in (data.train, data.val, data.test)] == [500, 50, 50]
    assert data.name == "rings"
    for wrong in ("rings:", "rings:9", "rings:many", "rings:-5"):
        with pytest.raises(DataError, match="whole number"):
            load_dataset(wrong)
