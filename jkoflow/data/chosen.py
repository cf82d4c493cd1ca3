"""The columns of a table that a model needs, found by name or by position."""

from __future__ import annotations

import difflib

from jkoflow.data.checks import DataError, default_features
from jkoflow.data.table import Table


def chosen_columns(table: Table, wanted: tuple[str, ...], source: str) -> Table:
    """Returns some columns of a table under the wanted names: by name if both have names, else by position.

    Raises:
        DataError: If a column is missing.
    """
    have = table.features
    if set(wanted) <= set(have):  # default names too: context columns come last, wherever the file has them
        return table.take([have.index(name) for name in wanted])
    if table.is_named and default_features(len(wanted)) != wanted:
        missing = [name for name in wanted if name not in have]
        near = difflib.get_close_matches(missing[0], have, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{source} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"it has {', '.join(have)}{hint}"
        )
    if len(have) != len(wanted):
        raise DataError(
            f"{source} has {len(have)} column{'s' if len(have) > 1 else ''}, expected {len(wanted)} "
            f"({', '.join(wanted)}); give the columns that the flow was trained on"
        )
    return Table(table.parts, wanted)
