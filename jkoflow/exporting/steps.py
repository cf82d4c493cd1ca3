"""The steps of an artefact, which are fixed when it is written."""

from __future__ import annotations

from torch import Tensor

from jkoflow.exporting.errors import ExportError
from jkoflow.flow import JKOFlow
from jkoflow.ops.grid import Fixed, Steps
from jkoflow.within import check_tolerance, grids_within, sampling_grids_within


def chosen_grids(
    flow: JKOFlow, num_steps: Steps | None, tol: float | None, rows: Tensor, context: Tensor | None, inverse: bool
) -> tuple[Fixed, ...]:
    """Returns the equal steps of every block.

    Arguments:
        flow: The flow.
        num_steps: Runge-Kutta steps per block, or a grid; None means the calibrated number.
        tol: Largest error of a row's log-density in nats, in place of ``num_steps``.
        rows: Rows (B, d) that the tolerance is kept on; noise if ``inverse``.
        context: Their context (B, c).
        inverse: Whether the steps are for samples.

    Raises:
        ExportError: If steps are adaptive.
        ValueError: If a number of steps or the tolerance is out of its range, or both are given.
    """
    if tol is None:
        grids = flow.grids(num_steps)
    else:
        check_tolerance(tol, num_steps)
        if inverse:
            grids = sampling_grids_within(flow, rows, context, tol, adaptive=False)
        else:
            grids = grids_within(flow, rows, context, tol, adaptive=False).grids
    fixed = tuple(grid for grid in grids if isinstance(grid, Fixed))
    if len(fixed) < len(grids):
        raise ExportError(f"an artefact has equal steps for all rows; pass their number as num_steps, got {grids}")
    return fixed
