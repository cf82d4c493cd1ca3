"""Integrations on torchdiffeq's fixed grids: uneven steps, a shorter last one, values between the nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.ops import Integrated

Time = float | Tensor
"""A time: a number, or a tensor of one number that a gradient flows to."""


class Solution(NamedTuple):
    """The values of an integration at the wanted times."""

    path: Tensor
    """Positions, with shape (T, N, d)."""
    logdet_path: Tensor
    """Integral of the divergence up to the times, with shape (T, N)."""
    evaluations: Tensor | int
    """Evaluations of the velocity, see `jkoflow.ops.Integrated`."""


class FixedGrid(NamedTuple):
    """The nodes of a fixed grid, between which an integration takes one step, and the times that are wanted."""

    nodes: list[float]
    moving_nodes: list[Time]
    """The nodes, as tensors where gradients flow to the times."""
    times: list[float]
    moving_times: list[Time]
    """The wanted times, likewise."""
    slack: float
    """Differences between lengths of steps that are but rounding."""
    cubic: bool
    """Whether values between two nodes are those of a cubic, and not of a line."""

    @classmethod
    def over(cls, t: Tensor, step_size: float | Tensor | None, cubic: bool) -> FixedGrid:
        """Returns the grid over wanted times: their own, or of steps of some size, the last of which ends at the last.

        The nodes are computed in the precision of t, as torchdiffeq does, since rounding decides on their number.
        """
        times, moving_times = t.tolist(), moving(t)
        nodes, moving_nodes = times, moving_times
        if step_size is not None:
            sign = -1 if times[-1] < times[0] else 1
            start, end = sign * t[0], sign * t[-1]
            steps = int(torch.ceil((end - start) / step_size + 1)) - 1
            inner = sign * (torch.arange(steps, dtype=t.dtype, device=t.device) * step_size + start)
            nodes, moving_nodes = [*inner.tolist(), times[-1]], [*moving(inner), moving_times[-1]]
        slack = 4 * torch.finfo(t.dtype).eps * float(t.detach().abs().max())
        return cls(nodes, moving_nodes, times, moving_times, slack, cubic)

    def solve(
        self,
        integrate: Callable[[Tensor, Time, Time, int], Integrated],
        evaluate: Callable[[Tensor, Time], tuple[Tensor, Tensor]],
        x: Tensor,
    ) -> Solution:
        """Integrates from node to node, as many equal steps as there are in one call.

        Arguments:
            integrate: Integrates positions from one time to another in a number of equal steps.
            evaluate: Returns velocity and divergence at positions and a time.
            x: Positions at the first time, with shape (N, d).
        """
        intervals = self._intervals()
        inside = [time != self.nodes[k + 1] for k, time in zip(intervals, self.times[1:], strict=True)]
        stops = {k + 1 for k in intervals} | {k for k, between in zip(intervals, inside, strict=True) if between}
        values, evaluations = {0: (x, x.new_zeros(len(x)))}, 0
        for first, last in self._runs(stops):
            x, logdet = values[first]
            if self.nodes[first] != self.nodes[last]:
                part = integrate(x, self.moving_nodes[first], self.moving_nodes[last], last - first)
                x, logdet, evaluations = part.x, logdet + part.logdet, evaluations + int(part.evaluations)
            values[last] = x, logdet
        outputs = [values[0]]
        for k, between, time in zip(intervals, inside, self.moving_times[1:], strict=True):
            outputs.append(self._between(k, time, values, evaluate) if between else values[k + 1])
            evaluations += 2 * int(between and self.cubic)
        path, logdet_path = zip(*outputs, strict=True)
        return Solution(torch.stack(path), torch.stack(logdet_path), evaluations)

    def _intervals(self) -> list[int]:
        """Returns, for every time but the first, the number of the first interval at whose end it has been reached."""
        sign, k, intervals = (-1 if self.times[-1] < self.times[0] else 1), 0, []
        for time in self.times[1:]:
            while sign * self.nodes[k + 1] < sign * time:
                k += 1
            intervals.append(k)
        return intervals

    def _runs(self, stops: set[int]) -> Iterator[tuple[int, int]]:
        """Yields first and last nodes of runs of equal steps, one of which ends at every stop."""
        steps = [end - start for start, end in zip(self.nodes, self.nodes[1:], strict=False)]
        first = 0
        for last in range(1, max(stops) + 1):
            if last in stops or abs(steps[last] - steps[first]) > self.slack:
                yield first, last
                first = last

    def _between(
        self,
        k: int,
        time: Time,
        values: dict[int, tuple[Tensor, Tensor]],
        evaluate: Callable[[Tensor, Time], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Returns the values at a time within an interval, from those at its ends."""
        start, end = self.moving_nodes[k], self.moving_nodes[k + 1]
        (x0, logdet0), (x1, logdet1) = values[k], values[k + 1]
        s = (time - start) / (end - start)
        if not self.cubic:
            return x0 + s * (x1 - x0), logdet0 + s * (logdet1 - logdet0)
        slopes = zip(evaluate(x0, start), evaluate(x1, end), strict=True)
        weights = (1 + 2 * s) * (1 - s) ** 2, s * (1 - s) ** 2 * (end - start)
        others = s**2 * (3 - 2 * s), s**2 * (s - 1) * (end - start)
        x, logdet = (
            weights[0] * y0 + weights[1] * f0 + others[0] * y1 + others[1] * f1
            for y0, y1, (f0, f1) in zip((x0, logdet0), (x1, logdet1), slopes, strict=True)
        )
        return x, logdet


def moving(t: Tensor) -> list[Time]:
    """Returns times as numbers, or as tensors without axes if gradients flow to them."""
    return list(t.unbind()) if t.requires_grad and torch.is_grad_enabled() else t.tolist()
