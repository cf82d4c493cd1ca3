"""The rows that an export is made with: samples of the flow, or noise, in the form that the artefact takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jkoflow.flow import JKOFlow
from jkoflow.table_flow import Model, TableFlow

COUNT = 1000
"""Number of rows that steps are sought on and that the artefact is compared on."""


class Drawn(NamedTuple):
    """Rows that have been drawn."""

    inputs: tuple[Tensor, ...]
    """What the artefact is given: rows (n, d), and context (n, c) of a conditional flow."""
    points: Tensor
    """The rows, with shape (n, k), as the flow takes them: the coded numbers of a table."""
    conditions: Tensor | None
    """Their context, likewise."""


@torch.no_grad()
def drawn_rows(model: Model, given: Any, noise: bool) -> Drawn:
    """Draws rows, always the same, and leaves out those that are not finite.

    Arguments:
        model: The model.
        given: Conditioning variables (m, c) to take in turns; None makes them standard Gaussian in the units of the
            blocks.
        noise: Whether the artefact is given noise instead of data.
    """
    generator = torch.Generator().manual_seed(0)
    flow = model.flow if isinstance(model, TableFlow) else model
    z = torch.randn(COUNT, flow.context_dim, generator=generator, dtype=torch.float64)
    if isinstance(model, TableFlow):
        context, conditions = _of_table(model, given, z)
    else:
        context = _own_units(model, z.to(model.standardize.mean)) if given is None else _in_turns(given, z.shape[1])
        context = conditions = context.to(model.standardize.mean)
    conditions = conditions.to(flow.standardize.mean) if flow.context_dim else None
    if noise:
        points = torch.randn(COUNT, flow.dim, generator=generator, dtype=flow.standardize.mean.dtype)
    else:
        points = flow.rsample(COUNT, conditions, generator=generator)
    x = points
    if isinstance(model, TableFlow):
        columns = model.schema.decode(np.zeros((COUNT, 0), np.int64), points.double().numpy())
        x = torch.from_numpy(np.stack([np.asarray(values, np.float64) for values in columns.values()], 1))
    finite = x.isfinite().all(1) & context.isfinite().all(1)
    x, context, points = x[finite], context[finite], points[finite]
    if conditions is None:
        return Drawn((x,), points, None)
    return Drawn((x, context), points, conditions[finite])


def _own_units(flow: JKOFlow, z: Tensor) -> Tensor:
    """Returns context (n, c) in the units of its columns."""
    if flow.standardize_context is not None:
        z = flow.standardize_context.inverse(z)[0]
    return z if flow.context_links is None else flow.context_links.inverse(z)[0]


def _of_table(table: TableFlow, given: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """Returns context (n, c) in the units of a table's columns, and as its flow takes it."""
    schema = table.schema
    if not schema.context_features:
        return z, z
    if given is None:
        states = np.zeros(COUNT, np.int64)
        decoded = zip(schema.context_codecs, z.numpy().T, strict=True)
        context = np.stack([codec.decode(states, column) for codec, column in decoded], 1)
    else:
        context = _in_turns(given, len(schema.context_features)).numpy()
    coded = schema.conditions(dict(zip(schema.context_features, context.T, strict=True)))
    return torch.from_numpy(context), torch.from_numpy(coded)


def _in_turns(given: Any, dim: int) -> Tensor:
    rows = torch.as_tensor(np.asarray(given), dtype=torch.float64).reshape(-1, dim)
    return rows[torch.arange(COUNT) % len(rows)]
