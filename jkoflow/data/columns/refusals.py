"""What no table may have, unless the user says what to do about it; each in one line that names the fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jkoflow.callers import warn_caller
from jkoflow.data.checks import LARGEST, DataError, DataWarning, column_label
from jkoflow.data.columns.codec import missing
from jkoflow.data.columns.dependence import Found
from jkoflow.data.columns.kinds import ColumnPlan
from jkoflow.data.columns.options import TableOptions
from jkoflow.data.columns.override import Override
from jkoflow.data.columns.schema import Dependence
from jkoflow.data.table import Column, Table


def label_of(table: Table, name: str) -> str:
    """Returns what messages call a column."""
    return column_label(table.features, table.features.index(name))


def check_names(table: Table, options: TableOptions) -> None:
    """Refuses names, in the options, of columns that are not there."""
    wanted = [*options.context_columns, *(name for name in (options.group, options.split_by) if name is not None)]
    unknown = [name for name in wanted if name not in table.features]
    if len(set(options.context_columns)) != len(options.context_columns):
        raise DataError(f"the context columns must be different, got {', '.join(options.context_columns)}")
    if unknown:
        raise DataError(f"unknown column {', '.join(unknown)}; there are {', '.join(table.features)}")


def check_sizes(table: Table) -> None:
    """Refuses infinite and too large numbers."""
    for part, columns in table.parts.items():
        found: list[tuple[int, int]] = []
        total = 0
        for place, values in enumerate(columns):
            if values.dtype.kind != "f":
                continue
            with np.errstate(invalid="ignore"):
                wrong = np.abs(values) > LARGEST
            if wrong.any():
                found.append((int(np.argmax(wrong)), place))
                total += int(wrong.sum())
        if not found:
            continue
        row, place = min(found)
        value = columns[place][row]
        where = f"row {row}{_of(part)} (counting from 0), {column_label(table.features, place)}"
        such = f"({total} such value{'s' if total > 1 else ''})"
        if np.isinf(value):
            raise DataError(f"{value} in {where} {such}; drop or impute these rows")
        raise DataError(f"value {value:g} in {where} is beyond {LARGEST:g} {such}; rescale the column")


def refuse_missing(table: Table, names: Sequence[str]) -> None:
    """Refuses missing values in some of the columns, with their number in each."""
    counts: dict[str, int] = {}
    first: tuple[int, int, str] | None = None
    for part, columns in table.parts.items():
        for name in names:
            absent = missing(columns[table.features.index(name)])
            if absent.any():
                counts[name] = counts.get(name, 0) + int(absent.sum())
                place = (int(np.argmax(absent)), table.features.index(name), part)
                first = place if first is None or (place[2] == first[2] and place < first) else first
    if first is None:
        return
    row, place, part = first
    total = sum(counts.values())
    each = f" ({', '.join(f'{label_of(table, name)}: {count}' for name, count in counts.items())})"
    raise DataError(
        f"NaN in row {row}{_of(part)} (counting from 0), {column_label(table.features, place)} ({total} such "
        f"value{'s' if total > 1 else ''}); drop or impute these rows, or model what is missing"
        f"{each if len(counts) > 1 else ''} with --missing indicator (in Python: missing='indicator')"
    )


def refuse_constants(
    plans: Sequence[ColumnPlan], overrides: Mapping[str, Override], table: Table, values: Mapping[str, Column]
) -> None:
    """Refuses columns of one number, of which no density exists."""
    constant = [
        plan.name
        for plan in plans
        if plan.kind == "constant" and plan.name not in overrides and values[plan.name].dtype.kind in "fiu"
    ]
    if constant:
        labels = ", ".join(label_of(table, name) for name in constant)
        value = float(values[constant[0]][0])
        raise DataError(
            f"{labels} {'is' if len(constant) == 1 else 'are'} constant (value {value:g}), so no density exists; "
            f"remove it from the data, or say {as_told(constant[0], 'drop')}"
        )


def chosen_dependences(
    found: Mapping[str, Found], overrides: Mapping[str, Override], values: Mapping[str, Column]
) -> dict[str, Dependence]:
    """Returns the dependences that samples are to repeat; refuses columns that depend on others without a word."""
    told: dict[str, Dependence] = {}
    for name, hit in found.items():
        override = overrides.get(name)
        if hit.share < 1:
            if override is None:
                warn_caller(
                    f"column {name!r} is a function of others in {hit.share:.2%} of the rows ({name} = {hit.formula}), "
                    f"where no density exists: the likelihood says little; {as_told(name, 'drop')} leaves it out",
                    DataWarning,
                )
            continue
        if override is None:
            raise DataError(
                f"column {name!r} is a function of others ({name} = {hit.formula}), so no density exists; remove it "
                f"from the data, or say {as_told(name, 'drop')}"
            )
        if override.kind == "dependent" and hit.dependence is not None:
            holes = [column for column in (name, *hit.dependence.sources) if missing(values[column]).any()]
            if holes:
                raise DataError(
                    f"column {name!r} cannot be repeated by samples, since values of {', '.join(holes)} are missing; "
                    f"say {as_told(name, 'drop')}"
                )
            told[name] = hit.dependence
    return told


def as_told(name: str, kind: str) -> str:
    """Returns how a user says what kind a column is."""
    return f"--columns {name}={kind} (in Python: columns={{{name!r}: {kind!r}}})"


def _of(part: str) -> str:
    return "" if part == "all" else f" of {part}"
