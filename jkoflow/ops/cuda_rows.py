"""Adaptive steps by the CUDA kernels, which allocate nothing: room for the records, and what has become of the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jkoflow.ops.extension import C as _C
from jkoflow.ops.failure import IntegrationError

_REASONS = ("max_steps", "underflow", "not_finite")
_FIRST_ROOM = 16
"""Records of each row that there is room for at first."""


class Recorded(NamedTuple):
    """What is kept of the steps, for the adjoint."""

    last_step: Tensor
    """Place of each row's last step among the records, int64 with shape (B,)."""
    records: Tensor
    """Accepted steps as bits in int64, with shape (N, width); some places may be unused."""


def adaptive(
    launch: Callable[[Any], None],
    control: Any,
    x: Tensor,
    divergence: Tensor | None,
    output_times: Tensor,
    width: int | None,
    max_steps: int,
) -> Recorded | None:
    """Launches the forward kernel and waits for it once: only then it is known whether every row has arrived.

    A row that takes more steps than there is room for is carried on all the same, so that a second launch, which takes
    the same steps, has exactly the room that it needs.

    Arguments:
        launch: Launches the kernel with a description of the buffers of this module.
        control: Description of the step control, to which the places of the records are added.
        x: Positions at t0, with shape (B, d).
        divergence: The share of each row's divergence that is constant, with shape (B,), or None.
        output_times: Times in the order in which they are passed, with shape (T,).
        width: Size of a record in numbers of 8 bytes; None if none are wanted.
        max_steps: Largest number of steps of a row, for the error.

    Raises:
        IntegrationError: If a row does not reach its end.
    """
    batch, device = len(x), x.device
    rows = _C.CudaRowBuffers()
    times = output_times.to(device)
    outcome = torch.empty((batch, 4), dtype=torch.float64, device=device)
    rows.divergence = 0 if divergence is None else divergence.data_ptr()
    rows.output_times, rows.outcome = times.data_ptr(), outcome.data_ptr()
    begin = torch.arange(batch + 1, device=device) * _FIRST_ROOM
    last_step = torch.empty(batch, dtype=torch.int64, device=device)
    records = torch.empty(
        (batch * _FIRST_ROOM if width is not None else 0, width or 0), dtype=torch.int64, device=device
    )

    def run() -> None:
        rows.record_begin, rows.records = begin.data_ptr(), records.data_ptr()
        control.last_step = last_step.data_ptr() if width is not None else 0
        if batch > 0:
            launch(rows)

    run()
    most, total = _arrived(outcome, max_steps)
    if width is None:
        return None
    if most > _FIRST_ROOM:
        begin = torch.cat([begin.new_zeros(1), outcome[:, 3].long().cumsum(0)])
        records = torch.empty((total, width), dtype=torch.int64, device=device)
        run()
    return Recorded(last_step, records)


def _arrived(outcome: Tensor, max_steps: int) -> tuple[int, int]:
    """Returns the largest number of a row's steps and the number of all, unless a row has not arrived."""
    if len(outcome) == 0:
        return 0, 0
    reasons, steps = outcome[:, 0], outcome[:, 3]
    places = torch.arange(len(outcome), dtype=torch.float64, device=outcome.device)
    first = torch.where(reasons > 0, places, len(outcome)).min()
    place = first.long().clamp(max=len(outcome) - 1).view(1)
    summary = torch.stack([first, steps.max(), steps.sum()])
    row, most, total, reason, t, dt, _ = torch.cat([summary, outcome.index_select(0, place).view(4)]).tolist()
    if row < len(outcome):
        raise IntegrationError(int(row), _REASONS[int(reason) - 1], t, dt, max_steps)
    return int(most), int(total)


def describe_adjoint(output_times: Tensor, records: Tensor) -> tuple[Any, Tensor]:
    """Returns the adjoint's description of records and times, and the tensor that must outlive it."""
    rows, times = _C.CudaRowBuffers(), output_times.to(records.device)
    rows.output_times, rows.records, rows.record_count = times.data_ptr(), records.data_ptr(), len(records)
    return rows, times
