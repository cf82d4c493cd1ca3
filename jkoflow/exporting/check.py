"""The comparison of a loaded artefact with the flow that it was made of."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jkoflow.composition import base_log_prob
from jkoflow.exporting.errors import ExportError
from jkoflow.exporting.formats import Run
from jkoflow.flow import JKOFlow
from jkoflow.ops.grid import Fixed
from jkoflow.table_flow import Model, TableFlow

ALLOWED = 1e-5
"""Largest difference from the flow, in nats and in standard deviations, beside what rounding does to the flow."""

ROUNDINGS = 4
"""Multiple of the rounding of the flow's dtype by which an artefact of the same dtype may differ, too."""


class Agreement(NamedTuple):
    """How an artefact agrees with its flow."""

    rows: int
    """Number of rows that were compared."""
    difference: float
    """Largest difference of a log-density or logdet, in nats."""
    moved: float
    """Largest difference of a position, in standard deviations of its column; 0 without positions."""
    rounding: float
    """Largest error of the flow's own log-densities or logdets by the rounding of its dtype, in nats."""


@torch.no_grad()
def agreement(run: Run, model: Model, what: str, inputs: Sequence[Tensor], grids: Sequence[Fixed]) -> Agreement:
    """Compares a loaded artefact with its flow, on all rows at once and on the first one alone.

    Arguments:
        run: The artefact.
        model: The flow.
        what: Name of the function.
        inputs: Rows (B, d), and context (B, c) of a conditional flow.
        grids: The grid of every block.

    Raises:
        ExportError: If they differ by more than rounding does.
    """
    got, expected = run(*inputs), results(model, what, inputs, grids)
    single = model.flow.standardize.mean.dtype if isinstance(model, TableFlow) else model.standardize.mean.dtype
    exact = expected
    if single == torch.float32:
        doubled = copy.deepcopy(model).double()
        exact = results(doubled, what, inputs if isinstance(model, TableFlow) else [i.double() for i in inputs], grids)
    alone = run(*(tensor[:1] for tensor in inputs))
    nats = rounding = moved = shift = 0.0
    for value, first, wanted, right in zip(got, alone, expected, exact, strict=True):
        if value.shape != wanted.shape or value.dtype != wanted.dtype or first.shape != wanted[:1].shape:
            raise ExportError(
                f"the artefact returns {tuple(value.shape)} of {value.dtype} where the flow returns "
                f"{tuple(wanted.shape)} of {wanted.dtype}; report this as a bug"
            )
        if wanted.dim() == 1:
            nats = max(nats, _largest(value, wanted), _largest(first, wanted[:1]))
            rounding = max(rounding, _largest(wanted, right))
        else:
            unit = right.double().std(0).clamp(min=1e-30) if len(right) > 1 else 1.0
            moved = max(moved, _largest(value, wanted, unit), _largest(first, wanted[:1], unit))
            shift = max(shift, _largest(wanted, right, unit))
    for size, own, text in ((nats, rounding, "nats"), (moved, shift, "standard deviations")):
        if not size <= ALLOWED + ROUNDINGS * own:
            raise ExportError(
                f"the artefact differs from the flow by {size:.1e} {text}, more than {ALLOWED:g} and what rounding "
                "does; use --precision float64, or report this as a bug"
            )
    return Agreement(len(inputs[0]), nats, moved, rounding)


def results(model: Model, what: str, inputs: Sequence[Tensor], grids: Sequence[Fixed]) -> tuple[Tensor, ...]:
    """Returns what a function of the flow gives for rows (B, d), and context (B, c) of a conditional flow."""
    steps: Any = list(grids)
    if what == "log_prob":
        return (model.log_prob(*inputs, num_steps=steps),)
    assert isinstance(model, JKOFlow)
    if what == "forward":
        return model(*inputs, num_steps=steps)
    x, logdet = model.inverse(*inputs, num_steps=steps)
    return (x, logdet) if what == "inverse" else (x, base_log_prob(inputs[0]) - logdet)


def _largest(values: Tensor, others: Tensor, unit: Tensor | float = 1.0) -> float:
    """Returns the largest difference in some unit; inf where one is finite and the other is something else."""
    values, others = values.double(), others.double()
    same = (values == others) | (values.isnan() & others.isnan())
    difference = torch.where(same, 0.0, ((values - others) / unit).abs()).nan_to_num(nan=math.inf)
    return float(difference.max()) if difference.numel() else 0.0
