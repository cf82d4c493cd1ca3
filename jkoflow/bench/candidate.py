"""What is measured: a peer builds a candidate for a case, and the candidate is checked and timed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from jkoflow.bench.case import Case, Solution, loss
from jkoflow.bench.shapes import DIRECTIONS, Direction

Solve = Callable[[Tensor], Solution]
"""From x (B, d) to x at t1 and logdet, differentiable with respect to the parameters of the case's velocity."""


class Candidate(ABC):
    """A peer ready to run on one case."""

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
        """Seconds that ``repeats`` runs take, the device's work included."""

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Frees what the candidate holds."""


class TorchCandidate(Candidate):
    """A candidate that runs in this process on PyTorch tensors, on the device of the case.

    Arguments:
        case: What to solve.
        solve: How.
    """

    def __init__(self, case: Case, solve: Solve) -> None:
        self.case = case
        self.solve = solve

    def forward(self) -> Solution:
        """Solves the batch without gradients."""
        with torch.no_grad():
            return self.solve(self.case.x)

    def gradient(self) -> list[Tensor]:
        """Solves the batch and differentiates the loss by each parameter."""
        return list(torch.autograd.grad(loss(self.solve(self.case.x)), self.case.parameters))

    def seconds(self, direction: Direction, repeats: int) -> float:
        """Seconds that ``repeats`` runs take, the device's work included."""
        run = self.forward if direction == "forward" else self.gradient
        return seconds(run, repeats, self.case.x.device)


def seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of ``repeats`` calls; of a GPU's work, not of its launch."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; the CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Peer:
    """Somebody to be measured.

    Arguments:
        name: What tables call it.
        library: What ``--peers`` calls it, together with others of the same library.
        build: Prepares it for a case.
        requires: Packages that it imports.
        directions: What it does; a peer that trains alone has no forward direction of its own.
        estimate: Whether its divergence is Hutchinson's estimate with the case's probe.
        own_steps: Whether it computes another discretisation of the same ODE or of its gradient, which then agrees
            with ours to the error of the discretisation, not to rounding.
        cpu_only: Whether it can run on the CPU alone.
        optional: Why it is left out unless asked for, or None.
        unavailable: Tells why this machine cannot run it, or None.
    """

    name: str
    library: str
    build: Callable[[Case], Candidate]
    requires: tuple[str, ...] = ()
    directions: tuple[Direction, ...] = DIRECTIONS
    estimate: bool = False
    own_steps: bool = False
    cpu_only: bool = False
    optional: str | None = None
    unavailable: Callable[[], str | None] = lambda: None

    def missing(self) -> tuple[str, ...]:
        """Packages that it needs and that are not installed."""
        return tuple(package for package in self.requires if find_spec(package) is None)
