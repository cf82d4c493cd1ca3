"""The check, before anything is timed, that all peers compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jkoflow.bench.candidate import Candidate, Outcome, Peer
from jkoflow.bench.case import Case, Solution, loss
from jkoflow.bench.shapes import Direction

SAME_STEPS = {"x": 1e-4, "logdet": 1e-4, "gradient": 1e-4}
"""Largest errors of a peer that takes the same steps: rounding in float32, with room for long sums."""

OWN_STEPS = {"x": 1e-3, "logdet": 1e-2, "gradient": 1e-2}
"""Largest errors of a peer that discretises in its own way: its error and ours together. With fewer than 3 steps of
fourth order, ours is larger.
"""

IN_TF32 = {"x": 5e-2, "logdet": 5e-2, "gradient": 5e-2}
"""Largest errors of a peer whose products round their factors to TF32, that is to 11 significant bits."""


@dataclass(frozen=True)
class Expected:
    """The right result: the solution, and the gradient of its loss by each parameter."""

    solution: Solution
    gradient: list[Tensor]


def expected(case: Case, estimate: bool) -> Expected:
    """Solves a case with jkoflow: exactly, or with Hutchinson's estimate and the case's probe."""
    solution = case.solve(estimate)
    gradient = torch.autograd.grad(loss(solution), case.parameters)
    return Expected(Solution(*(tensor.detach() for tensor in solution)), list(gradient))


def exact(case: Case, estimate: bool) -> Expected:
    """Solves a case in float64, with the same steps."""
    return Expected(*case.exact(estimate))


def errors(peer: Peer, candidate: Candidate, right: Expected) -> dict[str, float]:
    """Computes the `distances` of a candidate from the right result, in all directions of its peer."""
    found = {}
    for direction in peer.directions:
        got = candidate.forward() if direction == "forward" else candidate.gradient()
        found |= distances(direction, got, right)
    return found


def distances(direction: Direction, got: Outcome, right: Expected) -> dict[str, float]:
    """Measures errors relative to the largest x, the largest logdet and the norm of the gradient.

    Returns:
        ``x`` and ``logdet`` of the forward direction, ``gradient`` of the other; NaN if a result holds NaN.
    """
    if direction == "forward":
        return {
            name: _norm([one - other], float("inf")) / _norm([other], float("inf"))
            for name, one, other in zip(("x", "logdet"), got, right.solution, strict=True)
        }
    difference = [one - other for one, other in zip(got, right.gradient, strict=True)]
    return {"gradient": _norm(difference, 2) / _norm(right.gradient, 2)}


def disagreement(peer: Peer, found: dict[str, float], steps: int) -> str | None:
    """Says which error is too large for the given number of steps; returns None if none is."""
    allowed = IN_TF32 if peer.tf32 else SAME_STEPS
    if peer.own_steps:
        allowed = {name: error * max(1.0, 3 / steps) ** 4 for name, error in OWN_STEPS.items()}
    wrong = [
        f"{name} is off by {error:.1e}, allowed {allowed[name]:g}"
        for name, error in found.items()
        if not error <= allowed[name]
    ]
    return "; ".join(wrong) or None


def _norm(tensors: Sequence[Tensor], order: float) -> float:
    return float(torch.linalg.vector_norm(torch.cat([tensor.flatten() for tensor in tensors]).double(), order))
