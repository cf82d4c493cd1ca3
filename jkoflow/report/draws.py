"""Samples and log-densities of a run's model, columns by name in the user's units, whatever the kind of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jkoflow.data.table import Table
from jkoflow.report.column_views import ColumnView, column_views, plain_views
from jkoflow.report.probes import WORK, Array, evaluation_grids, point_work, to_array
from jkoflow.report.results import Results
from jkoflow.table_flow import TableFlow

Columns = Mapping[str, NDArray[Any]]

NOISE_POINTS = 4
"""Points of noise by which a mass is integrated here: what is compared is off by the same."""

LEAST, MOST = 1600, 24_000
"""Bounds of the number of samples that a section draws."""


def affordable(run: Results, sections: float = 2.0) -> int:
    """Returns how many samples a section may draw with their log-densities, for the work of so many panels."""
    passes = 1 if run.table is None else 1 + (NOISE_POINTS if run.table.schema.noisy else 1)
    work = passes * point_work(run.flow, evaluation_grids(run.flow)) if run.has_numbers else 0.0
    return int(np.clip(sections * WORK / max(work, 1), LEAST, MOST))


def held_out(run: Results) -> tuple[Columns, Columns]:
    """Returns the columns (n,) of the run's test rows, and their conditioning variables (n,)."""
    if run.table is not None:
        return {name: run.columns[name] for name in run.names}, {name: run.columns[name] for name in run.given}
    columns = {name: run.data[:, k].numpy() for k, name in enumerate(run.features)}
    given = {} if run.context is None else {name: run.context[:, k].numpy() for k, name in enumerate(run.given)}
    return columns, given


@torch.no_grad()
def draw(run: Results, count: int, given: Columns, seed: int = 0) -> tuple[Columns, Array]:
    """Draws seeded samples and their log-densities.

    Arguments:
        run: The run.
        count: Number of samples.
        given: Conditioning variables (count,) by name; empty for an unconditional model.
        seed: Seed of the noise; the same noise in other conditions shows what these do.

    Returns:
        Columns (count,) by name and log-densities (count,), -inf where there is none.
    """
    generator = torch.Generator().manual_seed(seed)
    if run.table is not None:
        columns = run.table.sample_columns(count, _table(given), generator=generator)
        return columns, log_prob(run, columns, given)
    x, found = run.flow.rsample_and_log_prob(count, _tensor(run, given), generator=generator)
    return dict(zip(run.features, to_array(x).T, strict=True)), _known(found)


@torch.no_grad()
def log_prob(run: Results, columns: Columns, given: Columns) -> Array:
    """Computes the log-densities (n,) of rows, -inf where there is none, with the run's calibrated steps."""
    if isinstance(run.model, TableFlow):
        rows = _table({name: columns[name] for name in run.names})
        return _known(run.model.log_prob(rows, _table(given), points=NOISE_POINTS))
    rows = _tensor(run, {name: columns[name] for name in run.features})
    assert rows is not None
    return _known(run.flow.log_prob(rows, _tensor(run, given)))


def views_of(run: Results, *sources: Columns) -> list[ColumnView]:
    """Returns a view of every column that is not constant, of several sources of rows."""
    if run.table is not None:
        return column_views(run.table, *sources)
    return plain_views(run.features, *(np.stack([rows[name] for name in run.features], 1) for rows in sources))


def _table(columns: Columns) -> Table | None:
    return Table({"all": list(columns.values())}, tuple(columns)) if columns else None


def _tensor(run: Results, columns: Columns) -> torch.Tensor | None:
    if not columns:
        return None
    return torch.from_numpy(np.stack(list(columns.values()), 1)).to(run.flow.standardize.mean)


def _known(values: torch.Tensor) -> Array:
    return np.nan_to_num(to_array(values), nan=-np.inf, neginf=-np.inf, posinf=np.inf)
