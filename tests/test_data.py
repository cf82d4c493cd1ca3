"""jkoflow.data: shapes, files, splits, and every way in which data can be wrong."""

import io
import sys
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from jkoflow.data import (
    BUILT_IN,
    DataError,
    Dataset,
    DataWarning,
    MissingExtraError,
    check_output,
    draw,
    load_dataset,
    load_rows,
    read_table,
    split_rows,
    write_table,
)
from jkoflow.data.shapes import SHAPES


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal([0, 5, -3], [1, 2, 0.5], (200, 3))


def write(path, rows, features=("a", "b", "c")):
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".npz":
        np.savez(path, rows=rows, features=np.array(features))
    elif path.suffix == ".csv":
        pd.DataFrame(rows, columns=list(features)).to_csv(path, index=False)
    else:
        pd.DataFrame(rows, columns=list(features)).to_parquet(path)
    return path


def error_of(function, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# shapes


@pytest.mark.parametrize("name", SHAPES)
def test_shape_is_seeded_finite_and_of_moderate_size(name):
    points = draw(name, 5000, seed=3)
    assert points.shape == (5000, 2)
    assert points.dtype == torch.float32
    assert torch.equal(points, draw(name, 5000, seed=3))
    assert not torch.equal(points, draw(name, 5000, seed=4))
    assert points.abs().max() < 5
    assert points.std(0).min() > 0.5
    assert points.std(0).max() < 3


def test_checkerboard_fills_the_black_fields_only():
    points = draw("checkerboard", 8000).numpy()
    fields = np.floor(points / 2).astype(int)
    assert set((fields.sum(1)) % 2) == {0}
    _, counts = np.unique(fields, axis=0, return_counts=True)
    assert len(counts) == 8
    assert counts.min() > 850


def test_rings_lie_on_five_circles():
    points = draw("rings", 4000).numpy()
    centres = np.array([[-2.4, 0.55], [0, 0.55], [2.4, 0.55], [-1.2, -0.55], [1.2, -0.55]])
    radii = np.linalg.norm(points[:, None] - centres, axis=2)
    assert np.abs(radii - 1.05).min(1).max() < 0.3


def test_fractal_tree_is_symmetric_and_rooted():
    points = draw("fractal_tree", 20000).numpy()
    assert abs(points[:, 0].mean()) < 0.05
    trunk = points[points[:, 1] < -1.5]
    assert len(trunk) > 500
    assert np.abs(trunk[:, 0]).max() < 0.1


def test_rose_is_drawn_by_its_rims():
    points = draw("rose", 20000).numpy()
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=60, range=[[-3, 3], [-3, 3]])
    inside = np.hypot(*np.meshgrid(*2 * [np.linspace(-2.95, 2.95, 60)])) < 2.2
    assert counts[inside].max() > 8 * np.median(counts[inside])  # thin dark lines on light petals
    assert (counts[inside] > 0).mean() > 0.9


# built-in data


def test_built_in_names():
    assert set(BUILT_IN) == {
        "rose",
        "fractal_tree",
        "checkerboard",
        "rings",
        "pinwheel",
        "spirals",
        "moons",
        "gasturbine",
    }
    data = load_dataset("spirals", seed=5)
    assert [len(part) for part in (data.train, data.val, data.test)] == [20000, 4000, 4000]
    assert data.dim == 2
    assert torch.equal(load_dataset("spirals", seed=5).test, data.test)


def test_gasturbine_comes_in_its_own_units_with_attribution():
    data = load_dataset("gasturbine")
    assert [len(part) for part in (data.train, data.val, data.test)] == [29749, 3305, 3672]
    assert data.features == ("AT", "AP", "AH", "AFDP", "GTEP", "TIT", "TAT", "TEY", "CDP", "CO", "NOX")
    assert "CC BY 4.0" in data.attribution
    ambient_pressure = data.train[:, 1].double()
    assert abs(float(ambient_pressure.mean()) - 1013) < 1  # hPa
    # the log std of the units, as the file's own notes give it
    assert float(data.train.double().std(0).log().sum()) == pytest.approx(18.596942, abs=1e-3)


# files


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_dataset(tmp_path, rows, suffix):
    data = load_dataset(write(tmp_path / f"table{suffix}", rows), seed=1)
    expected = split_rows(rows, seed=1)
    assert data.name == "table"
    assert data.features == (("x0", "x1", "x2") if suffix == ".npy" else ("a", "b", "c"))
    assert [len(part) for part in (data.train, data.val, data.test)] == [160, 20, 20]
    for part in ("train", "val", "test"):
        torch.testing.assert_close(getattr(data, part), getattr(expected, part))


def test_split_is_a_seeded_partition(rows):
    data = split_rows(rows, seed=7, features=("a", "b", "c"))
    together = torch.cat([data.train, data.val, data.test]).numpy()
    assert not np.array_equal(together, rows.astype(np.float32))
    np.testing.assert_array_equal(np.sort(together, 0), np.sort(rows.astype(np.float32), 0))
    assert torch.equal(split_rows(torch.from_numpy(rows), seed=7).val, data.val)
    assert not torch.equal(split_rows(rows, seed=8).val, data.val)


def test_npz_with_its_own_parts_is_not_split_again(tmp_path, rows):
    path = tmp_path / "parts.npz"
    np.savez(path, train=rows[:150], val=rows[150:170], test=rows[170:], meta=np.array("{}"))
    data = load_dataset(path, seed=9)
    np.testing.assert_array_equal(data.train.numpy(), rows[:150].astype(np.float32))
    np.testing.assert_array_equal(data.test.numpy(), rows[170:].astype(np.float32))


@pytest.mark.parametrize("kept", [("train", "test"), ("train", "val")])
def test_npz_with_only_two_parts_is_refused(tmp_path, rows, kept):
    path = tmp_path / "parts.npz"
    np.savez(path, **{part: rows for part in kept})
    missing = ({"train", "val", "test"} - set(kept)).pop()
    assert f"lacks {missing}" in error_of(load_dataset, path)


def test_npz_with_two_tables_is_refused(tmp_path, rows):
    path = tmp_path / "two.npz"
    np.savez(path, a=rows, b=rows)
    message = error_of(load_dataset, path)
    assert "a float64 (200, 3)" in message
    assert "train, val and test" in message


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
def test_one_dimension_works(tmp_path, rows, suffix):
    column = rows[:, :1]
    data = load_dataset(write(tmp_path / f"line{suffix}", column, ("a",)))
    assert data.dim == 1
    assert data.train.shape == (160, 1)


def test_a_flat_npy_array_is_one_feature(tmp_path, rows):
    np.save(tmp_path / "flat.npy", rows[:, 0])
    assert load_dataset(tmp_path / "flat.npy").train.shape == (160, 1)


@pytest.mark.parametrize("separator", [",", ";", "\t", "  "])
@pytest.mark.parametrize("header", [True, False])
def test_csv_separators_with_and_without_header(tmp_path, rows, separator, header):
    lines = [separator.join(f"{value:.6f}" for value in row) for row in rows]
    if header:
        lines.insert(0, separator.join(["a", "b", "c"]))
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    table = read_table(path)
    assert table.features == (("a", "b", "c") if header else ("x0", "x1", "x2"))
    np.testing.assert_allclose(table.numbers("all"), rows, atol=1e-6)


def test_columns_of_other_things_keep_their_kinds(tmp_path, rows):
    frame = pd.DataFrame(rows, columns=["a", "b", "c"])
    frame.insert(1, "city", ["Bonn", "Köln"] * 100)
    frame["flag"] = [True, False] * 100
    frame["day"] = pd.Timestamp("2024-01-01")
    for path in (tmp_path / "t.csv", tmp_path / "t.parquet"):
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
        data = load_dataset(path)
        assert data.schema.features == ("a", "city", "b", "c", "flag", "day")
        assert [plan.kind for plan in data.plans] == ["real", "category", "real", "real", "boolean", "constant"]


def test_row_numbers_written_by_pandas_are_left_out(tmp_path, rows):
    path = tmp_path / "indexed.csv"
    pd.DataFrame(rows, columns=["a", "b", "c"]).to_csv(path)
    with pytest.warns(DataWarning, match="row numbers"):
        assert load_dataset(path).features == ("a", "b", "c")


def test_a_header_of_half_numbers_is_pointed_out(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text("a,2\n" + "\n".join(f"{i}.5,{(i * 7) % 20}.25" for i in range(20)))
    with pytest.warns(DataWarning, match="first line for column names"):
        assert load_dataset(path).features == ("a", "2")


# wrong data


def test_missing_file_directory_and_suffix(tmp_path):
    assert "no such file" in error_of(load_dataset, tmp_path / "none.csv")
    assert "no such file" in error_of(load_dataset, "none.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "is a directory" in error_of(load_dataset, tmp_path / "folder.csv")
    (tmp_path / "table.xlsx").write_bytes(b"x")
    message = error_of(load_dataset, tmp_path / "table.xlsx")
    assert "'.xlsx'" in message
    assert ".npy, .npz, .csv, .parquet" in message


def test_unknown_name_lists_the_known_and_suggests_the_near():
    message = error_of(load_dataset, "checkerbord")
    assert "did you mean checkerboard?" in message
    assert all(name in message for name in BUILT_IN)
    assert "did you mean" not in error_of(load_dataset, "zzzz")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_of_text_alone_have_masses(tmp_path, suffix):
    frame = pd.DataFrame({"city": ["Bonn", "Köln"] * 20, "state": ["x", "x", "y", "y"] * 10})
    path = tmp_path / f"t{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    data = load_dataset(path)
    assert data.schema.levels == [2, 2]
    assert not data.schema.numeric


@pytest.mark.parametrize("array", [np.ones((20, 2), complex), np.zeros((20, 2), "V4")])
def test_arrays_of_other_things_are_refused(tmp_path, array):
    np.save(tmp_path / "t.npy", array)
    assert "no numeric columns" in error_of(load_dataset, tmp_path / "t.npy")


@pytest.mark.parametrize("shape", [(4, 5, 6), (20, 0), ()])
def test_arrays_of_another_shape_are_refused(tmp_path, shape):
    np.save(tmp_path / "t.npy", np.zeros(shape))
    assert "must have shape (N, d)" in error_of(load_dataset, tmp_path / "t.npy")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
@pytest.mark.parametrize(("value", "text"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_nan_and_inf_name_row_and_column(tmp_path, rows, suffix, value, text):
    rows[17, 1] = value
    rows[30, 2] = value
    message = error_of(load_dataset, write(tmp_path / f"t{suffix}", rows))
    column = "column 1" if suffix == ".npy" else "column 'b'"
    assert f"{text} in row 17 (counting from 0), {column} (2 such values)" in message
    assert "t" + suffix in message


def test_nan_in_a_part_names_the_part(tmp_path, rows):
    bad = rows[150:170].copy()
    bad[3, 0] = np.nan
    np.savez(tmp_path / "t.npz", train=rows[:150], val=bad, test=rows[170:])
    assert "NaN in row 3 of val" in error_of(load_dataset, tmp_path / "t.npz")


def test_values_that_overflow_float32_are_refused(rows):
    rows[5, 0] = 1e30
    assert "rescale" in error_of(split_rows, rows)


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_constant_column_is_named(tmp_path, rows, suffix):
    rows[:, 2] = 4.5
    message = error_of(load_dataset, write(tmp_path / f"t{suffix}", rows))
    assert ("column 2" if suffix == ".npy" else "column 'c'") + " is constant (value 4.5)" in message


def test_column_that_float32_makes_constant_is_named(rows):
    rows[:, 0] = 1e9 + rows[:, 0]
    message = error_of(split_rows, rows)
    assert "float32" in message
    assert "subtract" in message


def test_digits_that_float32_would_lose_are_kept_or_pointed_out(tmp_path, rows):
    rows[:, 0] = 1e8 + 100 * rows[:, 0]
    data = load_dataset(write(tmp_path / "t.csv", rows))
    assert len(np.unique(data.numbers.train[:, 0])) == 160  # scaled in float64, as the file's digits are
    with pytest.warns(DataWarning) as told:
        load_dataset(write(tmp_path / "t.parquet", rows.astype(np.float32)))
    assert any("column 'a' loses digits" in str(warning.message) for warning in told)


def test_discrete_column_is_pointed_out(tmp_path, rows):
    rows[:, 1] = np.arange(200) % 3
    with pytest.warns(DataWarning, match="column 'b' is taken for integer: whole numbers from 0 to 2"):
        assert load_dataset(write(tmp_path / "t.csv", rows)).schema.levels == [4]


def test_a_number_spoilt_by_text_is_an_error_not_a_lost_column(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "\n".join(f"{i}.5,{i * i if i != 7 else 'x'}" for i in range(20)))
    message = error_of(load_dataset, path)
    assert "'x' in row 7 (counting from 0), column 'b'" in message


def test_too_few_rows(tmp_path, rows):
    assert "9 rows; give at least 10" in error_of(split_rows, rows[:9])
    assert len(split_rows(rows[:10]).val) == 1


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "text"])
def test_damaged_files(tmp_path, rows, suffix, damage):
    path = write(tmp_path / f"t{suffix}", rows)
    payload = path.read_bytes()
    path.write_bytes(
        {
            "cut": payload[: len(payload) // 2],
            "empty": b"",
            "noise": bytes(np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)),
            "text": b"a,b\n1,2\n",
        }[damage]
    )
    message = error_of(load_dataset, path)
    assert "damaged" in message
    assert str(path) in message


def test_flipped_byte_in_an_npz_is_noticed(tmp_path, rows):
    path = write(tmp_path / "t.npz", rows)
    payload = bytearray(path.read_bytes())
    payload[len(payload) // 2] ^= 0xFF
    path.write_bytes(payload)
    assert "damaged" in error_of(load_dataset, path)


def test_npy_header_that_lies_about_the_size(tmp_path):
    path = tmp_path / "t.npy"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**15, 3)})
    path.write_bytes(header.getvalue() + b"\0" * 64)
    assert "damaged" in error_of(load_dataset, path)


def test_damaged_csv(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("")
    assert "is empty" in error_of(load_dataset, path)
    path.write_text("a,b\n1,2\n1,2,3\n")
    assert "t.csv" in error_of(load_dataset, path)
    path.write_text("a,b\n1,2,3\n1,2,4\n")
    assert "more cells than the header" in error_of(load_dataset, path)
    path.write_bytes(b"a,b\n\xff\xfe\x00,2\n")
    assert "damaged" in error_of(load_dataset, path)


def test_csv_with_a_header_and_no_rows(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n")
    error_of(load_dataset, path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickled_objects_are_refused(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    objects = np.array([[1.0, "a"], [{}, None]], dtype=object)
    np.save(path, objects) if suffix == ".npy" else np.savez(path, rows=objects)
    assert "pickle" in error_of(load_dataset, path)


def test_a_bare_pickle_is_never_loaded(tmp_path):
    path = tmp_path / "t.npy"
    path.write_bytes(b"cbuiltins\nexit\n(S'loaded'\ntR.")
    assert "damaged" in error_of(load_dataset, path)
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("rows.npy", b"cbuiltins\nexit\n(S'loaded'\ntR.")
    error_of(load_dataset, tmp_path / "t.npz")


def test_dataset_checks_itself(rows):
    table, val, test = torch.from_numpy(rows).float().split([len(rows) - 20, 10, 10])
    names = ("a", "b", "c")
    Dataset("ok", table, val, test, names)
    assert "val" in error_of(Dataset, "d", table, val[:, :2], test, names)
    assert "float32" in error_of(Dataset, "d", table.double(), val, test, names)
    assert "float32 tensor" in error_of(Dataset, "d", table.numpy(), val, test, names)
    assert "test is empty" in error_of(Dataset, "d", table, val, test[:0], names)
    assert "constant in train" in error_of(Dataset, "d", table[:1], val, test, names)


@pytest.mark.parametrize("bad", [np.zeros((5, 2, 2)), np.zeros((5, 0)), np.zeros((5, 2), complex), np.array([["a"]])])
def test_split_rows_wants_a_table_of_numbers(bad):
    message = error_of(split_rows, bad)
    assert "must be real numbers" in message or "(text) must hold numbers" in message


def test_missing_pandas_is_told_with_the_command(tmp_path, rows, monkeypatch):
    path = write(tmp_path / "t.csv", rows)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r'pip install "jkoflow\[cli\]"'):
        load_dataset(path)
    with pytest.raises(MissingExtraError, match="pandas"):
        check_output(tmp_path / "out.csv")


# rows to score


def test_rows_to_score_keep_the_order_of_the_file(tmp_path, rows):
    path = write(tmp_path / "t.csv", rows)
    np.testing.assert_array_equal(load_rows(path).numpy(), rows.astype(np.float32))
    data = load_dataset(path, seed=4)
    assert torch.equal(load_rows(path, "test", seed=4), data.test)
    one = write(tmp_path / "one.csv", rows[:1])
    assert load_rows(one).shape == (1, 3)


def test_rows_to_score_of_data_with_parts(tmp_path, rows):
    np.savez(tmp_path / "t.npz", train=rows[:150], val=rows[150:170], test=rows[170:])
    assert load_rows(tmp_path / "t.npz").shape == (30, 3)
    assert load_rows(tmp_path / "t.npz", "val").shape == (20, 3)
    assert torch.equal(load_rows(tmp_path / "t.npz", "all"), torch.from_numpy(rows.astype(np.float32)))
    assert torch.equal(load_rows("moons", seed=2), load_dataset("moons", seed=2).test)
    assert "train, val, test, all" in error_of(load_rows, "moons", "tset")


def test_rows_to_score_are_matched_by_column_name(tmp_path, rows):
    frame = pd.DataFrame(rows, columns=["a", "b", "c"])[["c", "a", "b"]].assign(extra=np.nan)
    frame.to_csv(tmp_path / "t.csv", index=False)
    found = load_rows(tmp_path / "t.csv", features=("a", "b", "c"))
    np.testing.assert_allclose(found.numpy(), rows.astype(np.float32), rtol=1e-6)
    message = error_of(load_rows, tmp_path / "t.csv", features=("a", "d"))
    assert "lacks the column d" in message


def test_rows_to_score_of_another_width(tmp_path, rows):
    path = write(tmp_path / "t.npy", rows)
    assert "has 3 columns, expected 2" in error_of(load_rows, path, features=("a", "b"))


def test_nan_in_rows_to_score(tmp_path, rows):
    rows[2, 1] = np.nan
    assert "NaN in row 2" in error_of(load_rows, write(tmp_path / "t.npy", rows))


# results


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_written_tables_read_back(tmp_path, rows, suffix):
    path = tmp_path / f"out{suffix}"
    write_table(path, rows.astype(np.float32), ("a", "b", "c"))
    table = read_table(path)
    np.testing.assert_allclose(table.numbers("all"), rows.astype(np.float32), rtol=1e-7)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_outputs_that_cannot_be_written(tmp_path):
    assert "unsupported suffix" in error_of(check_output, tmp_path / "out.txt")
    assert "no directory" in error_of(check_output, tmp_path / "none" / "out.npy")
    (tmp_path / "dir.npy").mkdir()
    assert "is a directory" in error_of(check_output, tmp_path / "dir.npy")


def test_clean_data_give_no_warning(tmp_path, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in BUILT_IN:
            load_dataset(name)
        load_dataset(write(tmp_path / "t.csv", rows))
