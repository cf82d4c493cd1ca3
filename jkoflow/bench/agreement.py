"""Whether everybody computes the same: looked at before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jkoflow.bench.candidate import Candidate, Peer
from jkoflow.bench.case import Case, Solution, loss

SAME_STEPS = {"x": 1e-4, "logdet": 1e-4, "gradient": 1e-4}
"""Largest errors of a peer that takes the same steps: rounding in float32, with room for long sums."""

OWN_STEPS = {"x": 1e-3, "logdet": 1e-2, "gradient": 1e-2}
"""Largest errors of a peer that discretises in its own way, its error and ours; with fewer than 3 steps of fourth order
ours is larger.
"""


@dataclass(frozen=True)
class Expected:
    """What our own solver computes."""

    solution: Solution
    gradient: list[Tensor]


def expected(case: Case, estimate: bool) -> Expected:
    """Solves a case ourselves: exactly, or with Hutchinson's estimate and the case's probe."""
    solution = case.solve(estimate)
    gradient = torch.autograd.grad(loss(solution), case.parameters)
    return Expected(Solution(*(tensor.detach() for tensor in solution)), list(gradient))


def errors(peer: Peer, candidate: Candidate, right: Expected) -> dict[str, float]:
    """Errors of a candidate relative to the largest x, the largest logdet and the norm of the gradient.

    Returns:
        ``x`` and ``logdet`` if the peer has a forward direction, and ``gradient``; not a number where one is wrong.
    """
    found = {}
    if "forward" in peer.directions:
        for name, got, wanted in zip(("x", "logdet"), candidate.forward(), right.solution, strict=True):
            found[name] = _norm([got - wanted], float("inf")) / _norm([wanted], float("inf"))
    if "forward+backward" in peer.directions:
        got = candidate.gradient()
        difference = [a - b for a, b in zip(got, right.gradient, strict=True)]
        found["gradient"] = _norm(difference, 2) / _norm(right.gradient, 2)
    return found


def disagreement(peer: Peer, found: dict[str, float], steps: int) -> str | None:
    """What is too far from ours, with so many steps, or None."""
    allowed = SAME_STEPS
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
