"""The solver that an expert writes in plain PyTorch: the divergence in closed form, unrolled over the stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jkoflow.bench.candidate import Candidate, Solve, TorchCandidate
from jkoflow.bench.case import Case, Solution, loss
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.velocity import MLPVelocity


def eager(case: Case) -> Candidate:
    """Builds the solver in PyTorch's eager mode."""
    return TorchCandidate(case, unrolled(case.velocity, case.shape.steps))


def compiled(case: Case) -> Candidate:
    """Builds the solver compiled as one graph for this shape."""
    torch.compiler.reset()  # each shape has its own graphs, and their number is limited
    return TorchCandidate(case, torch.compile(unrolled(case.velocity, case.shape.steps), fullgraph=True, dynamic=False))


def max_autotune(case: Case) -> Candidate:
    """Builds the solver and, as another graph, its loss, compiled for this shape with the fastest kernels found."""
    torch.compiler.reset()
    return _MaxAutotune(case)


class _MaxAutotune(TorchCandidate):
    """A candidate that ``torch.compile`` replays from CUDA graphs, which overwrite the results of earlier runs."""

    def __init__(self, case: Case) -> None:
        solve = unrolled(case.velocity, case.shape.steps)
        super().__init__(case, _compiled_for_speed(solve))
        self._objective = _compiled_for_speed(lambda x: loss(solve(x)))

    def objective(self, x: Tensor) -> Tensor:
        """Computes the loss of a batch x (B, d), a scalar."""
        return self._objective(x)


def _compiled_for_speed(run: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    compiled = torch.compile(run, mode="max-autotune", fullgraph=True, dynamic=False)

    def marked(x: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # earlier results are no longer needed
        return compiled(x)

    return marked


def unrolled(velocity: MLPVelocity, steps: int) -> Solve:
    """Returns the solver on equal steps, with every stage in one graph."""
    tableau = TABLEAUX["rk4"]

    def solve(x: Tensor) -> Solution:
        evaluate = right_hand_side(velocity)
        logdet = x.new_zeros(x.shape[0])
        for step in range(steps):
            slopes: list[Tensor] = []
            for row, b, c in zip(tableau.a, tableau.b, tableau.c, strict=True):
                at = x
                for a, slope in zip(row, slopes, strict=True):
                    at = at + (a / steps) * slope
                slope, divergence = evaluate(at, (step + c) / steps)
                slopes.append(slope)
                logdet = logdet + (b / steps) * divergence
            for b, slope in zip(tableau.b, slopes, strict=True):
                x = x + (b / steps) * slope
        return Solution(x, logdet)

    return solve


def right_hand_side(velocity: MLPVelocity) -> Callable[[Tensor, float | Tensor], tuple[Tensor, Tensor]]:
    """Returns the function from x (B, d) and t, a number or (B, 1), to velocity (B, d) and divergence (B,), for tanh.

    The divergence takes one extra product for up to two layers, and tangents of every column for more. What depends on
    the parameters alone is computed at once, so that a solve needs a function of its own.
    """
    parameters = list(velocity.parameters())
    weights, biases = parameters[0::2], parameters[1::2]
    dim = velocity.dim
    first_t, time = weights[0][:, :dim].T, weights[0][:, dim]
    if len(weights) == 2:
        trace_matrix = (first_t * weights[1]).sum(0)
    elif len(weights) == 3:
        trace_matrix = (weights[1] * (first_t.T @ weights[2]).T).T
    else:
        trace_matrix = None

    def evaluate(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(torch.addmm(biases[0] + time * t, x, first_t))
        slopes = [1 - h * h]
        for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
            h = torch.tanh(torch.addmm(bias, h, weight.T))
            slopes.append(1 - h * h)
        v = torch.addmm(biases[-1], h, weights[-1].T)
        if trace_matrix is None:
            tangents = slopes[0] * first_t.unsqueeze(1)  # (d, B, H)
            for weight, slope in zip(weights[1:-1], slopes[1:], strict=True):
                tangents = slope * (tangents @ weight.T)
            return v, (tangents * weights[-1].unsqueeze(1)).sum((0, 2))
        if len(slopes) == 1:
            return v, slopes[0] @ trace_matrix
        return v, ((slopes[0] @ trace_matrix) * slopes[1]).sum(1)

    return evaluate
