"""The peers and their candidates: a peer builds a candidate for a case, and the candidate is checked and timed."""

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
"""Function from x (B, d) to x at t1 and logdet, differentiable with respect to the parameters of the velocity."""

Outcome = Solution | list[Tensor]
"""Result of a run of a direction: the solution, or the gradient by each parameter."""


class Candidate(ABC):
    """A solver that a peer has prepared for one case."""

    note: str | None = None
    """Note for readers of its figures; None if there is none."""
    evaluations: int | None = None
    """Number of evaluations of velocity and divergence in a solve; None if it does not choose its steps itself."""

    @abstractmethod
    def forward(self) -> Solution:
        """Solves the batch without gradients."""

    @abstractmethod
    def gradient(self) -> list[Tensor]:
        """Solves the batch and differentiates `jkoflow.bench.case.loss` by each parameter."""

    @abstractmethod
    def seconds(self, direction: Direction, repeats: int) -> float:
        """Returns the seconds of ``repeats`` runs."""

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Frees the resources of the candidate."""


class TorchCandidate(Candidate):
    """A candidate in this process on PyTorch tensors, on the device of the case.

    Arguments:
        case: The case to solve.
        solve: The solver.
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
        """Runs a direction on a batch x (B, d) and returns its result."""
        return self.solution(x) if direction == "forward" else self.gradient_at(x)

    def forward(self) -> Solution:
        """Solves the batch without gradients."""
        return self.solution(self.case.x)

    def gradient(self) -> list[Tensor]:
        """Solves the batch and differentiates the loss by each parameter."""
        return self.gradient_at(self.case.x)

    def seconds(self, direction: Direction, repeats: int) -> float:
        """Returns the seconds of ``repeats`` runs by the wall clock."""
        return wall_clock(self.forward if direction == "forward" else self.gradient, repeats)


class Work(NamedTuple):
    """The work of a peer that is counted, and the unit of the device that does it."""

    fused: bool = False
    """Whether value and gradient come from one pass, which does not compute the stages a second time."""
    unit: str = "fp32"
    """Unit, one of `jkoflow.bench.ceilings.UNITS`, that the peer's products run on."""
    products: int = 1
    """Number of products on this unit for each product of the algorithm."""


@dataclass(frozen=True)
class Peer:
    """A way to solve cases, by jkoflow or another library, that is measured.

    Arguments:
        name: Name in tables.
        library: Name for ``--peers``, which all peers of the same library share.
        build: Function that prepares a candidate for a case.
        requires: Packages that the peer imports.
        directions: Directions that it can run; a peer for training only has no forward direction of its own.
        estimate: Whether its divergence is Hutchinson's estimate with the case's probe.
        own_steps: Whether it computes another discretisation of the same ODE or of its gradient, which then agrees
            with ours to the error of the discretisation, not to rounding.
        needs_cpu: Whether it runs on the CPU only.
        optional: Reason for which it is left out unless asked for; None if it is not.
        unavailable: Function that says why this machine cannot run it; it returns None if it can.
        work: Work from which its share of the device's rate is computed; None if it has no share.
        tf32: Whether products round their factors to TF32, which allows larger errors.
        graph: Whether it is replayed from a CUDA graph.
        compiling: Seconds that compiling may take for its forward direction; the other direction has twice as many. On
            a GPU it is not started with less time left, and given up after `PATIENCE` times as much.
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
        """Returns the packages that the peer needs and that are not installed."""
        return tuple(package for package in self.requires if find_spec(package) is None)

    def needed(self, direction: Direction) -> float:
        """Returns the seconds that have to be left for a direction to be started."""
        return max(LEAST, self.compiling * (1 if direction == "forward" else 2))


def reference(peers: Iterable[Peer]) -> dict[Direction, str]:
    """Returns the names of our peers that others are compared with, one for each direction.

    It is the first peer of ours that has the forward direction, and the first with the fused loss.
    """
    ours = [peer for peer in peers if peer.library == "jkoflow"]
    return {
        "forward": next(peer.name for peer in ours if "forward" in peer.directions),
        "forward+backward": next(peer.name for peer in ours if peer.work is not None and peer.work.fused),
    }
