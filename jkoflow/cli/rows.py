"""Rows to score, in the form that their model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.cli import console
from jkoflow.data import DataError
from jkoflow.data.checks import check_finite
from jkoflow.data.columns.codec import Codec
from jkoflow.data.columns.impossible import impossible_values
from jkoflow.data.memory import numbers_of
from jkoflow.data.seen import outside
from jkoflow.data.splits import to_float32
from jkoflow.data.table import Column, Table
from jkoflow.in_parts import InParts
from jkoflow.left_out import RowNames, warn_of_left_out
from jkoflow.metrics import chunks
from jkoflow.surprise import seen_of, surprise
from jkoflow.table_flow import Model, TableFlow


class Rows:
    """Rows to score, in the form that their model takes.

    Arguments:
        model: The model.
        source: Name of the source, for errors.
        table: The columns of the model, those of the context last.
        dim: Number of the former.
    """

    def __init__(self, model: Model, source: str, table: Table, dim: int) -> None:
        self.model = model
        self.tensors: tuple[Tensor, Tensor | None] | None = None
        try:
            if isinstance(model, TableFlow):
                columns = model.columns_of(table, table.features, source)
                table = Table({"all": list(columns.values())}, tuple(columns))
            else:
                numbers = numbers_of(table)
                check_finite(numbers, table.features)
                single = model.standardize.mean.dtype is not torch.float64
                x = to_float32(numbers) if single else torch.from_numpy(np.array(numbers, dtype=np.float64))
                self.tensors = x[:, :dim], x[:, dim:] if model.context_dim else None
        except DataError as error:
            text = str(error)
            raise DataError(text if text.startswith(source) else f"{source}: {text}") from error
        self.table = table
        self.columns: dict[str, Column] = dict(zip(table.features, table.parts["all"], strict=True))

    @torch.no_grad()
    def log_prob(self, tol: float | None = None) -> Tensor:
        """Returns the log-densities (N,), within a tolerance in nats if there is one."""
        if isinstance(self.model, TableFlow):
            return self.model.log_prob(self.table, tol=tol)
        assert self.tensors is not None
        if tol is not None:  # one search for all rows
            return self.model.log_prob(*self.tensors, tol=tol)
        return torch.cat([self.model.log_prob(*part) for part in chunks(*self.tensors)])

    @torch.no_grad()
    def log_prob_and_error(self, tol: float | None = None) -> tuple[Tensor, Tensor]:
        """Returns the log-densities (N,) and estimates (N,) of their errors in nats."""
        if isinstance(self.model, TableFlow):
            return self.model.log_prob_and_error(self.table, tol=tol)
        assert self.tensors is not None
        return self.model.log_prob_and_error(*self.tensors, tol=tol)

    @torch.no_grad()
    def log_prob_of_part(self, numbers: InParts) -> tuple[Tensor, Tensor]:
        """Returns the log-densities (N,) of rows that are a part of others, and estimates (N,) of their errors."""
        if isinstance(self.model, TableFlow):
            return self.model.log_prob_of_part(self.table, numbers)
        assert self.tensors is not None
        found = [numbers.log_prob(*part) for part in chunks(*self.tensors)]
        if not found:
            return self.log_prob(), torch.zeros(0, dtype=torch.float64)
        values, errors = zip(*found, strict=True)
        return torch.cat(values), torch.cat(errors)

    def in_parts(self, tol: float | None, every_error: bool) -> InParts:
        """Returns how to score others like these: on the same steps, or within a tolerance in nats kept on these."""
        if isinstance(self.model, TableFlow):
            return self.model.in_parts(self.table, tol, every_error)
        assert self.tensors is not None
        numbers = InParts(self.model, None, every_error)
        return numbers if tol is None else numbers.within(*self.tensors, tol)

    def surprise(self, numbers: NDArray[np.int64]) -> Tensor:
        """Returns the surprises (n, d) of some rows."""
        if isinstance(self.model, TableFlow):
            taken = [values[numbers] for values in self.columns.values()]
            return surprise(self.model, Table({"all": taken}, self.table.features))
        assert self.tensors is not None
        x, context = self.tensors
        return surprise(self.model, x[numbers], None if context is None else context[numbers])

    def outside(self) -> dict[str, Tensor] | None:
        """Returns which rows (N,) lie outside of the training's values, by column; None if these are not known."""
        if not (seen := seen_of(self.model)):
            return None
        codecs: dict[str, Codec | None] = {}
        if isinstance(self.model, TableFlow):
            schema = self.model.schema
            names = (*schema.features, *schema.context_features)
            codecs = dict(zip(names, (*schema.codecs, *schema.context_codecs), strict=True))
        found = {}
        for (name, values), known in zip(self.columns.items(), seen.values(), strict=True):
            found[name] = torch.from_numpy(outside(values, known, codecs.get(name)))
        return {name: mask for name, mask in found.items() if bool(mask.any())}

    def tell_of_outside(self, found: dict[str, Tensor]) -> None:
        """Tells how many rows lie outside of the training's values, column by column."""
        for name, mask in found.items():
            console.note(f"column {name!r}: outside of what the training has seen are {RowNames('rows').some(mask)}")

    def tell_of_impossible(self, out: Path, finite: Tensor) -> None:
        """Tells of the rows without a finite density why they have none."""
        if not isinstance(self.model, TableFlow):
            assert self.tensors is not None
            warn_of_left_out(self.model, self.tensors[0], finite, RowNames(f"rows of {out}"))
            return
        rest = ~finite
        for name, found in impossible_values(self.model.schema, self.columns).items():
            wrong = torch.from_numpy(found.rows)
            rest &= ~wrong
            console.note(f"column {name!r}: density zero for {RowNames('rows').some(wrong)}: {found.why}")
        if bool(rest.any()):
            console.note(f"density zero for {RowNames('rows').some(rest)}: too far outside the training data")
