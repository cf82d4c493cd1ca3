"""The scoring of one file piece by piece, in memory that does not grow with it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jkoflow.cli.rows import Rows
from jkoflow.cli.tally import Mean, Tally
from jkoflow.cli.unlikely import least_likely
from jkoflow.data import DataError, Scored, scored_of
from jkoflow.data.columns.codec import Array
from jkoflow.data.columns.impossible import impossible_values
from jkoflow.data.piecewise import writing
from jkoflow.data.readers.options import KEEP, ReadOptions
from jkoflow.data.surveyed import Survey, survey
from jkoflow.data.table import Column, Table
from jkoflow.in_parts import InParts
from jkoflow.metrics import mean_log_scale
from jkoflow.table_flow import Model, TableFlow
from jkoflow.tolerance import ToleranceWarning


@dataclass(frozen=True)
class Asked:
    """What is to be written about every row."""

    tol: float | None = None
    """Largest error of a row's log-density in nats."""
    with_error: bool = False
    contributions: bool = False
    all_columns: bool = False


class Least(NamedTuple):
    """The least likely rows of a file."""

    table: Table
    log_prob: Tensor
    numbers: Array

    def with_more(self, table: Table, log_prob: Tensor, numbers: Array, count: int) -> Least:
        """Returns the least likely of these rows and of others."""
        both = torch.cat([self.log_prob, log_prob])
        kept = least_likely(both, count)
        pairs = zip(self.table.parts["all"], table.parts["all"], strict=True)
        columns = [np.concatenate(pair)[kept] for pair in pairs]
        return Least(Table({"all": columns}, table.features), both[kept], np.concatenate([self.numbers, numbers])[kept])


class Scorer:
    """Scores files with one model.

    Arguments:
        model: The model.
        names: Names of its columns, and of those of its context.
        asked: What is to be written.
    """

    def __init__(self, model: Model, names: tuple[tuple[str, ...], tuple[str, ...]], asked: Asked) -> None:
        self.model, self.asked = model, asked
        self.features, self.wanted = names[0], (*names[0], *names[1])

    def results(self, rows: Rows, log_prob: Tensor, error: Tensor | None, far: Mapping[str, Tensor] | None) -> Any:
        """Returns the columns that are written about rows, by name."""
        results: dict[str, Column] = {"log_prob": log_prob.numpy()}
        if error is not None:
            results["error"] = error.numpy()
        if far is not None:
            results["outside"] = joined_names(far, len(log_prob))
        if self.asked.contributions:
            found = rows.surprise(np.arange(len(log_prob))).numpy()
            results |= {f"surprise_{name}": found[:, place] for place, name in enumerate(self.features)}
        return results

    def score(
        self,
        source: Path,
        out: Path,
        reading: ReadOptions,
        *,
        constants: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        least: int = 0,
        advance: Callable[[int, int], None] = lambda done, rows: None,
    ) -> tuple[Tally, tuple[Rows, Scored, Least] | None]:
        """Scores a file in pieces.

        Arguments:
            source: The file.
            out: The file to write.
            reading: What is known of the file.
            constants: Values of columns that the file does not have, the same in all rows, by name.
            metadata: Texts that a Parquet file keeps.
            least: How many of the least likely rows to return.
            advance: Function of the number of rows that are done, and of all rows.

        Returns:
            What there is to tell, and the least likely rows.

        Raises:
            DataError: If the file cannot be read, or does not fit the model.
        """
        found = survey(source, dataclasses.replace(reading, index_column=KEEP))
        left_out = _row_numbers(found, self.wanted, reading)
        tally, worst = Tally(notes=[*found.notes, *left_out.notes]), None

        def scored_rows(piece: Table) -> tuple[Scored, Rows]:
            if constants:
                count = piece.rows("all")
                own = [
                    np.full(count, value, object if isinstance(value, str) else None) for value in constants.values()
                ]
                piece = Table({"all": [*piece.parts["all"], *own]}, (*piece.features, *constants))
            scored = scored_of(piece, left_out.of(piece), self.wanted, source)
            return scored, Rows(self.model, str(source), scored.chosen, len(self.features))

        def located(piece: Table, before: int) -> tuple[Scored, Rows]:
            try:
                return scored_rows(piece)
            except DataError as error:
                where = f" (the counting begins at row {before} of the file)" if before else ""
                raise DataError(f"{error}{where}") from error

        try:
            sample = scored_rows(found.sample)[1]
        except DataError:
            before = 0
            for piece in found.pieces():  # where they stand in the file
                located(piece, before)
                before += piece.rows("all")
            raise
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ToleranceWarning)  # what is beyond is counted
            numbers = sample.in_parts(self.asked.tol, self.asked.with_error)
        with writing(out, found.rows, metadata, flat=True) as write:
            for piece in found.pieces():
                scored, rows = located(piece, tally.rows)
                log_prob, errors = rows.log_prob_of_part(numbers)
                far = rows.outside()
                results = self.results(rows, log_prob, errors if self.asked.with_error else None, far)
                write(self.columns(out, scored, results, tally.notes, tuple(constants or ())))
                if least:
                    start = np.arange(tally.rows, tally.rows + len(log_prob))
                    own = least_likely(log_prob, least)
                    part = Table({"all": [values[own] for values in piece.parts["all"]]}, piece.features)
                    if worst is None:
                        worst = Least(part, log_prob[own], start[own])
                    else:
                        worst = worst.with_more(part, log_prob[own], start[own], least)
                self._count(tally, rows, log_prob, errors, far or {}, numbers)
                advance(tally.rows, found.rows)
        return tally, None if worst is None else (scored_rows(worst.table)[1], scored_rows(worst.table)[0], worst)

    def columns(
        self, out: Path, scored: Scored, results: Mapping[str, Column], notes: list[str], hidden: tuple[str, ...] = ()
    ) -> dict[str, Column]:
        """Returns what is written: columns of the input by name, and the results beside them under free names."""
        if out.suffix.lower() == ".npy":
            return {"log_prob": results["log_prob"]}
        kept = scored.table.features if self.asked.all_columns else scored.unused
        all_of = dict(zip(scored.table.features, scored.table.parts["all"], strict=True))
        columns = {name: all_of[name] for name in kept if name not in hidden}
        for name, values in results.items():
            free = name
            while free in columns:
                free += "_"
            if free != name:
                notes.append(f"{out} has a column {name!r} of the input, so the new one is called {free!r}")
            columns[free] = values
        return columns

    def _count(
        self,
        tally: Tally,
        rows: Rows,
        log_prob: Tensor,
        errors: Tensor,
        far: dict[str, Tensor],
        numbers: InParts,
    ) -> None:
        finite = torch.isfinite(log_prob)
        tally.add_outside(far)
        if self.asked.with_error:
            known = errors[finite]
            tally.error.merge(Mean.of(known))
            tally.largest_error = max(tally.largest_error, float(known.max()) if len(known) else 0.0)
            tally.beyond.add(errors > numbers.tol, tally.rows)
        rest = ~finite
        if isinstance(self.model, TableFlow):
            for name, wrong in impossible_values(self.model.schema, rows.columns).items():
                mask = torch.from_numpy(wrong.rows)
                rest &= ~mask
                tally.add_without_density(f"column {name!r}", wrong.why, mask)
        elif rows.tensors is not None:
            inside = rows.tensors[0][finite]
            tally.scale.merge(Mean(len(inside), mean_log_scale(self.model, inside)))
        if bool(rest.any()):
            tally.add_without_density("all columns together", "too far outside the training data", rest)
        tally.log_prob.merge(Mean.of(log_prob[finite]))
        tally.rows += len(log_prob)


class _LeftOut(NamedTuple):
    """The column that numbers the rows, which is left out of a file whose columns go by their order."""

    names: tuple[str, ...] = ()
    unnamed: bool = False
    notes: tuple[str, ...] = ()

    def of(self, table: Table) -> Table:
        """Returns a table without it."""
        if not self.names:
            return table
        kept = table.take([place for place, name in enumerate(table.features) if name not in self.names])
        return Table(kept.parts, table.features[: len(kept.features)]) if self.unnamed else kept


def _row_numbers(found: Survey, wanted: tuple[str, ...], reading: ReadOptions) -> _LeftOut:
    """Finds the column that numbers the rows: the one that is told, or one too many at the beginning."""
    features = found.sample.features
    by_name = found.sample.is_named and set(wanted) <= set(features)
    if reading.index_column in features:
        return _LeftOut((str(reading.index_column),), not found.sample.is_named)
    first = found.sample.parts["all"][0] if features else np.zeros(0)
    if by_name or reading.index_column == KEEP or len(features) != len(wanted) + 1 or first.dtype.kind not in "iuf":
        return _LeftOut()
    ascending = len(first) > 1 and bool((first == np.rint(first)).all() and (np.diff(first) > 0).all())
    if not ascending:
        return _LeftOut()
    note = f"left out row numbers: {features[0]!r}; --index-column none keeps them"
    return _LeftOut((features[0],), not found.sample.is_named, (note,))


def joined_names(found: Mapping[str, Tensor], count: int) -> Column:
    """Returns, for each of some rows, the names under which it is marked (count,)."""
    names = np.full(count, "", dtype=object)
    for name, mask in found.items():
        rows = mask.numpy()
        names[rows] = [f"{before};{name}" if before else name for before in names[rows]]
    return names
