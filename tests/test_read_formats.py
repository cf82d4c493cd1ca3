"""Files of numpy, Arrow, MATLAB and FITS, and data frames in memory: columns as they come, damage as one line."""

import bz2
import datetime
import decimal
import gzip
import io
import json
import sys
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest

from jkoflow.data import DataError, DataWarning, MissingExtraError, ReadOptions, columns_of, load_dataset, read_table
from jkoflow.data.readers import array_table
from kinds_of_files import write_every_kind
from soak import amount

pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(60, 3))


@pytest.fixture
def mixed(rows):
    return pd.DataFrame(
        {
            "real": rows[:, 0],
            "count": np.arange(60) % 7,
            "gaps": pd.array([None if place == 3 else place % 5 for place in range(60)], dtype="Int64"),
            "kind": [None if place == 3 else "xy"[place % 2] for place in range(60)],
            "flag": [place % 3 == 0 for place in range(60)],
            "day": pd.date_range("2024-01-01", periods=60),
        }
    )


def noted(function, *args):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = function(*args)
    assert all(issubclass(warning.category, DataWarning) for warning in caught)
    return found, [str(warning.message) for warning in caught]


def error_of(function, *args):
    with pytest.raises(DataError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kinds(table):
    return dict(zip(table.features, "".join(values.dtype.kind for values in table.parts["all"]), strict=True))


def column(table, name):
    return table.parts["all"][table.features.index(name)]


MIXED = {"real": "f", "count": "i", "gaps": "f", "kind": "O", "flag": "b", "day": "M"}


# data frames, in memory and in files


def written(frame, path):
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path, index=False)
        case _:
            frame.to_feather(path)
    return path


@pytest.mark.parametrize("suffix", [None, ".csv", ".parquet", ".feather"])
def test_columns_keep_their_kinds_in_memory_and_in_files(tmp_path, mixed, suffix):
    if suffix:
        table, notes = noted(read_table, written(mixed, tmp_path / f"t{suffix}"))
    else:
        table, notes = noted(columns_of, mixed)
    assert kinds(table) == MIXED
    assert notes == []
    np.testing.assert_allclose(column(table, "real"), mixed["real"], rtol=1e-12)
    assert np.flatnonzero(np.isnan(column(table, "gaps"))).tolist() == [3]
    assert column(table, "kind")[:5].tolist() == ["x", "y", "x", None, "x"]
    assert column(table, "day")[1] == np.datetime64("2024-01-02")


@pytest.mark.parametrize("backend", ["numpy_nullable", "pyarrow"])
def test_nullable_and_arrow_types_in_memory(mixed, backend):
    table, notes = noted(columns_of, mixed.convert_dtypes(dtype_backend=backend))
    assert kinds(table) == MIXED | {"real": "f"}
    assert notes == []
    assert column(table, "kind")[3] is None


@pytest.mark.parametrize(
    ("values", "kind", "first", "told"),
    [
        (pd.array([1, 2], dtype="UInt8"), "u", 1, False),
        (pd.array([1.5, None], dtype="Float32"), "f", 1.5, False),
        (np.array([1.5, 2], np.float16), "f", 1.5, False),
        (pd.array([True, None], dtype="boolean"), "O", True, False),
        ([True, None], "O", True, False),
        (pd.Categorical(["x", None]), "O", "x", False),
        (pd.Categorical([3, 1]), "i", 3, False),
        (pd.Categorical([3.5, None]), "f", 3.5, False),
        ([decimal.Decimal("1.5"), None], "f", 1.5, False),
        ([1, 2.5], "f", 1, False),
        ([1, 10**30], "f", 1, False),
        (pd.arrays.SparseArray([0.0, 1.0]), "f", 0, False),
        (pd.to_datetime(["2024-01-01T02:00", None]).tz_localize("Europe/Berlin"), "M", "2024-01-01T01:00", False),
        ([datetime.date(2024, 1, 1), None], "M", "2024-01-01", False),
        (pd.period_range("2024-01", periods=2, freq="M"), "M", "2024-01-01", False),
        (pd.to_timedelta(["1min", None]), "f", 60, True),
        ([datetime.time(0, 1), None], "f", 60, True),
        ([b"x", None], "O", "x", False),
        ([None, None], "f", np.nan, False),
        (["x", "y", 1], "O", "x", False),
    ],
    ids=str,
)
def test_other_types_in_memory(values, kind, first, told):
    table, notes = noted(columns_of, pd.DataFrame({"a": values}))
    found = table.parts["all"][0]
    assert found.dtype.kind == kind
    np.testing.assert_equal(found[0], np.datetime64(first) if kind == "M" else first)
    assert len(notes) == told
    again, _ = noted(columns_of, pd.Series(values, name="a"))
    assert again.features == ("a",)


def test_names_in_memory(rows):
    frame = pd.DataFrame(rows, columns=["a", "a", " b "])
    table, notes = noted(columns_of, frame)
    assert table.features == ("a", "a.1", "b")
    assert "more than one column" in notes[0]
    assert columns_of(pd.DataFrame(rows)).features == ("0", "1", "2")
    frame.columns = pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)])
    assert columns_of(frame).features == ("a 1", "a 2", "b 1")


def test_row_numbers_and_what_no_table_holds(rows):
    frame = pd.DataFrame(rows, columns=["a", "b", "c"]).sample(frac=1, random_state=0).reset_index()
    frame["list"] = [[1, 2]] * 60
    table, notes = noted(columns_of, frame)
    assert table.features == ("a", "b", "c")
    assert any("'list'" in note for note in notes)
    assert any("row numbers: 'index'" in note for note in notes)
    assert "index" in noted(columns_of, frame, ReadOptions(index_column="none"))[0].features
    assert "complex" in error_of(columns_of, pd.DataFrame({"z": [1j, 2]}))
    spoilt = pd.DataFrame({"a": [1.5, "x", 2.5]}, dtype=object)
    assert "'x' in row 1 (counting from 0), column 'a'" in error_of(columns_of, spoilt)


# Parquet and Feather


def test_arrow_types_in_parquet(tmp_path):
    table = pyarrow.table(
        {
            "money": pyarrow.array([decimal.Decimal("1.25"), None], pyarrow.decimal128(20, 2)),
            "large": pyarrow.array([decimal.Decimal("1.25"), None], pyarrow.decimal256(50, 2)),
            "kind": pyarrow.array(["x", None]).dictionary_encode(),
            "day": pyarrow.array([datetime.date(2024, 1, 1), None], pyarrow.date32()),
            "small": pyarrow.array([1, None], pyarrow.int8()),
            "flag": pyarrow.array([True, None]),
            "zone": pyarrow.array([0, None], pyarrow.timestamp("ms", "Europe/Berlin")),
            "half": pyarrow.array(np.array([1.5, 2], np.float16)),
            "lists": pyarrow.array([[1, 2], [3]]),
            "fields": pyarrow.array([{"a": 1}, {"a": 2}]),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    found, notes = noted(read_table, tmp_path / "t.parquet")
    assert kinds(found) == {
        "money": "f",
        "large": "f",
        "kind": "O",
        "day": "M",
        "small": "f",
        "flag": "O",
        "zone": "M",
        "half": "f",
    }
    assert [values[0] for values in found.parts["all"][:3]] == [1.25, 1.25, "x"]
    assert "'lists', 'fields'" in notes[0]


@pytest.mark.parametrize("name", [None, "key"])
@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
def test_the_index_of_a_data_frame_is_left_out(tmp_path, rows, name, suffix):
    frame = pd.DataFrame(rows, columns=["a", "b", "c"]).sample(frac=1, random_state=0).rename_axis(name)
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        pyarrow.feather.write_feather(pyarrow.Table.from_pandas(frame), path)
    table, notes = noted(read_table, path)
    assert table.features == ("a", "b", "c")
    assert len(notes) == (name is not None)
    assert len(noted(read_table, path, ReadOptions(index_column="none"))[0].features) == 4


def test_a_folder_of_parquet_files(tmp_path, rows):
    frame = pd.DataFrame(rows, columns=["a", "b", "c"]).assign(year=[2023, 2024] * 30, site=["x", "y", "z"] * 20)
    folder = tmp_path / "runs" / "key=7" / "table"
    frame.to_parquet(folder, partition_cols=["year", "site"])
    (folder / "README.md").write_text("notes")
    (folder / "_SUCCESS").write_bytes(b"")
    table, notes = noted(read_table, folder)
    assert notes == []
    assert kinds(table) == {"a": "f", "b": "f", "c": "f", "year": "i", "site": "O"}
    np.testing.assert_array_equal(np.sort(column(table, "a")), np.sort(rows[:, 0]))
    assert {*column(table, "site")} == {"x", "y", "z"}
    with pytest.warns(DataWarning, match="'year' is taken for category"):
        assert load_dataset(folder).name == "table"
    victim = next(folder.rglob("*.parquet"))
    victim.write_bytes(victim.read_bytes()[:-20])
    assert "damaged" in error_of(read_table, folder)
    (tmp_path / "empty").mkdir()
    assert "directory without .parquet files" in error_of(read_table, tmp_path / "empty")


def test_an_arrow_stream(tmp_path, rows):
    table = pyarrow.Table.from_pandas(pd.DataFrame(rows, columns=["a", "b", "c"]))
    with pyarrow.OSFile(str(tmp_path / "t.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    np.testing.assert_array_equal(read_table(tmp_path / "t.arrow").numbers("all"), rows)


def test_a_file_that_announces_more_than_memory_holds(tmp_path, rows, monkeypatch):
    pd.DataFrame(rows, columns=["a", "b", "c"]).to_parquet(tmp_path / "t.parquet")
    np.save(tmp_path / "t.npy", rows)
    np.savez(tmp_path / "t.npz", rows)
    monkeypatch.setattr("jkoflow.data.readers.packed.free_memory", lambda: 1000)
    for suffix in ("parquet", "npy", "npz"):
        assert "of memory are free" in error_of(read_table, tmp_path / f"t.{suffix}")


# numpy


def test_an_archive_that_unpacks_out_of_proportion(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "t.npz", np.zeros((300_000, 2)))
    assert read_table(tmp_path / "t.npz").rows("all") == 300_000
    monkeypatch.setattr("jkoflow.data.readers.packed.HARMLESS", 1 << 20)
    assert "unpacks to more than 100 times" in error_of(read_table, tmp_path / "t.npz")


@pytest.mark.parametrize("missing", [-9999, 1e20, 0])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32, ">f8"])
def test_masked_values_are_missing(missing, dtype):
    rows = np.arange(1, 41).reshape(20, 2).astype(dtype)
    mask = np.zeros((20, 2), bool)
    mask[3, 1] = mask[5, 0] = True
    if dtype != np.int32 or missing != 1e20:
        rows[mask] = missing
    table = array_table({"all": np.ma.masked_array(rows, mask)})
    np.testing.assert_array_equal(np.isnan(table.numbers("all")), mask)
    assert table.numbers("all").dtype.isnative
    clean = array_table({"all": np.ma.masked_array(rows, False)})
    assert clean.numbers("all").dtype.kind == np.dtype(dtype).kind


def test_masked_columns_of_other_kinds():
    fields = np.zeros(3, [("day", "M8[D]"), ("flag", bool), ("kind", "U3"), ("x", "f4")])
    mask = np.zeros(3, [(name, bool) for name in fields.dtype.names])
    mask[1] = (True,) * 4
    table = array_table({"all": np.ma.masked_array(fields, mask)})
    day, flag, kind, x = table.parts["all"]
    assert table.features == ("day", "flag", "kind", "x")
    assert np.isnat(day[1])
    assert flag.tolist() == [False, None, False]
    assert kind.tolist() == ["", None, ""]
    assert np.isnan(x[1])


def test_structured_and_other_arrays_in_files(tmp_path, rows):
    fields = np.rec.fromarrays(rows.T, names="a,b,c")
    np.save(tmp_path / "t.npy", fields)
    table = read_table(tmp_path / "t.npy")
    assert table.features == ("a", "b", "c")
    np.testing.assert_array_equal(table.numbers("all"), rows)
    np.save(tmp_path / "t.npy", np.array([["x", "y"], ["z", "u"]]))
    assert kinds(read_table(tmp_path / "t.npy")) == {"x0": "O", "x1": "O"}
    np.save(tmp_path / "t.npy", rows.astype(np.longdouble).astype(">f4"))
    assert read_table(tmp_path / "t.npy").parts["all"][0].dtype == np.float32


def test_options_of_text_files_are_not_for_others(tmp_path, rows):
    np.save(tmp_path / "t.npy", rows)
    assert "leave them out" in error_of(read_table, tmp_path / "t.npy", ReadOptions(header=True))
    assert read_table(tmp_path / "t.npy", ReadOptions(index_column="x1")).features == ("x0", "x1")


# MATLAB


@pytest.fixture
def savemat():
    return pytest.importorskip("scipy.io").savemat


@pytest.mark.parametrize("settings", [{}, {"do_compression": True}, {"format": "4"}])
def test_matlab_matrices(tmp_path, rows, savemat, settings):
    path = tmp_path / "t.mat"
    savemat(path, {"anything": rows}, **settings)
    np.testing.assert_array_equal(read_table(path).numbers("all"), rows)
    savemat(path, {"X": rows, "weights": rows[:, :2]}, **settings)
    table, notes = noted(read_table, path)
    np.testing.assert_array_equal(table.numbers("all"), rows)
    assert "left out weights" in notes[0]
    savemat(path, {"one": rows[:, :1], "two": rows[:, 1:2]}, **settings)
    table = read_table(path)
    assert table.features == ("one", "two")
    savemat(path, {"P": rows, "Q": rows}, **settings)
    message = error_of(read_table, path)
    assert "P float64 (60, 3), Q float64 (60, 3)" in message


def test_matlab_names_and_parts(tmp_path, rows, savemat):
    path = tmp_path / "t.mat"
    savemat(path, {"X": rows, "names": np.array(["a", "bb", "c"], object)}, do_compression=True)
    assert read_table(path).features == ("a", "bb", "c")
    savemat(path, {"X": rows, "names": np.array(["a ", "bb", "c "])})
    assert read_table(path).features == ("a", "bb", "c")
    savemat(path, {"train": rows[:40], "val": rows[40:50], "test": rows[50:], "options": {"depth": 3}})
    assert read_table(path).is_split
    savemat(path, {"settings": {"depth": 3}})
    assert "needs one matrix of numbers" in error_of(read_table, path)


def test_matlab_7_3(tmp_path, rows):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "t.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["X"] = rows.T
    content = bytearray(path.read_bytes())
    content[:116] = b"MATLAB 7.3 MAT-file".ljust(116)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_table(path).numbers("all"), rows)


@pytest.mark.parametrize(("module", "suffix"), [("scipy.io", "mat"), ("astropy.io.fits", "fits")])
def test_a_missing_library_is_told_with_the_extra(tmp_path, monkeypatch, module, suffix):
    (tmp_path / f"t.{suffix}").write_bytes(b"x" * 200)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf'pip install "jkoflow\[{suffix}\]"'):
        read_table(tmp_path / f"t.{suffix}")


# FITS


def test_fits_tables(tmp_path, mixed):
    tables = pytest.importorskip("astropy.table")
    fits = pytest.importorskip("astropy.io.fits")
    held = tables.Table.from_pandas(mixed[["real", "count", "gaps", "kind", "flag"]])
    held["pictures"] = np.zeros((60, 2))
    held.write(tmp_path / "t.fits")
    table, notes = noted(read_table, tmp_path / "t.fits")
    assert kinds(table) == {"real": "f", "count": "i", "gaps": "f", "kind": "O", "flag": "b"}
    assert all(values.dtype.isnative for values in table.parts["all"])
    np.testing.assert_array_equal(column(table, "real"), mixed["real"])
    assert np.flatnonzero(np.isnan(column(table, "gaps"))).tolist() == [3]
    assert "pictures" in notes[0]
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "image.fits")
    assert "has no table" in error_of(read_table, tmp_path / "image.fits")


# damage


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A folder with small files of every kind."""
    folder = tmp_path_factory.mktemp("samples")
    write_every_kind(folder)
    return folder


def damaged(content, rng, how):
    """A file cut short, with flipped bits, or with other bytes at its start or end."""
    content = bytearray(content)
    if how == 0:
        return bytes(content[: rng.integers(len(content))])
    if how == 1:
        for place in rng.integers(len(content), size=rng.integers(1, 4)):
            content[place] ^= 1 << int(rng.integers(8))
    else:
        near = int(rng.integers(min(len(content), 400)))
        content[near if how == 2 else -1 - near] = int(rng.integers(256))
    return bytes(content)


KINDS = [".csv", ".tsv", ".txt", ".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zst", ".parquet", ".feather", ".arrow"]
KINDS += [".npy", ".npz", ".mat", ".fits"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_damaged_file_is_an_error_of_one_line(tmp_path, samples, kind):
    found = sorted(path for path in samples.iterdir() if path.name.endswith(kind))
    if not found:
        pytest.skip(f"nothing installed writes {kind} files")
    rng = np.random.default_rng(7)
    victim = tmp_path / f"victim{kind}"
    messages = []
    for path in found:
        content = path.read_bytes()
        for case in range(amount(120, 100_000 // len(found))):
            victim.write_bytes(damaged(content, rng, case % 4))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)
                try:
                    read_table(victim)
                except DataError as error:
                    messages.append(str(error))
    assert len(messages) > 15
    assert not any("\n" in message for message in messages)


def npy_with_header(header):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + np.zeros(12).tobytes()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), ",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (True, 4), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-3, -4), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3.0, 4), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3, 4), }",
        "{'descr': [('', '<f8')], 'fortran_order': False, 'shape': (12,), }",
        "(" * 100,
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_headers_of_arrays_that_lie(tmp_path, header, suffix):
    content = npy_with_header(header)
    if suffix == ".npz":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("rows.npy", content)
        content = packed.getvalue()
    (tmp_path / f"t{suffix}").write_bytes(content)
    if "''" not in header:
        error_of(read_table, tmp_path / f"t{suffix}")
    else:
        assert read_table(tmp_path / f"t{suffix}").rows("all") == 12


def test_damaged_metadata_of_pandas_in_parquet(tmp_path, rows):
    table = pyarrow.Table.from_pandas(pd.DataFrame(rows, columns=["a", "b", "c"]))
    for metadata in (b"{", json.dumps([1]).encode(), json.dumps({"index_columns": 3}).encode(), b"\xff"):
        pyarrow.parquet.write_table(table.replace_schema_metadata({b"pandas": metadata}), tmp_path / "t.parquet")
        assert "damaged" in error_of(read_table, tmp_path / "t.parquet")


def test_what_is_no_file(tmp_path):
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    assert "gone" in error_of(read_table, tmp_path / "gone.csv")
    assert "no such file" in error_of(read_table, tmp_path / "nowhere.csv.gz")
    for name in ("t.npy.gz", "t.xlsx", "t"):
        (tmp_path / name).write_bytes(b"x")
        assert "unsupported kind of file" in error_of(read_table, tmp_path / name)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.TSV.bz2", "t.txt"])
def test_data_are_named_after_the_file_without_its_suffixes(tmp_path, rows, name):
    pd.DataFrame(rows, columns=["a", "b", "c"]).to_csv(tmp_path / name, index=False, compression=None)
    if name.endswith((".gz", ".bz2")):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes((gzip if name.endswith(".gz") else bz2).compress(content))
    assert load_dataset(tmp_path / name).name == "t"


def test_dates_as_text_in_a_frame_are_dates():
    for dtype in (object, "string"):
        frame = pd.DataFrame({"day": pd.Series(["2021-05-17", None, "2022-01-01"], dtype=dtype), "x": [1.0, 2.0, 3.0]})
        day = columns_of(frame).parts["all"][0]
        assert day.dtype.kind == "M"
        assert str(day[0])[:10] == "2021-05-17"
        assert np.isnat(day[1])
    mixed = pd.DataFrame({"day": ["2021-05-17", "soon"]})
    assert columns_of(mixed).parts["all"][0].tolist() == ["2021-05-17", "soon"]
