"""What a user says about a table instead of leaving it to be found out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jkoflow.data.checks import DataError
from jkoflow.data.readers.options import ReadOptions

MISSING = ("refuse", "indicator")
"""What can be done with missing values: nothing, or a state of their own."""


@dataclass(frozen=True)
class TableOptions:
    """What a user says about a table.

    Raises:
        DataError: If two options exclude each other, or one has a value that it cannot have.

    Example:
        >>> TableOptions(columns={"age": "integer"}, missing="indicator").to_mapping()
        {'columns': {'age': 'integer'}, 'missing': 'indicator'}
    """

    context_columns: Sequence[str] = ()
    """Names of the columns to condition on."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Kinds of columns by name, see `jkoflow.data.columns.override.KINDS`; the others are found."""
    missing: str = "refuse"
    """One of `MISSING`."""
    group: str | None = None
    """Name of the column whose equal values stay in one part of the split; it is left out unless it has a kind."""
    split_by: str | None = None
    """Name of the column by whose order the parts are split; it is left out unless it has a kind."""
    reading: ReadOptions = field(default_factory=ReadOptions)
    """What is known about the file."""

    def __post_init__(self) -> None:
        """Checks the options."""
        object.__setattr__(self, "context_columns", tuple(self.context_columns))
        object.__setattr__(self, "columns", dict(self.columns))
        if self.missing not in MISSING:
            raise DataError(f"missing must be one of {', '.join(MISSING)}, got {self.missing!r}")
        if self.group is not None and self.split_by is not None:
            raise DataError("group and split_by were both given, and each tells how to split; give one of them")
        texts = tuple(name for name, kind in self.columns.items() if kind in ("category", "drop"))
        object.__setattr__(self, "reading", dataclasses.replace(self.reading, mentioned=self._mentioned(), texts=texts))

    def _mentioned(self) -> tuple[str, ...]:
        labels = (name for name in (self.group, self.split_by) if name is not None)
        return (*self.context_columns, *self.columns, *labels)

    def to_mapping(self) -> dict[str, Any]:
        """Returns the options that were given, under the names of a TOML file."""
        values: dict[str, Any] = {"context_columns": list(self.context_columns), "columns": dict(self.columns)}
        values |= {"missing": "" if self.missing == "refuse" else self.missing}
        values |= {"group": self.group, "split_by": self.split_by}
        return {name: value for name, value in values.items() if value} | self.reading.to_mapping()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TableOptions:
        """Returns the options that `to_mapping` wrote.

        Raises:
            DataError: If a name is unknown or a value is not one of its option's.
        """
        own = {name: value for name, value in values.items() if name in OWN_NAMES}
        reading = {name: value for name, value in values.items() if name not in OWN_NAMES}
        _check_names(own.get("context_columns", []), "context_columns")
        columns = own.get("columns", {})
        if not isinstance(columns, Mapping) or not all(isinstance(kind, str) for kind in columns.values()):
            raise DataError(f"columns must be a table of names and kinds, got {columns!r}")
        for name in ("missing", "group", "split_by"):
            if not isinstance(own.get(name, ""), str):
                raise DataError(f"{name} must be a text, got {own[name]!r}")
        return cls(**own, reading=ReadOptions.from_mapping(reading))


OWN_NAMES = ("context_columns", "columns", "missing", "group", "split_by")
"""Names of the options that are not about reading a file."""

NAMES = (*OWN_NAMES, "header", "separator", "decimal", "index_column")
"""Names of all options in a TOML file."""


def _check_names(names: Any, option: str) -> None:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{option} must be a list of names, got {names!r}")
