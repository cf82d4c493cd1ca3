"""The log-densities of rows as a function of the grids that a flow takes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from jkoflow.composition import Composition, base_log_prob
from jkoflow.ops import native
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.tolerance import Exact, Grids, exact_values

PILOT = (256, 1024)
"""Fewest and most rows that a grid is sought on; of so many rows or fewer, all are looked at."""

ROWS_PER_PILOT_ROW = 256
"""Number of rows for each row of the pilot, between its smallest and largest size."""

PIECE = 10_000
"""Number of rows that go through the flow at once."""

REFERENCE = "rk4"
"""Method by which blocks of a lower order are compared with what is exact."""


class LogDensities:
    """The log-densities of some rows as a function of the grids, in the flow's dtype and in float64.

    Arguments:
        flow: The flow.
        points: The rows in their own units and the flow's dtype, with shape (N, d).
        context: Their conditioning variables, likewise, with shape (N, c).
    """

    def __init__(self, flow: Composition, points: Tensor, context: Tensor | None) -> None:
        self.flow, self.points, self.context = flow, points, context
        self.order = min((TABLEAUX[block.method].order for block in flow.stack), default=TABLEAUX[REFERENCE].order)
        self._double: Composition | None = None

    @property
    def is_double(self) -> bool:
        """Returns whether the flow computes in float64 itself."""
        return self.points.dtype == torch.float64

    def values(self, rows: Tensor, grids: Grids) -> Tensor:
        """Returns the log-densities (n,) of some rows in the flow's dtype; gradients flow through."""
        return self._of(self.flow, self.points, self.context, rows, grids)

    def all_values(self, grids: Grids) -> Tensor:
        """Returns the log-densities (N,) of all rows in the flow's dtype; gradients flow through."""
        return self.values(torch.arange(len(self.points), device=self.points.device), grids)

    @torch.no_grad()
    def in_float64(self, rows: Tensor, grids: Grids) -> Tensor:
        """Returns the log-densities (n,) of some rows computed in float64."""
        context = None if self.context is None else self.context.double()
        return self._of(self._float64_flow(), self.points.double(), context, rows, grids)

    @torch.no_grad()
    def exact(self, rows: Tensor, start: Grids, tol: float) -> Exact:
        """Returns log-densities in float64 that stand still within a tolerance, with what they err by on ``start``."""
        flow = copy.copy(self._float64_flow())
        best = TABLEAUX[REFERENCE].order
        blocks = []
        for block in flow.stack:
            if TABLEAUX[block.method].order < best:
                block = copy.copy(block)
                block.method = REFERENCE
            blocks.append(block)
        flow._modules = {**flow._modules, "blocks": nn.ModuleList(blocks)}
        points, context = self.points.double(), None if self.context is None else self.context.double()
        return exact_values(
            lambda some, grids: self._of(flow, points, context, some, grids), rows, start, tol, max(self.order, best)
        )

    @property
    def can_adapt(self) -> bool:
        """Returns whether the kernels of the rows' device take adaptive steps for all blocks."""
        fields = [block.velocity.field() for block in self.flow.stack]
        backend = "cuda" if self.points.is_cuda else "cpu"
        return all(
            field is not None and native.unsupported(field, self.points, "exact", None, backend, "auto") is None
            for field in fields
        )

    @torch.no_grad()
    def evaluations(self, rows: Tensor, grids: Grids) -> float:
        """Returns the evaluations of velocities that some rows take on average, in all blocks together."""
        context = None if self.context is None else self.context[rows]
        conditions = self.flow.standardized_context(context, rows.shape, validate=False)
        z, total = self.flow.enter(self.points[rows])[0], 0.0
        for block, grid in zip(self.flow.stack, grids, strict=True):
            result = block.integrate(z, conditions, grid, block.t0, block.t1, "exact")
            z, count = result.x, result.evaluations
            total += float(count.double().mean()) if isinstance(count, Tensor) else count
        return total

    def _float64_flow(self) -> Composition:
        if self._double is None:
            self._double = self.flow if self.is_double else copy.deepcopy(self.flow).double()
        return self._double

    @staticmethod
    def _of(flow: Composition, points: Tensor, context: Tensor | None, rows: Tensor, grids: Grids) -> Tensor:
        parts = []
        for some in rows.split(PIECE):
            z, logdet = flow.forward(points[some], None if context is None else context[some], grids, validate=False)
            parts.append(base_log_prob(z) + logdet)
        return torch.cat(parts)


def pilot_of(count: int, device: torch.device) -> Tensor:
    """Returns the numbers of the rows that a grid is sought on: all of few rows, or a random choice of many."""
    size = min(count, min(max(count // ROWS_PER_PILOT_ROW, PILOT[0]), PILOT[1]))
    if size == count:
        return torch.arange(count, device=device)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:size].to(device)
