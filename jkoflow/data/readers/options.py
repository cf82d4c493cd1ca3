"""What a user says about a file instead of leaving it to be guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from jkoflow.data.checks import DataError

KEEP = "none"
"""Value of `ReadOptions.index_column` that keeps every column."""

SEPARATORS = {"tab": "\t", "\\t": "\t", "blank": " ", "blanks": " ", "space": " ", "comma": ",", "semicolon": ";"}
"""Names of separators that are hard to type."""


@dataclass(frozen=True)
class ReadOptions:
    """What is known about a file; None is guessed from its content.

    Example:
        >>> ReadOptions(separator="semicolon", decimal=",").separator
        ';'
    """

    header: bool | None = None
    """Whether the first line of a text file names the columns."""
    separator: str | None = None
    """What separates the cells of a text file: one character, or a key of `SEPARATORS`; a blank stands for any run of
    blanks and tabs."""
    decimal: str | None = None
    """The decimal mark of a text file, ``"."`` or ``","``."""
    index_column: str | None = None
    """Name of the column that numbers the rows and is left out; ``"none"`` keeps a column that looks like one."""
    mentioned: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Names of columns that other options are about, which are no row numbers then; no option of a file."""
    texts: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Names of columns that may hold numbers and text, or amounts with a unit, and are text then; ``*`` stands for all;
    no option of a file."""

    def __post_init__(self) -> None:
        """Checks the options, and spells out the separator."""
        if self.header not in (None, True, False):
            raise DataError(f"header must be true or false, got {self.header!r}")
        for name in ("separator", "decimal", "index_column"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise DataError(f"{name} must be a text that is not empty, got {value!r}")
        if self.decimal not in (None, ".", ","):
            raise DataError(f"decimal must be '.' or ',', got {self.decimal!r}")
        if self.separator is None:
            return
        separator = SEPARATORS.get(self.separator.lower(), self.separator)
        if len(separator) != 1 or separator.isalnum() or separator in "\"'\r\n+-":
            known = ", ".join(sorted(SEPARATORS))
            raise DataError(f"separator must be one character such as , or ; or one of {known}, got {self.separator!r}")
        if separator == (self.decimal or "."):
            raise DataError(f"separator and decimal mark must differ, both are {separator!r}; change one of them")
        object.__setattr__(self, "separator", separator)

    def takes_text(self, name: str) -> bool:
        """Tells whether a column of numbers may hold text, too."""
        return name in self.texts or "*" in self.texts

    @property
    def describes_text(self) -> bool:
        """Tells whether there is an option that only text files can have."""
        return any(value is not None for value in (self.header, self.separator, self.decimal))

    def to_mapping(self) -> dict[str, Any]:
        """Returns the options that are not left to be guessed, for a TOML file."""
        values = {name: getattr(self, name) for name in _names()}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ReadOptions:
        """Returns the options that `to_mapping` wrote.

        Raises:
            DataError: If a name is unknown or a value is not one of its option's.
        """
        known = _names()
        unknown = [name for name in values if name not in known]
        if unknown:
            raise DataError(f"unknown option {', '.join(unknown)} for reading; known are {', '.join(known)}")
        return cls(**values)


def _names() -> list[str]:
    """Returns the names of the options of a file."""
    return [field.name for field in fields(ReadOptions) if field.name not in ("mentioned", "texts")]
