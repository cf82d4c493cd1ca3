"""Dates in text: in ISO's order, with the month as a word, and with day and month in either order."""

from __future__ import annotations

import re
from typing import Any

from jkoflow.optional import require

DATE = (
    r"([0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.]([0-9]{4}|[0-9]{2})|"
    r"[0-9]{1,2}[- ][A-Za-z]{3,9}[- ][0-9]{4})"
    r"([T ]+[0-9]{1,2}:[0-9]{2}(:[0-9]{2}([.,][0-9]+)?)?( ?(Z|[+-][0-9]{2}:?[0-9]{2}))?)?"
)
"""Pattern of a date, perhaps with a time."""

TIMES = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f")
"""Forms of the time after a date."""

ZONES = ("", "%z", " %z")
"""Forms of the zone after a time."""

_date = re.compile(DATE)


def is_date(cell: str) -> bool:
    """Tells whether a cell is a date."""
    return _date.fullmatch(cell) is not None


def dates_of(texts: Any, name: str, notes: list[str]) -> Any:
    """Returns the dates of a column.

    Arguments:
        texts: A pandas Series of text, with no value missing.
        name: Name of the column.
        notes: Takes a sentence if day and month could be either.

    Returns:
        Dates without a zone, those with one in UTC; None if they do not all follow one form.
    """
    if not texts.str.fullmatch(DATE).all():
        return None
    if texts.str.match("[0-9]{4}").all():
        found = [_parsed(texts.str.replace(r"[/.]", "-", n=2, regex=True), "ISO8601")]
    elif texts.str.contains("[A-Za-z]{3}").all():
        found = [_parsed(texts, "mixed")]
    else:
        found = _day_and_month(texts)
    known = [dates for dates in found if dates is not None]
    if not known:
        return None
    if len(known) == 2 and not known[0].equals(known[1]):
        notes.append(
            f"column {name!r}: took {texts.iloc[0]!r} for a date with the month first, day and month could be either; "
            "write dates as 2024-12-31 to be sure"
        )
    return known[0].dt.tz_localize(None)


def _day_and_month(texts: Any) -> list[Any]:
    """Returns the dates with the month first, and with the day first, each None if it cannot be."""
    plain = texts.str.replace(r"^(\d+)[-/.](\d+)[-/.](\d+)", r"\1-\2-\3", regex=True)
    year = "%Y" if plain.str.match(r"\d+-\d+-\d{4}").all() else "%y"
    orders = ["%d-%m"] if texts.str.match(r"\d+\.").all() else ["%m-%d", "%d-%m"]  # points: the day comes first
    for time in TIMES:
        for zone in ZONES if time else ZONES[:1]:
            found = [_parsed(plain, f"{order}-{year}{time}{zone}") for order in orders]
            if any(dates is not None for dates in found):
                return found
    return []


def _parsed(texts: Any, form: str) -> Any:
    pandas = require("pandas", "reading dates")
    try:
        return pandas.to_datetime(texts, errors="raise", format=form, utc=True, dayfirst=form == "mixed")
    except (ValueError, OverflowError):
        return None
