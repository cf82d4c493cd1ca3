"""What cells of text mean: numbers in all their spellings, and missing values."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.checks import DataError
from jkoflow.data.readers.dates import dates_of

_EXPONENT = r"([eE][+-]?[0-9]+)?"
_BLANKS = " \u00a0\u2009\u202f"

PLAIN = {
    ".": rf"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+){_EXPONENT}",
    ",": rf"[+-]?([0-9]+(,[0-9]+)?|,[0-9]+){_EXPONENT}",
}
"""Patterns of numbers by decimal mark."""

GROUPED = {
    ".": rf"[+-]?[1-9][0-9]{{0,2}}(?P<group>[,'’{_BLANKS}])[0-9]{{3}}((?P=group)[0-9]{{3}})*(\.[0-9]*)?",
    ",": rf"[+-]?[1-9][0-9]{{0,2}}(?P<group>[.'’{_BLANKS}])[0-9]{{3}}((?P=group)[0-9]{{3}})*(,[0-9]*)?",
}
"""Patterns of numbers whose thousands are set apart, by decimal mark."""

SPECIAL = r"[+-]?([iI][nN][fF]([iI][nN][iI][tT][yY])?|[nN][aA][nN])"

OTHER_MARK = {".": ",", ",": "."}

MISSING = ("?", "na", "Na", "NAN", "Nan", "none", "NONE", "Null", "#VALUE!", "#DIV/0!", "#NUM!", "#REF!", "#NAME?")
"""Spellings of a missing value in any column, besides pandas's own (NA, N/A, nan, null, None, an empty cell, ...)."""

MISSING_NUMBERS = ("-", "--", "—", "–", ".", "..")
"""Spellings of a missing value in a column of numbers or dates; in a column of text they may be a category."""

_MARKED = r"(?P<before>[$€£¥₹]?)\s*(?P<number>.*?[0-9])\s*(?P<after>%|‰|[$€£¥₹]|EUR|USD|GBP|CHF|JPY)?"

_number = {mark: re.compile(f"{PLAIN[mark]}|{GROUPED[mark]}|{SPECIAL}") for mark in PLAIN}
_missing = frozenset(("", "NA", "N/A", "n/a", "nan", "NaN", "null", "NULL", "None", *MISSING, *MISSING_NUMBERS))


def is_missing(cell: str) -> bool:
    """Tells whether a cell is empty or says that the value is missing."""
    return cell in _missing


def is_number(cell: str, decimal: str = ".") -> bool:
    """Tells whether a cell is a number, with its thousands set apart or not."""
    return _number[decimal].fullmatch(cell.replace("−", "-")) is not None


def is_grouped(cell: str, decimal: str) -> bool:
    """Tells whether a cell is a number whose thousands are set apart."""
    return re.fullmatch(GROUPED[decimal], cell) is not None


def values_of(cells: Any, name: str, decimal: str, notes: list[str], takes_text: bool = False) -> Any:
    """Returns what the cells of a column mean that pandas takes for text.

    Arguments:
        cells: A pandas Series of text, missing where there is none, with shape (N,).
        name: Name of the column.
        decimal: The file's decimal mark.
        notes: Takes a sentence for each doubtful decision.
        takes_text: Whether numbers with text among them, or with units, are text.

    Returns:
        The column as numbers or dates; or as text, without blanks around it.

    Raises:
        DataError: If most cells are numbers and some are not, or the cells are amounts with a unit.
    """
    texts = cells.astype(object).where(cells.notna(), None)
    texts = texts.map(lambda cell: cell.strip() if isinstance(cell, str) else cell)
    texts = texts.where(texts != "", None)
    marked = texts.isin(MISSING_NUMBERS)
    filled = texts[texts.notna() & ~marked].astype(str).str.replace("−", "-", regex=False)
    if filled.empty:
        return texts
    for mark in (decimal, OTHER_MARK[decimal]):
        numbers = _numbers(filled, mark)
        if numbers is not None:
            _note_spelling(filled, name, mark, decimal, notes)
            return numbers.reindex(texts.index)
    dates = dates_of(filled, name, notes)
    if dates is not None:
        return dates.reindex(texts.index)
    if not takes_text:
        _refuse_units(filled, name)
        refuse_spoilt(texts, name, decimal)
    return texts


def _numbers(filled: Any, decimal: str) -> Any:
    """Returns the numbers, or None if a cell is not one."""
    plain = filled.str.fullmatch(f"{PLAIN[decimal]}|{SPECIAL}")
    if not (plain | filled.str.fullmatch(GROUPED[decimal])).all():
        return None
    other = re.escape(OTHER_MARK[decimal])
    return filled.str.replace(rf"[{other}'’{_BLANKS}]", "", regex=True).str.replace(",", ".").astype(np.float64)


def _note_spelling(filled: Any, name: str, mark: str, decimal: str, notes: list[str]) -> None:
    other = OTHER_MARK[mark]
    grouped = filled[filled.str.fullmatch(GROUPED[mark]) & filled.str.contains(other, regex=False)]
    sure = grouped.str.contains(mark, regex=False) | (grouped.str.count(re.escape(other)) > 1)
    if len(grouped) and not sure.any():
        notes.append(
            f"column {name!r}: took {other!r} in cells such as {grouped.iloc[0]!r} for a mark between thousands; if it "
            f"is the decimal mark, give --decimal {other}"
        )
    elif mark != decimal:
        notes.append(f"column {name!r} is written with decimal {mark!r}, though others are not")


def _refuse_units(filled: Any, name: str) -> None:
    """Refuses amounts of money and percentages, which would otherwise be text."""
    parts = filled.str.extract(f"^{_MARKED}$")
    if parts["number"].isna().any() or not ((parts["before"] != "") | parts["after"].notna()).all():
        return
    if not any(parts["number"].map(lambda cell, mark=mark: is_number(cell, mark)).all() for mark in PLAIN):
        return
    raise DataError(
        f"column {name!r} holds amounts with a unit, such as {filled.iloc[0]!r}; "
        f"write plain numbers, or say that they are names or nothing: {_as_told(name)}"
    )


def refuse_spoilt(cells: Any, name: str, decimal: str = ".") -> None:
    """Refuses a column of numbers with a few cells of text, which would otherwise be text.

    Arguments:
        cells: A pandas Series of anything, None where a value is missing, with shape (N,).
        name: Name of the column.
        decimal: The file's decimal mark.

    Raises:
        DataError: If at least half of the cells are numbers; the message names the first that is not.
    """
    filled = cells[cells.notna().to_numpy()]
    is_text = np.array([isinstance(cell, str) for cell in filled], bool)
    spoilt: NDArray[Any] = np.array(
        [text and not is_number(cell, decimal) for text, cell in zip(is_text, filled, strict=True)], bool
    )
    count = int(spoilt.sum())
    if count == 0 or count == len(filled) or 2 * count > len(filled):
        return
    cell = filled[spoilt].iloc[0]
    row = int(np.flatnonzero(cells.notna().to_numpy())[np.flatnonzero(spoilt)[0]])
    raise DataError(
        f"{cell[:40]!r} in row {row} (counting from 0), column {name!r} is not a number ({count} such cells); "
        f"correct these rows, drop them, or say that all cells are names or nothing: {_as_told(name)}"
    )


def _as_told(name: str) -> str:
    return f"--columns {name}=category or {name}=drop (in Python: columns={{{name!r}: 'category'}})"
