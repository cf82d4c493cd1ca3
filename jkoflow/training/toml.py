"""Writes a flat table of settings as TOML, which Python itself can only read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# What a basic string must not hold as it is: quotes, backslashes and control characters, but for the tab.
_UNSAFE = re.compile(r'["\\\x00-\x08\x0a-\x1f\x7f]')
_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def dumps(table: Mapping[str, Any]) -> str:
    """Returns the text that `tomllib.loads` reads back as the same table.

    Arguments:
        table: Names and values: strings, whole numbers, floats (NaN and inf, too), truth values, and lists and tables
            of those.

    Raises:
        TypeError: If a value is of another kind.

    Example:
        >>> print(dumps({"data": "a.csv", "hidden": [8, 8], "rate": 5e-3}), end="")
        data = "a.csv"
        hidden = [
            8,
            8,
        ]
        rate = 0.005
    """
    return "".join(f"{_key(name)} = {_value(name, value)}\n" for name, value in table.items())


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name)


def _value(name: str, value: Any) -> str:
    if isinstance(value, list):
        return "[" + "".join(f"\n    {_scalar(name, item)}," for item in value) + ("\n]" if value else "]")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_scalar(name, item)}" for key, item in value.items()) + "}"
    return _scalar(name, value)


def _scalar(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)  # Python's digits, exponents, inf and nan are TOML's, too
    if isinstance(value, str):
        return _string(value)
    raise TypeError(
        f"{name} must be a string, a number, a truth value or a list of those to be written as TOML, got {value!r}"
    )


def _string(text: str) -> str:
    return f'"{_UNSAFE.sub(_escape, text)}"'


def _escape(found: re.Match[str]) -> str:
    return _SHORT_ESCAPES.get(found[0], f"\\u{ord(found[0]):04x}")
