"""Prints what a tolerance in nats costs and keeps for a saved model, against the number of steps known best afterwards.

    python benchmarks/row_tolerance.py MODEL DATA [--tol 0.1 0.01 0.001] [--rows 4000] [--repeats 3]
        [--out figures.json]

DATA is the name of bundled data, or a file, of which the test rows are scored. Errors are those against float64 on
twice the finest grid. The number of steps known best afterwards, the same for all blocks, is found by bisection: with
it no row errs by more in float64, with one less a row does, and nothing was spent on finding it. An evaluation is one
of a block's velocity with its divergence, in float32 or float64. Times are those of one thread, the fastest of the
repeats.
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import jkoflow
from jkoflow.block import Block
from jkoflow.data import Dataset, load_dataset
from jkoflow.flow import JKOFlow
from jkoflow.metrics import chunks, row_nll, spread_rows
from jkoflow.ops.tableau import TABLEAUX
from record import write

FINEST = 96
"""Largest number of steps per block that is tried for the one known best afterwards."""


@contextmanager
def counted() -> Iterator[list[int]]:
    """Lists the evaluations of every integration of a block inside a ``with`` statement."""
    integrate: Any = Block.integrate
    evaluations: list[int] = []

    def counting(block: Block, x: Tensor, context: Any, num_steps: Any, *rest: Any) -> Any:
        cost = block.grid.cost if num_steps is None else getattr(num_steps, "cost", num_steps)
        evaluations.append(len(x) * cost * TABLEAUX[block.method].stages)
        return integrate(block, x, context, num_steps, *rest)

    setattr(Block, "integrate", counting)  # noqa: B010
    try:
        yield evaluations
    finally:
        setattr(Block, "integrate", integrate)  # noqa: B010


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Returns the seconds of the fastest of some calls."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def known_best(worst: Callable[[int], float], tol: float) -> int | None:
    """Returns the steps with which the largest error is within a tolerance, and with one less is not, or None."""
    low, high = 0, FINEST
    if not worst(high) <= tol:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if worst(middle) <= tol else (middle, high)
    return high


def measure(flow: JKOFlow, x: Tensor, context: Tensor | None, tols: list[float], repeats: int) -> Iterator[dict]:
    """Yields the figures of each tolerance on rows x (N, d)."""
    double, given = copy.deepcopy(flow).double(), None if context is None else context.double()
    exact = -row_nll(double, x.double(), 2 * FINEST, given)

    @functools.cache
    def worst(steps: int) -> float:
        return float((-row_nll(double, x.double(), steps, given) - exact).abs().max())

    for tol in tols:
        best = known_best(worst, tol) or FINEST
        found: dict[str, Any] = {"tol": tol, "grids": [grid.cost for grid in flow.grids_for(x, context, tol=tol)]}
        found["best_steps"] = best
        for name, call in (
            ("log_prob", lambda tol=tol: flow.log_prob(x, context, tol=tol)),
            ("log_prob_and_error", lambda tol=tol: flow.log_prob_and_error(x, context, tol=tol)[0]),
            ("steps_found", lambda grids=found["grids"]: -row_nll(flow, x, grids, context)),
            ("best_steps", lambda steps=best: -row_nll(flow, x, steps, context)),
        ):
            with counted() as evaluations:
                error = (call().double() - exact).abs()
            found[name + "_figures"] = {
                "evaluations": sum(evaluations) / len(x),
                "error": float(error.max()),
                "beyond": int((error > tol).sum()),
                "seconds": fastest(call, repeats),
            }
        yield found


def main() -> None:
    """Measures every tolerance and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of a finished run, or a model file")
    parser.add_argument("data", help="name of data, or a file")
    parser.add_argument("--tol", nargs="+", type=float, default=[1e-1, 1e-2, 1e-3], help="tolerances in nats")
    parser.add_argument("--rows", type=int, default=4000, help="test rows that are scored")
    parser.add_argument("--repeats", type=int, default=3, help="times that each call is timed")
    parser.add_argument("--out", help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    flow, data = jkoflow.load(arguments.model), load_dataset(arguments.data)
    if not (isinstance(flow, JKOFlow) and isinstance(data, Dataset)):
        parser.error("the model must be a flow of plain numbers, and the data such numbers")
    x = spread_rows(data.test, arguments.rows)
    context = None if data.test_context is None else spread_rows(data.test_context, arguments.rows)
    print(f"{len(x)} rows in {sum(1 for _ in chunks(x, context))} pieces, {len(flow.blocks)} blocks, {x.dtype}")
    print(
        "    tol | steps found, known best |               call | evaluations a row | largest error (beyond) | seconds"
    )
    results = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not kept stands in the table
        for found in measure(flow, x, context, arguments.tol, arguments.repeats):
            results.append(found)
            steps = f"{'+'.join(map(str, found['grids']))}, {found['best_steps']}"
            for name in ("log_prob", "log_prob_and_error", "steps_found", "best_steps"):
                of = found[name + "_figures"]
                cells = f"{found['tol']:7g} | {steps:>23} | {name.replace('_and_', ' + '):>18}"
                cells += f" | {of['evaluations']:17.0f} | {of['error']:13.1e} ({of['beyond']:6d})"
                print(f"{cells} | {of['seconds']:7.3f}", flush=True)
    write(results, arguments.out)


if __name__ == "__main__":
    main()
