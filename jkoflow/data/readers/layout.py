"""How the cells of a text file are separated and what its decimal mark is, decided together."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from jkoflow.data.checks import DataError
from jkoflow.data.readers.cells import is_grouped, is_missing, is_number
from jkoflow.data.readers.damage import one_line
from jkoflow.data.readers.dates import is_date
from jkoflow.data.readers.options import ReadOptions

CANDIDATES = ("\t", ";", "|", ",", " ", None)
"""Separators, the one to prefer among equals first; a blank stands for any run of blanks, None for a single column."""

ROWS = 200
"""Largest number of lines that are looked at."""


class Layout(NamedTuple):
    """How to cut lines into cells."""

    separator: str | None
    """Separator of cells as in `CANDIDATES`."""
    decimal: str
    """Decimal mark."""
    note: str | None
    """Sentence for the user if both could be otherwise."""

    def cut(self, line: str) -> list[str]:
        """Returns the cells of a line, without quotes and blanks around them."""
        return cut(line, self.separator)


class _Choice(NamedTuple):
    score: float
    plain: float
    rank: int
    separator: str | None
    decimal: str
    width: int


def cut(line: str, separator: str | None) -> list[str]:
    """Returns the cells of a line, without quotes and blanks around them."""
    if separator == " ":
        return [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', line)]
    if separator is None:
        return [line.strip().strip('"').strip()]
    try:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error as error:
        raise DataError(f"is damaged: {one_line(error)}") from error
    return [cell.strip() for cell in cells]


def layout_of(lines: Sequence[str], options: ReadOptions, announced: str | None = None) -> Layout:
    """Returns the layout that makes the most cells numbers and the rows of one length.

    Arguments:
        lines: Lines from the start of the file that are not empty and no comments.
        options: What is known of it.
        announced: The separator that an Excel file's first line names.
    """
    lines = lines[:ROWS]
    separator = options.separator or announced
    separators = (separator,) if separator else CANDIDATES
    choices: list[_Choice] = []
    for rank, candidate in enumerate(separators):
        if candidate is None or any(candidate in line or (candidate == " " and "\t" in line) for line in lines):
            rows = [cut(line, candidate) for line in lines]
            decimals = [mark for mark in options.decimal or ".," if mark != candidate]
            found = (_choice(rows, candidate, mark, rank) for mark in decimals)
            choices += [choice for choice in found if choice is not None]
    if not choices:  # the separator was named, and occurs nowhere
        return Layout(separator, options.decimal or ".", f"the separator {separator!r} stands nowhere: took one column")
    best = max(choices, key=lambda choice: (round(choice.score, 9), choice.plain, -choice.rank, choice.decimal == "."))
    if options.decimal or separator:
        return Layout(best.separator, best.decimal, _decimal_note(lines, best) if not options.decimal else None)
    return _between_comma_and_decimal(lines, choices, best)


def _choice(rows: Sequence[Sequence[str]], separator: str | None, decimal: str, rank: int) -> _Choice | None:
    """Returns how well the rows that a separator gives suit; None if it cannot be meant."""
    body = rows[1:] or rows
    width = Counter(map(len, body)).most_common(1)[0][0]
    if width < 2 and len(rows[0]) < 2 and separator is not None:
        return None
    alike = [row for row in body if len(row) == width]
    cells = [cell for row in alike for cell in row if not is_missing(cell)]
    numbers = [cell for cell in cells if is_number(cell, decimal)]
    dates = sum(map(is_date, cells))
    share = (len(numbers) + dates) / max(1, len(cells))
    grouped = sum(is_grouped(cell, decimal) for cell in numbers) / max(1, len(numbers))
    headed = 1.0 if len(rows[0]) == width or 1 < len(rows[0]) == width - 1 else 0.8
    if any(other in cell for cell in rows[0] for other in "\t;|," if not is_number(cell, decimal)):
        headed *= 0.8 if separator else 0.5  # names do not hold separators
    return _Choice(headed * len(alike) / len(body) * (share + 0.05), 1 - grouped, rank, separator, decimal, width)


def _between_comma_and_decimal(lines: Sequence[str], choices: Sequence[_Choice], best: _Choice) -> Layout:
    """Returns the best layout, with a look at pairs of integers that may be one column of decimal commas."""
    pairs = next((choice for choice in choices if (choice.separator, choice.decimal) == (",", ".")), None)
    single = next((choice for choice in choices if (choice.separator, choice.decimal) == (None, ",")), None)
    if pairs and single and pairs.width == 2 and best in (pairs, single) and abs(pairs.score - single.score) < 1e-9:
        seconds = [row[1] for row in (cut(line, ",") for line in lines) if len(row) == 2]
        if all(re.fullmatch(r"[0-9]+", cell) for cell in seconds):
            took = f"took ',' in lines such as {lines[-1][:80]!r}"
            if any(re.fullmatch(r"0[0-9]+", cell) for cell in seconds):  # integers do not begin with 0
                return Layout(None, ",", f"{took} for the decimal mark; if it separates cells, give --sep ,")
            return Layout(",", ".", f"{took} for the separator; if it is the decimal mark, give --decimal ,")
    return Layout(best.separator, best.decimal, _decimal_note(lines, best))


def _decimal_note(lines: Sequence[str], best: _Choice) -> str | None:
    """Returns a note if every cell with a mark could be a number whose thousands are set apart."""
    cells = [cell for line in lines for cell in cut(line, best.separator) if is_number(cell, best.decimal)]
    other = "," if best.decimal == "." else "."
    marked = [cell for cell in cells if best.decimal in cell]
    if best.separator == other or not marked or not all(is_grouped(cell, other) for cell in marked):
        return None
    if any(other in cell for cell in cells):
        return None
    return (
        f"took {best.decimal!r} in cells such as {marked[0]!r} for the decimal mark; if it sets thousands apart, give "
        f"--decimal {other}"
    )


def halves_of_decimals(rows: Sequence[Sequence[str]]) -> bool:
    """Tells whether the cells of rows are what commas cut numbers with decimal commas into.

    Every second column then holds digits without a sign, equally many in all rows, and some begin with 0.
    """
    if len({len(row) for row in rows}) != 1 or len(rows[0]) % 2:
        return False
    columns = list(zip(*rows, strict=True))
    if not all(cell.lstrip("+-").isdecimal() for column in columns[::2] for cell in column):
        return False
    if not all(cell.isdecimal() for column in columns[1::2] for cell in column):
        return False
    return all(
        len({len(cell) for cell in column}) == 1
        and len(column[0]) > 1
        and any(cell[0] == "0" for cell in column)
        and any(cell[0] != "0" for cell in column)
        for column in columns[1::2]
    )
