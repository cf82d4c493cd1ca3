"""What a trained flow costs its user: evaluations of its networks for a row's likelihood, rows scored and sampled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fixed_budget.evaluate import CHUNK, TOLERANCE, samples
from fixed_budget.model import Model, nll_of_rows
from fixed_budget.problem import Problem
from jkoflow.metrics import spread_rows

COST_ROWS = 2000
"""Number of test rows that are scored, and of rows that are sampled."""

REPEATS = 3
"""Number of times that rows are scored and sampled after a first time; the fastest counts."""

SLOW_SECONDS = 2.0
"""Seconds beyond which a tenth of the rows is enough and nothing is repeated: what is done once is little of that."""

REFERENCE_CHANGE = 0.1 * TOLERANCE
"""Nats by which the last refinement in float64 may move the mean that others are compared with."""


def cost_to_use(model: Model, problem: Problem, level: int) -> dict[str, Any]:
    """Measures what a flow costs at the coarsest rung of its ladder from which on the mean NLL is right.

    It is right if it differs by less than `TOLERANCE` from that in float64 on a grid that is refined until it stands
    still; all finer rungs that are tried must be right, too, so that a coarse one that happens to be does not count.

    Arguments:
        model: The trained flow.
        problem: The rows.
        level: The level at which the NLL has stood still.

    Returns:
        ``evaluations_per_row``, ``rows_scored_per_second`` and ``rows_sampled_per_second`` (of processor time, so of
        one thread), and ``used_with``, the text of the rung. All are None if no rung is right.
    """
    rows = spread_rows(problem.test, COST_ROWS)
    rung = cheapest(model, rows, level)
    if rung is None:
        return dict.fromkeys(("evaluations_per_row", "rows_scored_per_second", "rows_sampled_per_second", "used_with"))
    with torch.no_grad():
        evaluations = sum(len(part) * rung.evaluations(part) for part in rows.split(CHUNK)) / len(rows)
    return {
        "evaluations_per_row": evaluations,
        "rows_scored_per_second": _rate(lambda count: nll_of_rows(rung, rows[:count], 0, CHUNK), len(rows)),
        "rows_sampled_per_second": _rate(lambda count: samples(rung, count, problem.dim, 0), len(rows)),
        "used_with": rung.describe_level(0),
    }


def cheapest(model: Model, rows: Tensor, level: int) -> Model | None:
    """Returns the coarsest rung of a flow's ladder from which on the mean NLL of rows (N, d) is right, or None."""
    reference = exact_nll(model, rows, level)
    found = None
    for rung in reversed(model.ladder(level)):
        nll = float(nll_of_rows(rung, rows, 0, CHUNK).mean())
        if not abs(nll - reference) < TOLERANCE:
            break
        found = rung
    return found


def exact_nll(model: Model, rows: Tensor, level: int) -> float:
    """Returns the mean NLL of rows (N, d) in float64, refined from about a level on until it stands still, or NaN."""
    exact, nll = rows.double(), math.nan
    with in_double(model):
        for finer in range(max(0, level - 1), model.levels):
            before, nll = nll, float(nll_of_rows(model, exact, finer, CHUNK).mean())
            if model.levels == 1 or abs(nll - before) < REFERENCE_CHANGE:
                return nll
    return math.nan


@contextmanager
def in_double(model: Model) -> Iterator[None]:
    """Gives a flow's parameters and buffers float64, and in the end their type and values of before."""
    before = next(model.parameters()).dtype
    model.double()
    try:
        yield
    finally:
        model.to(before)  # from float64 back to what fitted into fewer digits is exact


def _rate(call: Callable[[int], object], most: int) -> float:
    """Returns the rows in a second of processor time of a call that takes their number, the best of `REPEATS`."""

    def rate(count: int) -> float:
        began = time.process_time()
        call(count)
        return count / max(time.process_time() - began, 1e-9)

    few = max(1, most // 10)
    first = rate(few)
    return first if few / first > SLOW_SECONDS else max(rate(most) for _ in range(REPEATS))
