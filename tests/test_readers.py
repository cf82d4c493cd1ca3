"""Text files as they come: every layout that means one thing is read, every doubt is told, nothing is misread."""

import bz2
import gzip
import lzma
import warnings
from itertools import product

import numpy as np
import pandas as pd
import pytest

from jkoflow.data import DataError, DataWarning, ReadOptions, read_table
from jkoflow.data.columns.options import TableOptions

GUESS = ReadOptions()

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "blank": " ", "blanks": "   "}


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal([0, 5, -300], [1, 2, 50], (60, 3)).round(4)


def text_of(rows, separator=",", decimal=".", names=None, form="{:.4f}"):
    lines = [separator.join(form.format(value).replace(".", decimal) for value in row) for row in rows]
    return "\n".join([separator.join(names), *lines] if names else lines) + "\n"


@pytest.fixture
def read(tmp_path):
    def read(content, options=GUESS, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            table = read_table(path, options)
        assert all(issubclass(warning.category, DataWarning) for warning in caught)
        return table, [str(warning.message) for warning in caught]

    return read


def columns(table):
    return dict(zip(table.features, (values.tolist() for values in table.parts["all"]), strict=True))


def error_of(path, options=GUESS):
    with pytest.raises(DataError) as caught:
        read_table(path, options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def pairs():
    """Every separator with every decimal mark that it can be told from."""
    return [pair for pair in product(SEPARATORS, ".,") if pair != ("comma", ",")]


# separators and decimal marks


@pytest.mark.parametrize("names", [("a", "b", "c"), None])
@pytest.mark.parametrize(("separator", "decimal"), pairs())
@pytest.mark.parametrize("width", [2, 3])
def test_separator_and_decimal_mark_are_found_together(read, rows, separator, decimal, names, width):
    rows, names = rows[:, :width], names and names[:width]
    table, notes = read(text_of(rows, SEPARATORS[separator], decimal, names))
    np.testing.assert_array_equal(table.numbers("all"), rows)
    assert table.features == (names or ("x0", "x1", "x2")[:width])
    assert notes == []


@pytest.mark.parametrize(("separator", "decimal"), pairs())
@pytest.mark.parametrize("scale", [1e-3, 1, 1e7])
def test_numbers_of_any_size_and_integers_among_them(read, rows, separator, decimal, scale):
    rows = np.column_stack([rows * scale, np.arange(60) % 7])
    text = text_of(rows, SEPARATORS[separator], decimal, ("a", "b", "c", "d"), "{:.9g}")
    table, notes = read(text)
    np.testing.assert_allclose(table.numbers("all"), rows, rtol=1e-8)
    assert notes == []


@pytest.mark.parametrize("decimal", [".", ","])
def test_a_single_column(read, rows, decimal):
    for names in (("a",), None):
        table, _ = read(text_of(rows[:, :1], decimal=decimal, names=names))
        np.testing.assert_array_equal(table.numbers("all"), rows[:, :1])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a;b\n1.234,56;2\n234,5;3\n", [1234.56, 234.5]),
        ('a,b\n"1,234.56",2\n234.5,3\n', [1234.56, 234.5]),
        ("a;b\n1.234.567;2,5\n12.345;3,5\n", [1234567, 12345]),
        ("a;b\n1'234.5;2\n1.5;3\n", [1234.5, 1.5]),
        ("a;b\n1 234,5;2,5\n1,5;3\n", [1234.5, 1.5]),
        ("a;b\n1\u00a0234\u00a0567;2,5\n15;3\n", [1234567, 15]),
        ("a;b\n\u22121,5;2\n+1,5;3\n", [-1.5, 1.5]),
        ('a,b\n"1,5",2\n"-2,75",3\n', [1.5, -2.75]),
        ("a,b\n1e3,2\n-1.5E-2,3\n", [1000, -0.015]),
        ("a;b\n1,5e3;2\n1,5;3\n", [1500, 1.5]),
    ],
)
def test_spellings_of_numbers(read, text, values):
    table, _ = read(text)
    assert columns(table)["a"] == values
    assert len(columns(table)["b"]) == 2


@pytest.mark.parametrize(
    ("text", "first", "flag"),
    [
        ("a;b\n1.234;5.678\n2.345;6.789\n", 1.234, "--decimal ,"),
        ("a;b\n1,234;5,678\n2,345;6,789\n", 1.234, "--decimal ."),
        ("a\tb\n1,234\t5\n2,345\t6\n", 1.234, "--decimal ."),
        ('a,b\n"1,234",5\n"2,345",6\n', 1234, "--decimal ,"),
        ("7,5\n1,7\n2,9\n", 7, "--decimal ,"),
        ("7,05\n1,75\n2,90\n", 7.05, "--sep ,"),
    ],
)
def test_what_could_be_read_in_two_ways_is_told_with_the_flag(read, text, first, flag):
    table, notes = read(text)
    assert table.parts["all"][0][0] == first
    assert len(notes) == 1
    assert flag in notes[0]


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("a;b\n1.234;5.678\n", ReadOptions(decimal=","), {"a": [1234], "b": [5678]}),
        ("7,5\n1,7\n", ReadOptions(decimal=","), {"x0": [7.5, 1.7]}),
        ("7,05\n1,75\n", ReadOptions(separator=","), {"x0": [7, 1], "x1": [5, 75]}),
        ("a b;c d\n1 2;3 4\n", ReadOptions(separator=";"), {"a b": ["1 2"], "c d": ["3 4"]}),
        ("1,2\n3,4\n", ReadOptions(header=True, separator=","), {"1": [3], "2": [4]}),
        ("a,b\nc,d\n", ReadOptions(header=False), {"x0": ["a", "c"], "x1": ["b", "d"]}),
        ("a:b\n1:2\n", ReadOptions(separator=":"), {"a": [1], "b": [2]}),
    ],
)
def test_what_is_said_is_not_guessed(read, text, options, expected):
    table, _ = read(text, options)
    assert columns(table) == expected


def test_quoted_cells_may_hold_separators_quotes_and_lines(read):
    table, notes = read('name,x\n"Bonn, Rhein",1.5\n"say ""a; b""",2.5\n"two\nlines",3.5\n')
    assert columns(table) == {"name": ["Bonn, Rhein", 'say "a; b"', "two\nlines"], "x": [1.5, 2.5, 3.5]}
    assert notes == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_ends_of_lines_blank_lines_and_separators_at_the_end(read, end):
    for text in ("\n\na,b\n1,2\n\n3,4\n\n", "a,b,\n1,2,\n3,4,\n", "a,b\n1,2,\n3,4,\n", "a,b\n1,2\n3,4"):
        table, notes = read(text.replace("\n", end))
        assert columns(table) == {"a": [1, 3], "b": [2, 4]}
        assert notes == []


# headers


@pytest.mark.parametrize("width", [3, 4, 12])
@pytest.mark.parametrize(("start", "step"), [(2019, 1), (400.5, 0.5), (1990, -10), (0, 1)])
def test_a_header_of_numbers_over_real_columns_is_taken_and_told(read, start, step, width):
    rows = np.random.default_rng(1).normal(size=(50, width))
    names = tuple(f"{start + step * place:g}" for place in range(width))
    table, notes = read(text_of(rows, names=names))
    assert table.features == names
    assert table.rows("all") == 50
    assert "first line for column names" in notes[0]
    assert "--no-header" in notes[0]


def test_years_over_counts(read):
    rng = np.random.default_rng(2)
    for largest in (50, 10_000):
        counts = rng.integers(0, largest, (50, 3))
        table, notes = read(text_of(counts, names=("2019", "2020", "2021"), form="{}"))
        assert "2019, 2020, 2021" in notes[0]
        assert "--no-header" in notes[0] or "--header" in notes[0]
        assert table.rows("all") == (50 if "--no-header" in notes[0] else 51)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["real", "sorted", "integers", "years", "trend", "one column", "printed with %g"])
def test_a_file_without_a_header_keeps_its_first_row_without_a_word(read, kind, seed):
    rng = np.random.default_rng(seed)
    rows = {
        "real": lambda: rng.normal(size=(50, 3)),
        "sorted": lambda: np.sort(rng.normal(size=(50, 9)), 1),
        "integers": lambda: rng.integers(-50, 50, (50, 3)),
        "years": lambda: np.column_stack([rng.integers(1900, 2020, 50), rng.integers(1, 12, (50, 2))]),
        "trend": lambda: np.arange(50)[:, None] * [1.0, 2.5, 7.1] + rng.normal(size=(50, 3)) / 10 + [0, 900, 5],
        "one column": lambda: rng.normal(size=(50, 1)),
        "printed with %g": lambda: rng.normal(size=(50, 4)).round(2),
    }[kind]()
    table, notes = read(text_of(rows, form="{}"))
    assert table.rows("all") == 50
    assert notes == []


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("date,x\n2024-01-01,1.5\n2024-01-02,2.5\n", ("date", "x")),
        ("2024-01-01,1.5\n2024-01-02,2.5\n", ("x0", "x1")),
        ("city,state\nBonn,NRW\n", ("city", "state")),
        ("kind,2019,2020\na,1,2\nb,3,4\na,5,6\nb,1,9\n", ("kind", "2019", "2020")),
        (",2019,2020\n7,1.5,2\n8,3,4\n9,5,6\n", ("2019", "2020")),
        ("x\nBonn am Rhein\nUlm\n", ("x",)),
        ("a,?,b\n1,2,3\n", ("a", "?", "b")),
    ],
)
def test_headers_over_other_kinds_of_columns(read, text, features):
    assert read(text)[0].features == features


def test_repeated_names_are_made_different_and_told(read):
    table, notes = read("a,a,b,a\n1,2,3,4\n5,6,7,9\n")
    assert table.features == ("a", "a.1", "b", "a.2")
    assert len(notes) == 2


def test_blanks_around_names_and_cells(read):
    table, notes = read("a , b , kind \n 1 , 2.5, x \n3 ,4 , y\n")
    assert columns(table) == {"a": [1, 3], "b": [2.5, 4], "kind": ["x", "y"]}
    assert notes == []


# row numbers


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "index", "ID", "row", "row_id", "level_0", "#"])
@pytest.mark.parametrize("order", ["in order", "from 1", "shuffled", "filtered", "steps of ten"])
def test_row_numbers_are_left_out_and_told(read, rows, name, order):
    rng = np.random.default_rng(3)
    numbers = {
        "in order": np.arange(60),
        "from 1": np.arange(60) + 1,
        "shuffled": rng.permutation(60),
        "filtered": rng.permutation(1000)[:60],
        "steps of ten": 10 * np.arange(60),
    }[order]
    text = pd.DataFrame({name: numbers} | dict(zip("abc", rows.T, strict=True))).to_csv(index=False)
    table, notes = read(text)
    assert table.features == ("a", "b", "c")
    assert "row numbers" in notes[-1]
    assert "--index-column none" in notes[-1]
    kept, _ = read(text, ReadOptions(index_column="none"))
    assert len(kept.features) == 4


@pytest.mark.parametrize(
    ("name", "numbers"), [("age", np.arange(60)), ("id", np.arange(60) // 2), ("a0", np.arange(60))]
)
def test_features_that_count_are_kept(read, rows, name, numbers):
    table, notes = read(pd.DataFrame({name: numbers, "a": rows[:, 0]}).to_csv(index=False))
    assert table.features == (name, "a")
    assert notes == []


@pytest.mark.parametrize("start", [0, 1])
def test_a_count_in_a_file_without_names_is_left_out(read, rows, start):
    text = "\n".join(f"{start + place},{row[0]},{row[1]}" for place, row in enumerate(rows.tolist()))
    table, notes = read(text)
    assert table.features == ("x0", "x1")
    np.testing.assert_array_equal(table.numbers("all"), rows[:, :2])
    assert "row numbers" in notes[0]
    shifted, notes = read("\n".join(f"{7 + place},{row[0]}" for place, row in enumerate(rows.tolist())))
    assert len(shifted.features) == 2
    assert notes == []


def test_names_of_rows_as_r_writes_them(read, rows):
    for quoted in ('"{}"', '"car {}"'):
        lines = [f"{quoted.format(place + 1)} {row[0]} {row[1]}" for place, row in enumerate(rows.tolist())]
        table, notes = read('"a" "b"\n' + "\n".join(lines), name="table.txt")
        assert table.features == ("a", "b")
        np.testing.assert_array_equal(table.numbers("all"), rows[:, :2])
        assert "left out" in notes[0]


def test_the_index_column_by_name(read, tmp_path):
    text = "key,a\n3,1\n3,2\n"
    assert read(text, ReadOptions(index_column="key"))[0].features == ("a",)
    assert "has no column 'b'" in error_of(tmp_path / "table.csv", ReadOptions(index_column="b"))


# comments, Excel's line, encodings


@pytest.mark.parametrize("mark", ["#", "%", "//", ";"])
def test_comments(read, mark):
    table, notes = read(f"{mark} made on a day, by hand\n{mark}\na,b\n1.5,2\n2.5,3\n")
    assert columns(table) == {"a": [1.5, 2.5], "b": [2, 3]}
    assert notes == []
    table, notes = read(f"a,b\n1.5,2\n{mark} the next was moved\n2.5,3\n{mark} end")
    assert columns(table) == {"a": [1.5, 2.5], "b": [2, 3]}
    assert "left out comments" in notes[0]


def test_comments_beyond_the_first_lines(read):
    lines = [f"{place / 7:.6f},{place / 3:.6f}" for place in range(40_000)]
    lines.insert(2, "# early")
    lines.insert(39_000, "# late")
    table, _ = read("\n".join(lines))
    assert table.rows("all") == 40_000


def test_a_mark_may_begin_a_row(read):
    for text in ("#ff0000,1.5\n#00ff00,2.5\n", "colour,x\n#ff0000,1.5\n#00ff00,2.5\n", "red,1\n#ff0000,2\nblue,5\n"):
        table, _ = read(text)
        assert table.rows("all") == text.count("\n") - text.startswith("colour")
    assert read(";a;b\n4;2,5;3\n4;4,5;4\n")[0].features == ("Unnamed: 0", "a", "b")


@pytest.mark.parametrize("text", ["# a b c\n1 2.5 3\n4 5.5 5\n", "#a\tb\tc\n1\t2.5\t3\n4\t5.5\t5\n"])
def test_names_in_a_comment_as_numpy_writes_them(read, text):
    table, notes = read(text, name="table.txt")
    assert columns(table) == {"a": [1, 4], "b": [2.5, 5.5], "c": [3, 5]}
    assert "for column names" in notes[0]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_that_excel_announces(read, separator):
    table, notes = read(f"sep={separator}\n" + separator.join("ab") + f"\n1{separator}2\n3{separator}5\n")
    assert columns(table) == {"a": [1, 3], "b": [2, 5]}
    assert notes == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(read, encoding):
    text = "size,b\n1,2\n3,5\n" if encoding in ("utf-16-le", "utf-16-be") else "größe,b\n1,2\n3,5\n"
    table, notes = read(text.encode(encoding))
    assert list(columns(table).values()) == [[1, 3], [2, 5]]
    assert table.features == (text.partition(",")[0], "b")
    assert notes == []


@pytest.mark.parametrize("lines", [1, 40_000])
def test_latin_1_is_told_wherever_it_shows(read, lines):
    text = "a,b,kind\n" + "1.5,2,x\n" * lines + "2.5,3,groß\n"
    table, notes = read(text.encode("latin-1"))
    assert table.parts["all"][2][-1] == "groß"
    assert "Windows-1252" in notes[0]


# missing values, dates, true and false, text


@pytest.mark.parametrize("cell", ["", "NA", "N/A", "n/a", "nan", "NaN", "null", "NULL", "None", "-", "--", "?", "."])
def test_spellings_of_missing_numbers(read, cell):
    table, notes = read(f"a,b\n1.5,2\n{cell},3\n-999,4\n")
    np.testing.assert_array_equal(table.parts["all"][0], [1.5, np.nan, -999])
    assert notes == []


@pytest.mark.parametrize(
    ("cells", "first", "told"),
    [
        (["2024-01-31", "2024-02-01"], "2024-01-31", False),
        (["2024/01/31", "2024/02/01"], "2024-01-31", False),
        (["31.01.2024", "01.02.2024"], "2024-01-31", False),
        (["1.2.2024", "3.4.2024"], "2024-02-01", False),
        (["31/01/2024", "01/02/2024"], "2024-01-31", False),
        (["01/31/2024", "02/01/2024"], "2024-01-31", False),
        (["1/2/2024", "3/4/2024"], "2024-01-02", True),
        (["1/1/2024", "3/3/2024"], "2024-01-01", False),
        (["2024-01-31T10:00:00Z", "2024-02-01T10:00:00+02:00"], "2024-01-31T10:00", False),
        (["2024-01-31 10:30", "2024-02-01 11:45"], "2024-01-31T10:30", False),
        (["31.01.2024 10:30", "01.02.2024 11:45"], "2024-01-31T10:30", False),
        (["31-Jan-2024", "1-Feb-2024"], "2024-01-31", False),
        (["31/01/24", "01/02/24"], "2024-01-31", False),
    ],
)
def test_dates(read, cells, first, told):
    table, notes = read("day,x\n" + "\n".join(f"{cell},{place}.5" for place, cell in enumerate([*cells, "", "-"])))
    dates = table.parts["all"][0]
    assert dates.dtype.kind == "M"
    assert dates[0] == np.datetime64(first)
    assert np.isnat(dates[2:]).all()
    assert any("month first" in note for note in notes) == told


@pytest.mark.parametrize("cells", [["2024-13-45", "2024-01-01"], ["12:30", "12:45"], ["1.2.3", "1.2.4"]])
def test_what_only_looks_like_a_date_is_text(read, cells):
    assert columns(read(f"day,x\n{cells[0]},1\n{cells[1]},2\n")[0])["day"] == cells


def test_true_false_and_text_keep_their_kind(read):
    table, _ = read("flag,gaps,kind,answer\nTrue,False,x,yes\nFalse,,,no\nTrue,True,y,yes\n")
    kinds = [values.dtype.kind for values in table.parts["all"]]
    assert kinds == ["b", "O", "O", "O"]
    assert columns(table)["gaps"] == [False, None, True]
    assert columns(table)["kind"] == ["x", None, "y"]


@pytest.mark.parametrize("cell", ["1_000", "\uff11", "x", "0x1F", "1.5.2"])
@pytest.mark.parametrize("row", [0, 7, 29])
def test_a_cell_that_spoils_a_column_of_numbers_is_named(read, tmp_path, cell, row):
    lines = [f"{place}.5,{place * place if place != row else cell}" for place in range(30)]
    with pytest.raises(DataError):
        read("a,b\n" + "\n".join(lines))
    assert f"{cell!r} in row {row} (counting from 0), column 'b'" in error_of(tmp_path / "table.csv")


@pytest.mark.parametrize("cells", [["1_000", "2_000"], ["\uff11", "\uff12"], ["A1", "A2"], ["3 kg", "x"]])
def test_text_that_python_or_a_human_takes_for_numbers_stays_text(read, cells):
    assert columns(read(f"a,b\n{cells[0]},1\n{cells[1]},2\n")[0])["a"] == cells


@pytest.mark.parametrize("cells", [["12%", "13.5%"], ["\u20ac 3.50", "\u20ac 4"], ["3 EUR", "4 EUR"], ["$1,000", "$5"]])
def test_amounts_with_a_unit_are_refused_by_name(read, tmp_path, cells):
    with pytest.raises(DataError):
        read(f"a;b\n{cells[0]};1\n{cells[1]};2\n")
    assert f"column 'a' holds amounts with a unit, such as {cells[0]!r}" in error_of(tmp_path / "table.csv")


def test_integers_beyond_64_bits_are_numbers(read):
    assert columns(read("a,b\n99999999999999999999,1\n2,3\n")[0])["a"] == [1e20, 2]


# refusals


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("where", [0, 20])
def test_rows_with_more_cells_are_refused(read, tmp_path, rows, separator, where):
    lines = text_of(rows, separator, names=("a", "b", "c")).splitlines()
    lines[1 + where] += f"{separator}1"
    with pytest.raises(DataError):
        read("\n".join(lines))
    assert "more cells than the header" in error_of(tmp_path / "table.csv")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# only a comment\n", b"sep=;\n", b"\xef\xbb\xbf"])
def test_files_without_a_table(tmp_path, content):
    (tmp_path / "table.csv").write_bytes(content)
    assert "is empty" in error_of(tmp_path / "table.csv")


@pytest.mark.parametrize(
    "wrong",
    [
        {"separator": ",", "decimal": ","},
        {"separator": "."},
        {"separator": "ab"},
        {"separator": "x"},
        {"separator": ""},
        {"decimal": ";"},
        {"header": "yes"},
        {"index_column": 3},
    ],
)
def test_options_that_make_no_sense(wrong):
    with pytest.raises(DataError) as caught:
        ReadOptions(**wrong)
    assert "\n" not in str(caught.value)


def test_options_survive_a_mapping():
    for options in (ReadOptions(), ReadOptions(False, "tab", ",", "none"), ReadOptions(header=True, separator=" ")):
        assert ReadOptions.from_mapping(options.to_mapping()) == options
    assert ReadOptions().to_mapping() == {}
    with pytest.raises(DataError, match="unknown option seperator"):
        ReadOptions.from_mapping({"seperator": ","})


# packed


def zstandard(content):
    pyarrow = pytest.importorskip("pyarrow")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKINGS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard}


@pytest.mark.parametrize("suffix", PACKINGS)
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".txt", ".CSV"])
def test_packed_text(read, rows, suffix, kind):
    content = text_of(rows, names=("a", "b", "c")).encode("utf-16")
    table, notes = read(PACKINGS[suffix](content), name=f"table{kind}{suffix}")
    np.testing.assert_array_equal(table.numbers("all"), rows)
    assert notes == []


@pytest.mark.parametrize("suffix", PACKINGS)
def test_a_packed_file_cut_short_is_damaged(tmp_path, suffix):
    rows = np.random.default_rng(0).normal(size=(30_000, 3))
    packed = PACKINGS[suffix](text_of(rows, names=("a", "b", "c")).encode())
    (tmp_path / f"table.csv{suffix}").write_bytes(packed[: 2 * len(packed) // 3])
    assert "damaged" in error_of(tmp_path / f"table.csv{suffix}")


@pytest.mark.parametrize("content", [b"0", b"1.5,2.5\n", b"a\n\n"])
def test_bombs_are_not_unpacked(tmp_path, monkeypatch, content):
    monkeypatch.setattr("jkoflow.data.readers.packed.HARMLESS", 1 << 20)
    monkeypatch.setattr("jkoflow.data.readers.packed.LONGEST_LINE", 1 << 19)
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(content * ((1 << 25) // len(content))))
    message = error_of(path)
    assert "unpacks to more than 100 times" in message or "a line of more than" in message


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_that_options_are_about_are_no_row_numbers(rows, tmp_path, suffix):
    frame = pd.DataFrame(rows[:, :2], columns=["a", "b"], index=pd.Index(np.arange(len(rows)), name="id"))
    path = tmp_path / f"rows.{suffix}"
    frame.to_csv(path) if suffix == "csv" else frame.to_parquet(path)
    for options in (
        TableOptions(split_by="id"),
        TableOptions(columns={"id": "real"}),
        TableOptions(context_columns=("id",)),
    ):
        assert "id" in read_table(path, options.reading).features
    assert TableOptions(split_by="id").to_mapping() == {"split_by": "id"}


@pytest.mark.parametrize("header", ["350,351.2,352.9", "1050.5,1100.25,1170.75", "-7e3,-1.5e3,-400.5"])
def test_a_first_line_far_from_all_rows_is_told(read, header):
    body = np.random.default_rng(0).standard_normal((60, 3)).round(4)
    table, notes = read(header + "\n" + "\n".join(",".join(map(str, row)) for row in body) + "\n")
    assert len(table.features) == 3
    assert "--header" in notes[0] or "--no-header" in notes[0]


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("decimals", [2, 3, 6])
def test_commas_that_separate_cells_and_decimals_are_told(read, columns, decimals):
    body = np.random.default_rng(0).standard_normal((200, columns)) * 20
    text = "".join(",".join(f"{v:.{decimals}f}".replace(".", ",") for v in row) + "\n" for row in body)
    notes = read(text)[1]
    assert any("decimal mark" in note and "--sep ," in note for note in notes)
    codes = "".join(f"{n},{n % 7},{n % 5},{n % 3}\n" for n in range(200))
    assert not any("decimal mark" in note for note in read(codes, ReadOptions(index_column="none"))[1])


def test_codes_with_zeros_before_them_and_columns_of_names_stay_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "zip,kind,x\n"
        + "".join(f"{z},{k},{x}\n" for z, k, x in zip(["01067", "20095"] * 20, [1, 2] * 20, range(40), strict=True))
    )
    with pytest.warns(DataWarning, match="'zip' has numbers with zeros before them"):
        zips, kinds, _ = read_table(path).parts["all"]
    assert zips.tolist()[:2] == ["01067", "20095"]
    assert kinds.dtype.kind == "i"
    zips, kinds, _ = read_table(path, ReadOptions(texts=("zip", "kind"))).parts["all"]  # told, so nothing is doubtful
    assert zips.tolist()[:2] == ["01067", "20095"]
    assert kinds.tolist()[:2] == ["1", "2"]
