"""The accepted steps of an integration again, in operations of PyTorch, which can be differentiated ever again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.field_of_network import field_of_network
from jkoflow.ops.library import unpack
from jkoflow.ops.reference import mlp_rhs
from jkoflow.ops.reference_adaptive import dense_weight, slopes_at, step_from


def integrate_adaptive(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns x at t1, logdet, and both at the output times, by steps that are known and constant.

    Its arguments are those of the operator of this name, with ``last_step`` and ``records`` in place of ``record``, see
    `jkoflow.ops.native_rows.Trajectory`.
    """
    x, context, network, noise, settings, (output_times, last_step, records) = unpack(arguments)
    method = EMBEDDED[settings.method]
    rhs = mlp_rhs(field_of_network(x, context, network, settings), context, settings.divergence, noise)
    times, previous = records[:, :2].contiguous().view(torch.float64), records[:, 2]
    outputs = records[:, 3:4].contiguous().view(torch.int32)
    logdet = x.new_zeros(len(x))
    ends = [(x, logdet)] * len(output_times)
    start = None
    for step in _chain(last_step, previous):
        taken, at = step >= 0, step.clamp(min=0)
        t = torch.where(taken, times[at, 0], settings.t0)
        dt = torch.where(taken, times[at, 1], 0.0)
        start = slopes_at(rhs, x, t) if start is None else start
        slopes, moved, gain = step_from(rhs, x, t, dt, start, method)
        for i, time in enumerate(output_times.tolist()):
            inside = taken & (outputs[at, 0] <= i) & (i < outputs[at, 1])
            theta = torch.where(inside, (time - t) / torch.where(inside, dt, 1.0), 0.0)
            change = slopes.combine([(dt * dense_weight(row, theta)).to(x.dtype) for row in method.dense])
            ends[i] = (
                torch.where(inside.unsqueeze(1), x + change[0], ends[i][0]),
                torch.where(inside, logdet + change[1], ends[i][1]),
            )
        x = torch.where(taken.unsqueeze(1), moved, x)
        logdet = torch.where(taken, logdet + gain, logdet)
        start = (
            torch.where(taken.unsqueeze(1), slopes.velocity[-1], start[0]),
            torch.where(taken, slopes.divergence[-1], start[1]),
        )
    x_outputs = torch.stack([end[0] for end in ends]) if ends else x.new_empty((0, *x.shape))
    logdet_outputs = torch.stack([end[1] for end in ends]) if ends else x.new_empty((0, len(x)))
    return x, logdet, x_outputs, logdet_outputs


def _chain(last_step: Tensor, previous: Tensor) -> list[Tensor]:
    """Returns the places (B,) of all rows' first steps, second ones and so on, in the order of time.

    Rows of fewer steps than others begin later; their places are -1 until then.
    """
    depths: list[int] = []
    for before in previous.tolist():
        depths.append(1 if before < 0 else depths[before] + 1)
    places = []
    for _ in range(max(depths, default=0)):
        places.append(last_step)
        last_step = torch.where(last_step >= 0, previous[last_step.clamp(min=0)], -1)
    return places[::-1]
