"""Measures how far the log-densities of single rows are off: float32 and float64 by the number of Runge-Kutta steps.

    python benchmarks/row_accuracy.py MODEL [--data gasturbine] [--rows 500] [--steps 8 16 32 64 128]
        [--exact-steps 512] [--out figures.json]

MODEL is the file or the run directory of a flow without context, as from `jkoflow train gasturbine --out MODEL`; the
rows are the first of the data's test part, in their own units. Errors are against the same flow in float64 with
``--exact-steps`` steps, in nats: their mean, the mean of their sizes and the largest. ``float64`` errs by its steps
alone; ``kernel`` and ``reference`` are the CPU kernels and PyTorch in float32. Rows in a second are of one timed call.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow import JKOFlow
from jkoflow.data import Dataset, load_dataset
from jkoflow.flow import base_log_prob
from jkoflow.ops import Backend, integrate
from record import write

WHO: dict[str, tuple[torch.dtype, Backend]] = {
    "float64": (torch.float64, "auto"),
    "kernel": (torch.float32, "cpu"),
    "reference": (torch.float32, "reference"),
}


class RowErrors(NamedTuple):
    """The errors of log-densities, in nats."""

    who: str
    num_steps: int
    bias: float
    """Mean of the differences from the exact log-densities."""
    mean: float
    """Mean size of the differences."""
    largest: float
    rows_per_second: float


@torch.no_grad()
def log_prob(flow: JKOFlow, x: Tensor, num_steps: int, backend: Backend) -> Tensor:
    """Returns the log-densities (B,) of rows x (B, d), in the flow's dtype, by a backend of one's choice."""
    z, logdet = flow.enter(x)
    for block in flow.stack:
        grid = {"t0": block.t0, "t1": block.t1, "num_steps": num_steps, "method": block.method}
        z, increment, _ = integrate(block.velocity, z, backend=backend, keep_path=False, **grid)
        logdet = logdet + increment
    return base_log_prob(z) + logdet


def compare(flow: JKOFlow, x: Tensor, steps: Iterable[int], exact_steps: int) -> Iterable[RowErrors]:
    """Yields the errors of everybody for every number of steps, over the rows x (B, d) whose density is finite."""
    flows = {dtype: copy.deepcopy(flow).to(dtype) for dtype, _ in WHO.values()}
    exact = log_prob(flows[torch.float64], x.double(), exact_steps, "auto")
    finite = torch.isfinite(exact)
    for num_steps in steps:
        for who, (dtype, backend) in WHO.items():
            start = time.perf_counter()
            found = log_prob(flows[dtype], x.to(dtype), num_steps, backend)
            seconds = time.perf_counter() - start
            error = (found.double() - exact)[finite]
            size = error.abs()
            figures = float(error.mean()), float(size.mean()), float(size.max())
            yield RowErrors(who, num_steps, *figures, len(x) / seconds)


def main() -> None:
    """Prints the table of errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file or run directory")
    parser.add_argument("--data", default="gasturbine", help="data whose test part is scored")
    parser.add_argument("--rows", type=int, default=500, help="rows to score")
    parser.add_argument("--steps", nargs="+", type=int, default=[8, 16, 32, 64, 128], help="steps per block")
    parser.add_argument("--exact-steps", type=int, default=512, help="steps per block of the exact log-densities")
    parser.add_argument("--out", help="JSON file to write")
    arguments = parser.parse_args()
    flow, data = JKOFlow.load(arguments.model), load_dataset(arguments.data)
    if not isinstance(data, Dataset) or data.dim != flow.dim or flow.context_dim:
        raise SystemExit(
            f"{arguments.model} must be a flow of the columns of {arguments.data}, without context; got {flow.dim} "
            f"columns and {flow.context_dim} of a context"
        )
    results = []
    print("| steps | who | mean error | mean size | largest | rows/s |\n| ---: | --- | ---: | ---: | ---: | ---: |")
    for found in compare(flow, data.test[: arguments.rows], arguments.steps, arguments.exact_steps):
        results.append(found._asdict())
        print(
            f"| {found.num_steps} | {found.who} | {found.bias:+.1e} | {found.mean:.1e} | {found.largest:.1e} | "
            f"{found.rows_per_second:.0f} |",
            flush=True,
        )
    write(results, arguments.out)


if __name__ == "__main__":
    main()
