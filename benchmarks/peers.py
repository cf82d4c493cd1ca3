"""jkoflow against torchdiffeq and hand-written PyTorch on the CPU: one block, forward and forward + backward.

    python benchmarks/peers.py [--threads 2] [--rounds 7] [--compile] [--out figures.json]

All integrate the same velocity on the same rows with the same rk4 steps, in one process and in paired rounds, and each
peer's result is compared with ours before anything is timed. The loss is mean(|y|^2/2 - logdet). Peers run as a user
would write them at their best: torchdiffeq on a fixed grid, the hand-written closed form unrolled over the stages.
Temporaries of PyTorch's eager mode are large: set MALLOC_TOP_PAD_=1000000000 MALLOC_TRIM_THRESHOLD_=2000000000
MALLOC_MMAP_THRESHOLD_=4000000000 for the peers' best times; the environment in the JSON tells what was set.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchdiffeq
from paired import ratio, rounds, write
from torch import Tensor

import jkoflow
from jkoflow.ops import jko_loss, jko_terms
from jkoflow.ops.tableau import TABLEAUX

Solve = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From x (B, d) to x at t1 and logdet."""


class Shape(NamedTuple):
    """One case: features, width of both hidden layers, batch and Runge-Kutta steps."""

    dim: int
    width: int
    batch: int
    steps: int


SHAPES = [Shape(2, 128, 2000, 3), Shape(6, 128, 10000, 3), Shape(43, 128, 2000, 3), Shape(63, 256, 1000, 3)]


class AutogradDivergence(torch.nn.Module):
    """The right-hand side that torchdiffeq's users write: the divergence by autograd, exact or with one probe."""

    def __init__(self, velocity: jkoflow.MLPVelocity, probe: Tensor | None) -> None:
        super().__init__()
        self.velocity = velocity
        self.probe = probe

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Velocity and divergence."""
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            x = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
            v = self.velocity(x, t)
            if self.probe is not None:
                (row,) = torch.autograd.grad(v, x, self.probe, create_graph=training)
                divergence = (row * self.probe).sum(1)
            else:
                divergence = torch.zeros_like(state[1])
                for i in range(x.shape[1]):
                    (row,) = torch.autograd.grad(v[:, i].sum(), x, create_graph=training, retain_graph=True)
                    divergence = divergence + row[:, i]
        return (v, divergence) if training else (v.detach(), divergence.detach())


def with_torchdiffeq(velocity: jkoflow.MLPVelocity, probe: Tensor | None, steps: int, adjoint: bool) -> Solve:
    """The fixed grid of torchdiffeq, by backpropagation through its steps or with its continuous adjoint."""
    rhs = AutogradDivergence(velocity, probe)
    grid = torch.linspace(0, 1, steps + 1)
    solver = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint

    def solve(x: Tensor) -> tuple[Tensor, Tensor]:
        path, logdet = solver(rhs, (x, x.new_zeros(x.shape[0])), grid, method="rk4")
        return path[-1], logdet[-1]

    return solve


def by_hand(velocity: jkoflow.MLPVelocity, steps: int) -> Solve:
    """What an expert writes in PyTorch: the closed-form divergence of two tanh layers, unrolled over the stages."""
    (w1, w2, w3), (b1, b2, b3) = ([getattr(layer, part) for layer in velocity.layers] for part in ("weight", "bias"))
    tableau = TABLEAUX["rk4"]

    def solve(x: Tensor) -> tuple[Tensor, Tensor]:
        dim = x.shape[1]
        first_t, time = w1[:, :dim].T, w1[:, dim]
        coupling_t = (w2 * (w1[:, :dim] @ w3).T).T
        logdet = x.new_zeros(x.shape[0])
        for step in range(steps):
            slopes: list[Tensor] = []
            for row, b, c in zip(tableau.a, tableau.b, tableau.c, strict=True):
                at = x
                for a, slope in zip(row, slopes, strict=True):
                    at = at + (a / steps) * slope
                h1 = torch.tanh(torch.addmm(b1 + time * ((step + c) / steps), at, first_t))
                h2 = torch.tanh(torch.addmm(b2, h1, w2.T))
                slopes.append(torch.addmm(b3, h2, w3.T))
                logdet = logdet + (b / steps) * (((1 - h1 * h1) @ coupling_t) * (1 - h2 * h2)).sum(1)
            for b, slope in zip(tableau.b, slopes, strict=True):
                x = x + (b / steps) * slope
        return x, logdet

    return solve


def peers(velocity: jkoflow.MLPVelocity, shape: Shape, compiled: bool) -> dict[str, Solve]:
    """Everyone, ours first."""
    probe = torch.randn(shape.batch, shape.dim).sign()

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        result = jkoflow.integrate(velocity, x, num_steps=shape.steps, keep_path=False)
        return result.x, result.logdet

    solvers: dict[str, Solve] = {
        "jkoflow": ours,
        "torchdiffeq, exact": with_torchdiffeq(velocity, None, shape.steps, adjoint=False),
        "torchdiffeq, exact, adjoint": with_torchdiffeq(velocity, None, shape.steps, adjoint=True),
        "torchdiffeq, Hutchinson": with_torchdiffeq(velocity, probe, shape.steps, adjoint=False),
        "closed form by hand, eager": by_hand(velocity, shape.steps),
    }
    if compiled:
        solvers["closed form by hand, torch.compile"] = torch.compile(by_hand(velocity, shape.steps), fullgraph=True)
    return solvers


def check(solvers: dict[str, Solve], x: Tensor) -> None:
    """Makes sure that all compute the same; Hutchinson only carries x to the same place."""
    with torch.no_grad():
        y, logdet = solvers["jkoflow"](x)
        for name, solve in solvers.items():
            other_y, other_logdet = solve(x)
            torch.testing.assert_close(other_y, y, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
            if "Hutchinson" not in name:
                torch.testing.assert_close(other_logdet, logdet, rtol=1e-3, atol=1e-4)


def main() -> None:
    """Measures every shape and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="time of each candidate in a round")
    parser.add_argument("--compile", action="store_true", help="with torch.compile too; takes minutes")
    parser.add_argument("--out", help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for shape in SHAPES:
        torch.manual_seed(0)
        velocity = jkoflow.MLPVelocity(shape.dim, (shape.width, shape.width))
        x = torch.randn(shape.batch, shape.dim)
        parameters = list(velocity.parameters())
        solvers = peers(velocity, shape, arguments.compile)
        check(solvers, x)

        def forward(solve: Solve, x: Tensor = x) -> None:
            with torch.no_grad():
                solve(x)

        def both(solve: Solve, x: Tensor = x, parameters: list[Tensor] = parameters) -> None:  # type: ignore[assignment]
            torch.autograd.grad(jko_terms(x, *solve(x), float("inf")).total, parameters)

        def fused(x: Tensor = x, steps: int = shape.steps, velocity: jkoflow.MLPVelocity = velocity) -> None:
            total = jko_loss(velocity, x, float("inf"), num_steps=steps).total
            torch.autograd.grad(total, list(velocity.parameters()))

        candidates = {("forward", name): lambda s=solve: forward(s) for name, solve in solvers.items()}
        times = rounds(
            {k[1]: v for k, v in candidates.items() if "adjoint" not in k[1]}, arguments.rounds, arguments.seconds
        )
        training = {"jkoflow, fused loss": fused} | {n: lambda s=s: both(s) for n, s in solvers.items()}
        training_times = rounds(training, arguments.rounds, arguments.seconds)
        print(f"\nd = {shape.dim}, H = {shape.width}, B = {shape.batch}, {shape.steps} steps of rk4")
        print(f"{'':>36} | forward ms (x ours) | forward + backward ms (x ours)")
        for name in training:
            cells = []
            for measured, reference in ((times, "jkoflow"), (training_times, "jkoflow, fused loss")):
                if name in measured:
                    ms, factor = 1e3 * statistics.median(measured[name]), ratio(measured[name], measured[reference])
                    cells.append(f"{ms:9.2f} ({factor:6.2f})")
                    direction = "forward" if measured is times else "forward+backward"
                    results.append(
                        {"shape": shape._asdict(), "peer": name, "direction": direction, "ms": ms, "of_ours": factor}
                    )
                else:
                    cells.append(" " * 18)
            print(f"{name:>36} | {cells[0]}  | {cells[1]}", flush=True)
    write(results, arguments.out)


if __name__ == "__main__":
    main()
