"""Text files of cells: .csv, .tsv and .txt, packed or not."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jkoflow.data.checks import DataError, default_features
from jkoflow.data.readers.cells import MISSING, is_number, values_of
from jkoflow.data.readers.damage import reading
from jkoflow.data.readers.frames import different, frame_table
from jkoflow.data.readers.header import header_of, usual_kind
from jkoflow.data.readers.layout import Layout, cut, halves_of_decimals, layout_of
from jkoflow.data.readers.options import KEEP, ReadOptions
from jkoflow.data.readers.row_numbers import without_row_numbers
from jkoflow.data.readers.text import EncodingError, Lines, encoding_of
from jkoflow.data.table import Table
from jkoflow.optional import require

COMMENTS = ("#", "%", "//", ";")
"""Marks at the start of a line that is a comment."""

UNUSED = "\x1f"
"""Separator for the parser of a file with a single column."""


class _Start(NamedTuple):
    """The lines at the start of a file."""

    layout: Layout
    head: Sequence[str]
    """Comments above the first row or header."""
    body: Sequence[str]
    """The lines from there on."""
    marks: tuple[str, ...]
    """Marks of comments among them; empty if a row may begin with such a mark."""


_ZEROS = re.compile(r"0[0-9]{2,}")


class _Plan(NamedTuple):
    """How the lines that are left are to be parsed."""

    layout: Layout
    names: list[str] | None
    width: int
    nameless_first: bool
    """Whether the first column holds the names of rows, over which the header has no cell."""
    codes: tuple[int, ...] = ()
    """Numbers of the columns whose cells are names although they look like numbers, such as 01067."""


def read_delimited(path: Path, packing: str, options: ReadOptions, notes: list[str]) -> Table:
    """Reads a text file of cells.

    Arguments:
        path: The file.
        packing: How it is packed, see `jkoflow.data.readers.packed.PACKINGS`; empty if it is not.
        options: What is known of it; the rest is decided by its first lines, and by all cells of a column.
        notes: Takes a sentence for each doubtful decision.

    Raises:
        DataError: If the file is empty, damaged, has rows of different lengths or a column of numbers spoilt by text.
        MissingExtraError: If pandas is not installed.
    """
    require("pandas", f"reading {path.suffix} files")
    encoding = encoding_of(path, packing)
    try:
        plan, frame, decided = _parse(path, packing, encoding, options)
    except EncodingError:
        if encoding != "utf-8":
            raise
        plan, frame, decided = _parse(path, packing, "cp1252", options)
        decided.append("is not UTF-8; took it for Windows-1252 (Latin-1); if names look wrong, convert it to UTF-8")
    notes += decided
    return _table(plan, frame, options, notes)


def _parse(path: Path, packing: str, encoding: str, options: ReadOptions) -> tuple[_Plan, Any, list[str]]:
    pandas = require("pandas", f"reading {path.suffix} files")
    notes: list[str] = []
    with Lines(path, packing, encoding) as lines:
        plan = _plan(lines, options, notes)
        with _parsing(path, plan):
            frame = pandas.read_csv(lines, **_arguments(plan), low_memory=False)
        if lines.comments_left_out:
            notes.append(f"left out comments between the rows (lines of them: {lines.comments_left_out})")
    return plan, frame, notes


def delimited_pieces(
    path: Path, packing: str, options: ReadOptions, notes: list[str], rows_of: Callable[[int], int]
) -> Iterator[Table]:
    """Reads a text file in pieces, of as many rows as ``rows_of`` says for its number of columns.

    Arguments as in `read_delimited`; what the first lines decide holds for all, and each piece decides by itself what
    its cells are. Columns that number the rows stay.

    Raises:
        EncodingError: If the file is not in the encoding that its beginning shows.
    """
    pandas = require("pandas", f"reading {path.suffix} files")
    keep = dataclasses.replace(options, index_column=KEEP)
    with Lines(path, packing, encoding_of(path, packing)) as lines:
        plan = _plan(lines, options, notes)
        with _parsing(path, plan):
            reader = pandas.read_csv(lines, **_arguments(plan), chunksize=rows_of(plan.width))
        while True:
            with _parsing(path, plan):
                frame = next(reader, None)
            if frame is None:
                return
            yield _table(plan, frame.reset_index(drop=True), keep, notes)


@contextmanager
def _parsing(path: Path, plan: _Plan) -> Iterator[None]:
    """Surrounds what pandas does with a file, and says what to do about rows of other lengths."""
    pandas = require("pandas", f"reading {path.suffix} files")
    with reading(path.suffix):
        warnings.simplefilter("error", pandas.errors.ParserWarning)  # rows longer than the first lose data
        try:
            yield
        except (pandas.errors.ParserError, pandas.errors.ParserWarning) as error:
            raise DataError(_remedy(error, plan)) from error


def _arguments(plan: _Plan) -> dict[str, Any]:
    """Returns the arguments of pandas.read_csv by which it reads a file as planned."""
    separator = plan.layout.separator
    return {
        "sep": r"\s+" if separator == " " else separator or UNUSED,
        "decimal": plan.layout.decimal,
        "header": None,
        "names": list(range(plan.width)),
        "index_col": False,
        "skipinitialspace": True,
        "na_values": list(MISSING),
        "dtype": dict.fromkeys(plan.codes, str),
    }


def _plan(lines: Lines, options: ReadOptions, notes: list[str]) -> _Plan:
    """Decides the layout and the names by the first lines, and takes those lines that are no rows."""
    start = _start([line for line in lines.first if line.strip()], options)
    layout, body = start.layout, start.body
    if layout.note:
        notes.append(layout.note)
    rows = [layout.cut(line) for line in body[:1000] if not line.startswith(start.marks)]
    alike = [row for row in rows[1:] if len(row) == len(rows[1])]
    found, names = options.header, None
    if found is None:
        header = header_of(rows[0], [row for row in alike if len(row) == len(rows[0])], layout.decimal)
        shorter = bool(alike) and len(alike[0]) != len(rows[0]) and not _all_numbers(rows[0], layout)
        found = header.found or shorter
        names = None if found else _names_in_comment(start.head, rows[0], layout, notes)
        if header.note and names is None:
            notes.append(header.note)
    if layout.separator == "," and options.separator is None and halves_of_decimals(rows[1:] if found else rows):
        notes.append(
            f"lines such as {body[-1].strip()[:80]!r} look as if commas separate the cells and are the decimal mark, "
            "too; write the file with another separator, or give --sep , if these are whole numbers"
        )
    lines.leave_out(start.marks)
    lines.first = list(body[1:] if found else body)
    plan = _shaped(layout, rows[0] if found else names, rows[1:] if found else rows)
    return plan._replace(codes=_codes(plan, rows[1:] if found else rows, options))


def _codes(plan: _Plan, rows: Sequence[Sequence[str]], options: ReadOptions) -> tuple[int, ...]:
    """Returns the numbers of the columns whose cells are told to be names, or are of one width by zeros before them."""
    told = {place for place, name in enumerate(plan.names or default_features(plan.width)) if name in options.texts}
    zeros = {place for row in rows for place, cell in enumerate(row) if _ZEROS.fullmatch(cell)}
    alike = {place for place in zeros if len({len(row[place]) for row in rows if len(row) > place and row[place]}) == 1}
    return tuple(sorted(place for place in told | alike if place < plan.width))


def _start(lines: Sequence[str], options: ReadOptions) -> _Start:
    """Takes the start of a file apart."""
    announced = re.fullmatch(r'"?sep=(.)"?\s*', lines[0], re.IGNORECASE) if lines else None
    first = list(lines[1:] if announced else lines)
    if not first:
        raise DataError("is empty; give a file with rows")
    marks = _marks(first)
    count = next((place for place, line in enumerate(first) if not line.lstrip().startswith(marks)), 0)
    head, body = first[:count], first[count:]
    rows = [line for line in body if not line.startswith(marks)]
    layout = layout_of(rows or first, options, announced[1] if announced else None)
    cells = [layout.cut(line) for line in (rows or first)[:100]]
    if usual_kind([row[0] for row in cells[1:] if row], layout.decimal) == "text" or len(rows) < 2:
        # a first column of text may begin with anything, such as #ff0000
        alike = [line for line in first if line.startswith(marks) and _is_row(layout.cut(line), len(cells[-1]), layout)]
        if alike or len(rows) > 1:
            return _Start(layout, [line for line in head if line not in alike], _without(first, head, alike), ())
    if not rows:
        raise DataError("is empty but for comments; give a file with rows")
    return _Start(layout, head, body, marks)


def _without(lines: Sequence[str], head: Sequence[str], alike: Sequence[str]) -> list[str]:
    """Returns the lines without those at their head that are not like rows."""
    return [line for place, line in enumerate(lines) if place >= len(head) or line in alike]


def _is_row(row: Sequence[str], width: int, layout: Layout) -> bool:
    """Tells whether a line that begins with a mark could be a row: as wide as others, text first and a number later."""
    numbers = [is_number(cell, layout.decimal) for cell in (row[0].lstrip("#%/;").strip(), *row[1:])]
    return len(row) == width > 1 and any(numbers) and not numbers[0]


def _marks(lines: Sequence[str]) -> tuple[str, ...]:
    """Returns the marks of comments, without ``;`` where it separates cells."""
    others = [line for line in lines if not line.startswith(";")]
    return COMMENTS if others and not any(";" in line for line in others[:20]) else COMMENTS[:-1]


def _names_in_comment(head: Sequence[str], row: Sequence[str], layout: Layout, notes: list[str]) -> list[str] | None:
    """Returns names from the last line of comments above the rows, as numpy and gnuplot write them."""
    if not head:
        return None
    text = re.sub(r"^\s*(#+|%+|//+|;+)", "", head[-1])
    names = cut(text, layout.separator)
    if len(names) != len(row) or len(set(names)) != len(names) or any(map(is_number, names)) or not all(names[1:]):
        return None
    if layout.separator is None and " " in names[0]:
        return None  # a sentence
    notes.append(f"took the comment {head[-1].strip()[:80]!r} for column names")
    return names


def _shaped(layout: Layout, names: list[str] | None, rows: Sequence[Sequence[str]]) -> _Plan:
    """Returns how wide the rows are, with a name for every column if there are names."""
    if names is None:
        return _Plan(layout, None, len(rows[0]), False)
    widths = {len(row) for row in rows[:100]}
    width = max(widths, default=len(names))
    if width == len(names) + 1 and len(widths) == 1:
        if all(row[-1] == "" for row in rows):
            return _Plan(layout, [*names, ""], width, False)  # a separator at the end of every row but the header
        if len({row[0] for row in rows}) == len(rows) and len(rows) > 1:
            return _Plan(layout, ["", *names], width, True)
    return _Plan(layout, names, len(names), False)


def _table(plan: _Plan, frame: Any, options: ReadOptions, notes: list[str]) -> Table:
    """Returns the columns of what pandas parsed, those of text as what they mean."""
    named = plan.names is not None
    names = list(plan.names or default_features(plan.width))
    empty = [place for place, name in enumerate(names) if not name and frame.iloc[:, place].isna().all()]
    labels = different([name or f"Unnamed: {place}" for place, name in enumerate(names)], notes)
    kept = [place for place in range(plan.width) if not (named and place in empty)]
    if not kept:
        raise DataError("has no columns")
    columns = {
        labels[place]: _meant(frame.iloc[:, place], labels[place] if named else str(place), plan, place, notes, options)
        for place in kept
    }
    if plan.nameless_first and frame[0].dtype.kind not in "iuf":
        columns.pop(labels[0])
        notes.append("left out the first column, which holds names of rows: the header has no name for it")
    pandas = require("pandas", "reading tables")
    found = pandas.DataFrame(columns, copy=False)
    table = frame_table(found, ReadOptions(index_column="none", texts=options.texts), notes)
    return without_row_numbers(table, named, options, notes)


def _meant(cells: Any, name: str, plan: _Plan, place: int, notes: list[str], options: ReadOptions) -> Any:
    pandas = require("pandas", "reading tables")
    if place in plan.codes:
        if not options.takes_text(name):
            notes.append(f"column {name!r} has numbers with zeros before them, such as codes; took them for names")
        return cells.map(lambda cell: cell.strip(), na_action="ignore")
    if not (isinstance(cells.dtype, pandas.StringDtype) or cells.dtype == object):
        return cells
    filled = cells[cells.notna()]
    if not all(isinstance(cell, str) for cell in filled):
        return cells  # true and false with missing ones, or integers beyond 64 bits
    return values_of(cells, name, plan.layout.decimal, notes, options.takes_text(name))


def _all_numbers(row: Sequence[str], layout: Layout) -> bool:
    return all(is_number(cell, layout.decimal) for cell in row)


def _remedy(error: BaseException, plan: _Plan) -> str:
    found = re.search(r"Expected (\d+) fields in line \d+, saw (\d+)", str(error))
    counts = f" ({found[2]}, not {found[1]})" if found else ""
    mark = "; if the comma is the decimal mark, give --decimal ," if plan.layout.separator == "," else ""
    first = "header" if plan.names is not None else "first row"
    return f"some rows have more cells than the {first}{counts}; quote or escape the separator{mark}"
