"""Measures and draws what accuracy costs: error of log_prob against evaluations and against time, for each solver.

python benchmarks/work_precision.py                 # measures, on a quiet machine, and draws
python benchmarks/work_precision.py --draw          # draws the stored record again
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from jkoflow.bench.adaptive.cases import CASES, UserCase
from jkoflow.bench.adaptive.measure import errors, exact
from jkoflow.bench.adaptive.ours import ours
from jkoflow.bench.adaptive.rivals import RIVALS, Torchdiffeq, Zuko
from jkoflow.bench.adaptive.solver import TorchSolver
from jkoflow.bench.allocator import keep_freed_memory
from jkoflow.bench.case import Solution
from jkoflow.bench.record import packages
from jkoflow.bench.timing import median, rounds
from jkoflow.environment import describe
from jkoflow.ops import integrate

ROOT = Path(__file__).parent.parent
RECORD, PICTURE = ROOT / "benchmarks/results/work_precision.json", ROOT / "docs/work_precision.svg"
CASE = "mlp-6"
POWERS = (-2.0, -2.5, -3.0, -3.5, -4.0, -4.5, -5.0, -5.5, -6.0)
STEPS = (1, 2, 3, 4, 6, 8, 12, 16)
STYLES: Mapping[str, Mapping[str, str]] = {
    "jkoflow dopri5": {"color": "#e0761c", "marker": "o"},
    "jkoflow tsit5": {"color": "#b3430f", "marker": "s"},
    "jkoflow bosh3": {"color": "#f4b98a", "marker": "^"},
    "jkoflow rk4, equal steps": {"color": "#8a5a2b", "marker": "D"},
    "torchdiffeq dopri5": {"color": "#2b7bd4", "marker": "o"},
    "zuko": {"color": "#63a15d", "marker": "v"},
}


class EqualSteps(TorchSolver):
    """jkoflow with a number of equal steps of rk4."""

    def __init__(self, case: UserCase, steps: int) -> None:
        super().__init__(case)
        self.steps = steps

    def solve(self, x: Tensor) -> Solution:
        """Solves a batch x (B, d), with gradients."""
        found = integrate(self.case.velocity, x, num_steps=self.steps, keep_path=False, backend="cpu")
        self.evaluations = float(found.evaluations)
        return Solution(found.x, found.logdet)


def solvers(case: UserCase, powers: tuple[float, ...], steps: tuple[int, ...]) -> dict[str, list[TorchSolver]]:
    """Returns the solvers of every line, the loosest first."""
    tolerances = [10**power for power in powers]
    missing = {rival.library: rival.missing() for rival in RIVALS}
    peers: dict[str, Callable[[UserCase], TorchSolver]] = {"torchdiffeq": Torchdiffeq, "zuko": Zuko}
    lines: dict[str, list[TorchSolver]] = {
        **{
            f"jkoflow {method}": [ours(case, tolerance / case.rtol, method) for tolerance in tolerances]
            for method in ("dopri5", "tsit5", "bosh3")
        },
        "jkoflow rk4, equal steps": [EqualSteps(case, count) for count in steps],
    }
    for library, build in peers.items():
        if missing[library]:
            raise SystemExit(f"{library} is not installed: pip install jkoflow[bench]")
        name = "torchdiffeq dopri5" if library == "torchdiffeq" else library
        lines[name] = [build(replace(case, rtol=tolerance, atol=tolerance)) for tolerance in tolerances]
    return lines


def measure(
    name: str = CASE,
    rows: int | None = None,
    count: int = 5,
    budget: float = 0.1,
    powers: tuple[float, ...] = POWERS,
    steps: tuple[int, ...] = STEPS,
) -> dict[str, Any]:
    """Measures every solver of a case: evaluations a row, error of log_prob, milliseconds of a training iteration."""
    torch.set_num_threads(1)
    allocator = keep_freed_memory()
    case = CASES[name](rows)
    right = exact(case)
    lines = solvers(case, powers, steps)
    flat = {f"{line} {index}": solver for line, found in lines.items() for index, solver in enumerate(found)}
    timers = {key: lambda repeats, s=solver: s.seconds("forward+backward", repeats) for key, solver in flat.items()}
    points: dict[str, dict[str, Any]] = {}
    for key, solver in flat.items():
        solution = solver.forward()
        points[key] = {
            "evaluations": solver.evaluations,
            "errors": errors(case, solution, solver.gradient(), right),
        }
    times = rounds(timers, count, budget)
    return {
        "case": name,
        "title": case.title,
        "environment": describe() | {"allocator": allocator, "packages": packages(RIVALS)},
        "lines": {
            line: [points[f"{line} {i}"] | {"ms": 1e3 * median(times[f"{line} {i}"])} for i in range(len(found))]
            for line, found in lines.items()
        },
    }


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draws the two panels of a record."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, key, label, ticks in (
        (left, "evaluations", "evaluations of velocity and divergence, mean over rows", (5, 10, 20, 50, 100)),
        (right, "ms", "milliseconds of a training iteration, 1 thread", None),
    ):
        for line, points in record["lines"].items():
            values = [point[key] for point in points]
            ax.loglog(values, [point["errors"]["rms"] for point in points], label=line, markersize=4, **STYLES[line])
        if ticks is not None:
            ax.set_xticks(ticks, map(str, ticks))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(label)
        ax.grid(which="both", color="#e5e8eb", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("error of log_prob in nats (root mean square)")
    right.legend(fontsize=8, frameon=False)
    figure.suptitle(record["title"], fontsize=10)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Measures, unless the stored record is to be drawn again, and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="draw the stored record again")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; times are medians")
    arguments = parser.parse_args()
    if not arguments.draw:
        RECORD.write_text(json.dumps(measure(count=arguments.rounds), indent=1) + "\n", encoding="utf-8")
    draw(json.loads(RECORD.read_text(encoding="utf-8")), PICTURE)
    print(f"written: {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
