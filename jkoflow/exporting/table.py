"""The log-density of a table whose columns are numbers, as a module of PyTorch's own operations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jkoflow.data.columns.codec import Codec
from jkoflow.data.columns.numbers import Constant, Real
from jkoflow.data.columns.schema import Schema
from jkoflow.exporting.errors import ExportError
from jkoflow.exporting.functions import LogProb
from jkoflow.ops.grid import Fixed
from jkoflow.table_flow import TableFlow


class TableLogProb(nn.Module):
    """Rows of a table to their log-density, in float64 but for the flow of the numbers.

    Arguments:
        table: The table's flow; `check_columns` says which can be exported.
        grids: The grid of every block of its flow.
    """

    inputs, outputs = "x", ("log_prob",)

    def __init__(self, table: TableFlow, grids: Sequence[Fixed]) -> None:
        super().__init__()
        check_columns(table.schema)
        self.schema = table.schema
        self.dtype = table.flow.standardize.mean.dtype
        self.log_prob = LogProb(table.flow, grids)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Returns log-densities (B,), float64, of rows x (B, d) given context (B, c), both in float64."""
        schema = self.schema
        columns = dict(zip(schema.features, x.unbind(1), strict=True))
        weights, possible = x.new_zeros(x.shape[0]), torch.ones_like(x[:, 0], dtype=torch.bool)
        numbers = []
        for name, codec in zip(schema.features, schema.codecs, strict=True):
            if isinstance(codec, Real):
                number, weight, inside = _encoded(codec, columns[name])
                numbers.append(number)
                weights, possible = weights + weight, possible & inside
            elif isinstance(codec, Constant):
                possible = possible & (columns[name] == float(codec.value))
            else:
                function = schema.dependences[name]
                parts = [a * columns[of] for a, of in zip(function.coefficients, function.sources, strict=True)]
                value = sum(parts[1:], parts[0]) + function.intercept
                possible = possible & ((columns[name] - value).abs() <= function.tolerance)
        conditions = None
        if context is not None:
            pairs = zip(schema.context_codecs, context.unbind(1), strict=True)
            conditions = torch.stack([_encoded(codec, value)[0] for codec, value in pairs], 1).to(self.dtype)
        (density,) = self.log_prob(torch.stack(numbers, 1).to(self.dtype), conditions)
        found = torch.where(possible, density.double() + weights, -math.inf)
        return (torch.where(x.isnan().any(1), math.nan, found),)


def check_columns(schema: Schema) -> None:
    """Refuses a table that is not of numbers with a density, or with masses of the values of a fine lattice.

    Raises:
        ExportError: If there are other columns; the message names the first and says why.
    """
    named = [*zip(schema.features, schema.codecs, strict=True)]
    named += zip(schema.context_features, schema.context_codecs, strict=True)
    for name, codec in named:
        reason = _reason(codec)
        if reason:
            raise ExportError(
                f"column {name!r} cannot be exported: {reason}; export a flow of the real columns alone, or score "
                "with jkoflow score"
            )
    if not schema.numeric:
        raise ExportError("the table has no column of real numbers, so there is no flow to export")


def _reason(codec: Codec | None) -> str:
    """Says why a column cannot be exported; empty if it can."""
    if codec is None or isinstance(codec, Real):
        return ""
    if isinstance(codec, Constant):
        is_number = isinstance(codec.value, int | float) and not isinstance(codec.value, bool)
        return "" if is_number else f"its one value {codec.value!r} is not a number"
    if codec.states > 1:
        return f"it is of kind {codec.kind}, whose states have masses that only the package computes"
    return f"it is of kind {codec.kind}, which only the package translates into numbers"


def _encoded(codec: Codec, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns numbers, log-weights and which values (B,) are possible, as `Real.encode` does without noise."""
    assert isinstance(codec, Real)  # see `check_columns`
    numbers, weights, possible = codec.through(values)
    if codec.step:
        exact = (values - codec.first) / codec.step
        slack = 1e-3 + 4 * torch.finfo(torch.float32).eps * values.abs() / codec.step
        possible = possible & ((exact - exact.round()).abs() <= slack.clamp(max=0.25))
    return torch.where(possible, numbers, 0.0), torch.where(possible, weights, 0.0), possible
