"""The evaluation of a trained flow: the same figures by the same code for every method."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fixed_budget.model import Model, nll_of_rows
from fixed_budget.problem import Problem
from jkoflow.metrics import spread_rows
from jkoflow.training.evaluation import TWO_SAMPLE_ROWS, two_sample_distances

TOLERANCE = 1e-3
"""Nats by which the last refinement may move the mean NLL."""

INVERSION_ROWS = 1000
"""Number of test rows that go to the noise and back."""

CHUNK = 1000
"""Number of rows that go through a flow at once."""


def evaluate(model: Model, problem: Problem) -> dict[str, Any]:
    """Measures a flow on the test rows.

    Returns:
        ``test_nll`` (nats, standardised columns) with its standard error, refined until it moved less than `TOLERANCE`
        (``nll_converged``, the ``level``, its text in ``computed_with``), the test NLL at the level of training
        (``test_nll_as_trained``), mean and largest inversion error, and the distances between test rows and samples.
    """
    level = 0
    rows = nll_of_rows(model, problem.test, 0, CHUNK)
    as_trained = float(rows.mean())
    converged, change = model.levels == 1, math.nan
    while not converged and level + 1 < model.levels:
        level += 1
        finer = nll_of_rows(model, problem.test, level, CHUNK)
        change = abs(float(finer.mean() - rows.mean()))
        converged, rows = change < TOLERANCE, finer
    back = inversion_errors(model, spread_rows(problem.test, INVERSION_ROWS), level)
    real = spread_rows(problem.test, TWO_SAMPLE_ROWS)
    return {
        "test_nll": float(rows.mean()),
        "test_nll_stderr": float(rows.std()) / math.sqrt(len(rows)),
        "test_nll_as_trained": as_trained,
        "test_rows": len(rows),
        "nll_converged": converged,
        "nll_last_change": change,
        "level": level,
        "computed_with": model.describe_level(level),
        "inversion_error_mean": float(back.mean()),
        "inversion_error_max": float(back.max()),
        "inversion_rows": len(back),
    } | two_sample_distances(real, samples(model, len(real), problem.dim, level))


@torch.no_grad()
def inversion_errors(model: Model, x: Tensor, level: int) -> Tensor:
    """Returns the distances (N,) between rows x (N, d) and their images under the way to the noise and back.

    They are inf if no point comes back.
    """
    found = []
    for rows in x.split(CHUNK):
        z, _ = model.encode(rows, level)
        found.append((model.decode(z, level) - rows).double().square().sum(1).sqrt())
    return torch.cat(found).nan_to_num(nan=math.inf)


@torch.no_grad()
def samples(model: Model, count: int, dim: int, level: int, seed: int = 0) -> Tensor:
    """Returns samples on standardised columns, with shape (count, dim)."""
    z = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return torch.cat([model.decode(rows, level) for rows in z.split(CHUNK)])
