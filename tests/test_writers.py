"""Results as files: columns of any kind come back, and nothing that is read or linked is replaced."""

import os
import stat

import numpy as np
import pytest

from jkoflow.data import DataError, check_output, read_table, write_table

SUFFIXES = [".npy", ".csv", ".parquet", ".tsv", ".csv.gz", ".feather"]

COLUMNS = {
    "real": np.array([1.5, np.nan, -2.25]),
    "count": np.array([3, 1, 3]),
    "kind": np.array(["x", None, "ü, y"], object),
    "flag": np.array([True, False, True]),
    "day": np.array(["2024-01-01", "NaT", "2024-02-29"], "M8[us]"),
}


def error_of(function, *args):
    with pytest.raises(DataError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_columns_of_any_kind_come_back(tmp_path, suffix):
    write_table(tmp_path / f"out{suffix}", list(COLUMNS.values()), list(COLUMNS))
    table = read_table(tmp_path / f"out{suffix}")
    assert table.features == tuple(COLUMNS)
    for found, written in zip(table.parts["all"], COLUMNS.values(), strict=True):
        assert found.dtype.kind == written.dtype.kind
        np.testing.assert_array_equal(found, written)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3)])
def test_arrays_of_numbers_come_back(tmp_path, suffix, shape):
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    write_table(tmp_path / f"out{suffix}", rows, [f"c{place}" for place in range(rows.reshape(5, -1).shape[1])])
    found = read_table(tmp_path / f"out{suffix}").numbers("all")
    np.testing.assert_allclose(found, rows.reshape(5, -1), rtol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


def test_numbers_of_several_types_in_an_array(tmp_path):
    write_table(tmp_path / "out.npy", [np.array([1, 2]), np.array([1.5, 2.5], np.float32)], ["a", "b"])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), [[1, 1.5], [2, 2.5]])
    message = error_of(write_table, tmp_path / "out.npy", list(COLUMNS.values()), list(COLUMNS))
    assert "kind, flag, day are not numbers" in message
    assert ".parquet" in message
    assert len(np.load(tmp_path / "out.npy")) == 2


def test_columns_that_do_not_fit_together(tmp_path):
    one, two = np.zeros(3), np.zeros(4)
    assert "one length" in error_of(write_table, tmp_path / "o.csv", [one, two], ["a", "b"])
    for names in (["a"], ["a", "a"]):
        assert "different names" in error_of(write_table, tmp_path / "o.csv", [one, one], names)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", ["same", "relative", "symbolic", "hard", "through a folder"])
def test_an_input_is_not_replaced(tmp_path, link, monkeypatch):
    read = tmp_path / "rows.npy"
    np.save(read, np.zeros(3))
    out = tmp_path / "out.npy"
    match link:
        case "same":
            out = read
        case "relative":
            monkeypatch.chdir(tmp_path)
            out = "rows.npy"
        case "symbolic":
            out.symlink_to(read)
        case "hard":
            os.link(read, out)
        case "through a folder":
            (tmp_path / "folder").symlink_to(tmp_path)
            out = tmp_path / "folder" / "rows.npy"
    assert "the file that is read" in error_of(check_output, out, ["moons", read])
    check_output(tmp_path / "other.npy", ["moons", read, tmp_path / "none.npy"])


def test_nothing_is_written_into_a_folder_that_is_read(tmp_path):
    (tmp_path / "parts" / "a").mkdir(parents=True)
    assert "which is read" in error_of(check_output, tmp_path / "parts" / "a" / "out.parquet", [tmp_path / "parts"])
    check_output(tmp_path / "out.parquet", [tmp_path / "parts"])


def test_links_and_modes_stay(tmp_path):
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "real.csv", tmp_path / "out.csv"
    link.symlink_to(target)
    write_table(link, np.zeros(2), ["a"])  # a link to what is not there yet
    assert link.is_symlink()
    target.chmod(0o600)
    write_table(link, np.ones(2), ["a"])
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert read_table(target).numbers("all").tolist() == [[1], [1]]
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["real.csv"]


def test_equal_tables_are_equal_files(tmp_path):
    for name in ("one.csv.gz", "two.csv.gz"):
        write_table(tmp_path / name, np.arange(5.0), ["a"])
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()


def test_outputs_that_cannot_be_written(tmp_path):
    for name in ("out.txt", "out", "out.gz", "out.xlsx"):
        assert "unsupported suffix" in error_of(check_output, tmp_path / name)
    assert "no directory" in error_of(check_output, tmp_path / "none" / "out.npy")
    (tmp_path / "folder.csv").mkdir()
    assert "is a directory" in error_of(check_output, tmp_path / "folder.csv")
