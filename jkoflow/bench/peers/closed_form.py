"""What an expert writes in plain PyTorch: the divergence in closed form, unrolled over the stages."""

from __future__ import annotations

import torch
from torch import Tensor

from jkoflow.bench.candidate import Candidate, Solve, TorchCandidate
from jkoflow.bench.case import Case, Solution
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.velocity import MLPVelocity


def eager(case: Case) -> Candidate:
    """The solver in PyTorch's eager mode."""
    return TorchCandidate(case, unrolled(case.velocity, case.shape.steps))


def compiled(case: Case) -> Candidate:
    """The solver compiled as one graph for this shape."""
    torch.compiler.reset()  # each shape has its own graphs, and their number is limited
    return TorchCandidate(case, torch.compile(unrolled(case.velocity, case.shape.steps), fullgraph=True, dynamic=False))


def unrolled(velocity: MLPVelocity, steps: int) -> Solve:
    """The solver for tanh layers: one extra product for up to two of them, tangents of every column for more."""
    weights = [layer.weight for layer in velocity.layers]
    biases = [layer.bias for layer in velocity.layers]
    tableau = TABLEAUX["rk4"]
    dim, hidden = velocity.dim, len(weights) - 1

    def solve(x: Tensor) -> Solution:
        first_t, time = weights[0][:, :dim].T, weights[0][:, dim]
        if hidden == 1:
            coupling_t = (first_t * weights[1]).sum(0)
        elif hidden == 2:
            coupling_t = (weights[1] * (weights[0][:, :dim] @ weights[2]).T).T
        else:
            coupling_t = None
        logdet = x.new_zeros(x.shape[0])
        for step in range(steps):
            velocities: list[Tensor] = []
            for row, b, c in zip(tableau.a, tableau.b, tableau.c, strict=True):
                at = x
                for a, v in zip(row, velocities, strict=True):
                    at = at + (a / steps) * v
                h = torch.tanh(torch.addmm(biases[0] + time * ((step + c) / steps), at, first_t))
                slopes = [1 - h * h]
                tangents = slopes[0] * first_t.unsqueeze(1) if coupling_t is None else None  # (d, B, H)
                for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
                    h = torch.tanh(torch.addmm(bias, h, weight.T))
                    slopes.append(1 - h * h)
                    if tangents is not None:
                        tangents = slopes[-1] * (tangents @ weight.T)
                velocities.append(torch.addmm(biases[-1], h, weights[-1].T))
                if tangents is not None:
                    divergence = (tangents * weights[-1].unsqueeze(1)).sum((0, 2))
                elif hidden == 1:
                    divergence = slopes[0] @ coupling_t
                else:
                    divergence = ((slopes[0] @ coupling_t) * slopes[1]).sum(1)
                logdet = logdet + (b / steps) * divergence
            for b, v in zip(tableau.b, velocities, strict=True):
                x = x + (b / steps) * v
        return Solution(x, logdet)

    return solve
