"""What is measured: a peer builds a candidate for a case, and the candidate is checked and timed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.bench.case import Case, Solution, loss
from jkoflow.bench.deadline import LEAST
from jkoflow.bench.shapes import DIRECTIONS, Direction
from jkoflow.bench.stopwatch import wall_clock

Solve = Callable[[Tensor], Solution]
"""From x (B, d) to x at t1 and logdet, differentiable with respect to the parameters of the case's velocity."""

Outcome = Solution | list[Tensor]
"""What a run of a direction computes: the solution, or the gradient by each parameter."""


class Candidate(ABC):
    """Runs on one case, for which a peer has made it ready."""

    note: str | None = None
    """What a reader of its figures has to know."""
    evaluations: int | None = None
    """How often it evaluates velocity and divergence in a solve, if it chooses its steps itself."""

    @abstractmethod
    def forward(self) -> Solution:
        """Solves the batch without gradients."""

    @abstractmethod
    def gradient(self) -> list[Tensor]:
        """Solves the batch and differentiates `jkoflow.bench.case.loss` by each parameter."""

    @abstractmethod
    def seconds(self, direction: Direction, repeats: int) -> float:
        """Times ``repeats`` runs, in seconds."""

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Frees what the candidate holds."""


class TorchCandidate(Candidate):
    """Runs in this process on PyTorch tensors, on the device of the case.

    Arguments:
        case: What to solve.
        solve: How.
    """

    def __init__(self, case: Case, solve: Solve) -> None:
        self.case = case
        self.solve = solve

    def objective(self, x: Tensor) -> Tensor:
        """Computes the loss of a batch x (B, d), a scalar."""
        return loss(self.solve(x))

    def solution(self, x: Tensor) -> Solution:
        """Solves a batch x (B, d) without gradients."""
        with torch.no_grad():
            return self.solve(x)

    def gradient_at(self, x: Tensor) -> list[Tensor]:
        """Solves a batch x (B, d) and differentiates its loss by each parameter."""
        return list(torch.autograd.grad(self.objective(x), self.case.parameters))

    def run(self, direction: Direction, x: Tensor) -> Outcome:
        """Does a direction on a batch x (B, d)."""
        return self.solution(x) if direction == "forward" else self.gradient_at(x)

    def forward(self) -> Solution:
        """Solves the batch without gradients."""
        return self.solution(self.case.x)

    def gradient(self) -> list[Tensor]:
        """Solves the batch and differentiates the loss by each parameter."""
        return self.gradient_at(self.case.x)

    def seconds(self, direction: Direction, repeats: int) -> float:
        """Times ``repeats`` runs by the clock on the wall, in seconds."""
        return wall_clock(self.forward if direction == "forward" else self.gradient, repeats)


class Work(NamedTuple):
    """Says what of a peer's work is counted, and on which unit of the device it is done."""

    fused: bool = False
    """Whether value and gradient come from one pass, which does not compute the stages once more."""
    unit: str = "fp32"
    """The one of `jkoflow.bench.ceilings.UNITS` that its products run on."""
    products: int = 1
    """Products on this unit for each one of the algorithm."""


@dataclass(frozen=True)
class Peer:
    """Describes somebody who is measured.

    Arguments:
        name: What tables call it.
        library: What ``--peers`` calls it, together with others of the same library.
        build: Prepares it for a case.
        requires: Packages that it imports.
        directions: What it does; a peer that trains alone has no forward direction of its own.
        estimate: Whether its divergence is Hutchinson's estimate with the case's probe.
        own_steps: Whether it computes another discretisation of the same ODE or of its gradient, which then agrees
            with ours to the error of the discretisation, not to rounding.
        needs_cpu: Whether it runs on the CPU only.
        optional: Why it is left out unless asked for, or None.
        unavailable: Tells why this machine cannot run it, or None.
        work: What its share of the device's rate is computed from, or None if it has no share.
        tf32: Whether products round their factors to TF32, which allows larger errors.
        graph: Whether it is replayed from a CUDA graph.
        compiling: Seconds that it may compile for its forward direction, and for the other one twice as many. On a GPU
            it is not started with less time left, and given up after `PATIENCE` times as much.
    """

    name: str
    library: str
    build: Callable[[Case], Candidate]
    requires: tuple[str, ...] = ()
    directions: tuple[Direction, ...] = DIRECTIONS
    estimate: bool = False
    own_steps: bool = False
    needs_cpu: bool = False
    optional: str | None = None
    unavailable: Callable[[], str | None] = lambda: None
    work: Work | None = None
    tf32: bool = False
    graph: bool = False
    compiling: float = 0.0

    def missing(self) -> tuple[str, ...]:
        """Lists the packages that it needs and that are not installed."""
        return tuple(package for package in self.requires if find_spec(package) is None)

    def needed(self, direction: Direction) -> float:
        """Tells how many seconds have to be left for a direction to be started."""
        return max(LEAST, self.compiling * (1 if direction == "forward" else 2))


def reference(peers: Iterable[Peer]) -> dict[Direction, str]:
    """Names whom the others are compared with: the first of ours that solves, and the first with the fused loss."""
    ours = [peer for peer in peers if peer.library == "jkoflow"]
    return {
        "forward": next(peer.name for peer in ours if "forward" in peer.directions),
        "forward+backward": next(peer.name for peer in ours if peer.work is not None and peer.work.fused),
    }
