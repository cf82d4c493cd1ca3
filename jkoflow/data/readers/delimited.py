"""Text files of cells: .csv, .tsv and .txt, packed or not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jkoflow.data.checks import DataError, default_features
from jkoflow.data.optional import require
from jkoflow.data.readers.cells import MISSING, is_number, values_of
from jkoflow.data.readers.damage import reading
from jkoflow.data.readers.frames import different, frame_table
from jkoflow.data.readers.header import header_of
from jkoflow.data.readers.layout import Layout, cut, layout_of
from jkoflow.data.readers.options import ReadOptions
from jkoflow.data.readers.row_numbers import without_row_numbers
from jkoflow.data.readers.text import EncodingError, Lines, encoding_of
from jkoflow.data.table import Table

COMMENTS = ("#", "%", "//", ";")
"""Marks at the start of a line that is a comment."""

UNUSED = "\x1f"
"""Separator for the parser of a file with a single column."""


class _Plan(NamedTuple):
    """How the lines that are left are to be parsed."""

    layout: Layout
    names: list[str] | None
    width: int
    nameless_first: bool
    """Whether the first column holds the names of rows, over which the header has no cell."""


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
        separator = plan.layout.separator
        with reading(path.suffix):
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # rows longer than the first lose data
            try:
                frame = pandas.read_csv(
                    lines,
                    sep=r"\s+" if separator == " " else separator or UNUSED,
                    decimal=plan.layout.decimal,
                    header=None,
                    names=list(range(plan.width)),
                    index_col=False,
                    low_memory=False,
                    skipinitialspace=True,
                    na_values=list(MISSING),
                )
            except (pandas.errors.ParserError, pandas.errors.ParserWarning) as error:
                raise DataError(_remedy(error, plan)) from error
        if lines.comments_left_out:
            notes.append(f"left out {lines.comments_left_out} lines of comments between the rows")
    return plan, frame, notes


def _plan(lines: Lines, options: ReadOptions, notes: list[str]) -> _Plan:
    """Decides the layout and the names by the first lines, and takes those lines that are no rows."""
    first = [line for line in lines.first if line.strip()]
    announced = re.fullmatch(r'"?sep=(.)"?\s*', first[0], re.IGNORECASE) if first else None
    if announced:
        first = first[1:]
    head: list[str] = []
    while first and first[0].lstrip().startswith(_marks(first)):
        head.append(first.pop(0))
    marks = _marks(first) if first else ()
    body = [line for line in first if not line.startswith(marks)] if marks else first
    if not body:
        raise DataError("is empty")
    layout = layout_of(body, options, announced[1] if announced else None)
    if layout.note:
        notes.append(layout.note)
    rows = [layout.cut(line) for line in body[:1000]]
    if marks and rows[-1] and not is_number(rows[-1][0], layout.decimal):
        marks = ()  # a first column of text may begin with anything, such as #ff0000
    lines.leave_out(marks)
    alike = [row for row in rows[1:] if len(row) == len(rows[1])]
    above = [row for row in alike if len(row) == len(rows[0])]
    found = options.header
    if found is None:
        header = header_of(rows[0], above, layout.decimal)
        found = header.found or (bool(alike) and not above and not _all_numbers(rows[0], layout))
        if header.note:
            notes.append(header.note)
    names = rows[0] if found else _names_in_comment(head, rows[0], layout, notes) if options.header is None else None
    lines.first = first[first.index(body[0]) + 1 :] if found else first[first.index(body[0]) :]
    return _shaped(layout, names, rows[1:] if found else rows)


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
    if len(names) != len(row) or len(set(names)) != len(names) or any(is_number(name) or not name for name in names):
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
        labels[place]: _meant(frame.iloc[:, place], labels[place] if named else str(place), plan.layout, notes)
        for place in kept
    }
    if plan.nameless_first and frame[0].dtype.kind not in "iuf":
        columns.pop(labels[0])
        notes.append("left out the first column, which holds names of rows: the header has no name for it")
    pandas = require("pandas", "reading tables")
    found = pandas.DataFrame(columns, copy=False)
    table = frame_table(found, ReadOptions(index_column="none"), notes)
    return without_row_numbers(table, named, options, notes)


def _meant(cells: Any, name: str, layout: Layout, notes: list[str]) -> Any:
    pandas = require("pandas", "reading tables")
    if not (isinstance(cells.dtype, pandas.StringDtype) or cells.dtype == object):
        return cells
    filled = cells[cells.notna()]
    if not all(isinstance(cell, str) for cell in filled):
        return cells  # true and false with missing ones, or integers beyond 64 bits
    return values_of(cells, name, layout.decimal, notes)


def _all_numbers(row: Sequence[str], layout: Layout) -> bool:
    return all(is_number(cell, layout.decimal) for cell in row)


def _remedy(error: BaseException, plan: _Plan) -> str:
    found = re.search(r"Expected (\d+) fields in line \d+, saw (\d+)", str(error))
    counts = f" ({found[2]}, not {found[1]})" if found else ""
    mark = "; if the comma is the decimal mark, give --decimal ," if plan.layout.separator == "," else ""
    first = "header" if plan.names is not None else "first row"
    return f"some rows have more cells than the {first}{counts}; quote or escape the separator{mark}"
