"""Trains on few rows and compares the flow with a shrunk Gaussian of the same training rows, on many test rows.

    python benchmarks/few_rows.py [--rows 200 1000 5000] [--data gasturbine mixture-8 gaussian-64 ...] [--seeds 1]
        [--iterations 300 | --time-budget 10] [--initial-map auto] [--out figures.json]

Every table of N rows is split as `jkoflow.train` splits it, but for the test: it is on 10,000 other rows. The Gaussian
has the mean of the training rows and Ledoit and Wolf's covariance of their standardised columns. ``gain`` is what a
test row gains from the Gaussian to the flow, in nats, with its standard error; WORSE stands where the flow loses more.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from jkoflow import TrainConfig, train
from jkoflow.data import Dataset, load_dataset, split_rows
from jkoflow.gain import paired_gain
from jkoflow.metrics import row_nll
from record import write

TEST_ROWS = 10_000
COMPONENTS = 4
ROUNDING = 1e-4
"""Nats by which a flow that is the same Gaussian may differ from it, in float32."""
DATA = (
    "gasturbine",
    *(f"mixture-{dim}" for dim in (2, 8, 32)),
    *(f"gaussian-{dim}" for dim in (2, 8, 11, 32, 64)),
)


def gasturbine(count: int, generator: torch.Generator) -> Tensor:
    """Returns rows of the bundled table, chosen at random."""
    data = load_dataset("gasturbine")
    assert isinstance(data, Dataset)
    rows = torch.cat([data.train, data.val, data.test])
    return rows[torch.randperm(len(rows), generator=generator)[:count]]


def correlated(dim: int, generator: torch.Generator) -> Tensor:
    """Returns a random root (d, d) of a covariance whose variances span three orders of magnitude."""
    directions = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    return directions * torch.logspace(0, -1.5, dim, dtype=torch.float64)


def gaussian(dim: int) -> Callable[[int, torch.Generator], Tensor]:
    """Returns the function that draws rows of a Gaussian with a random covariance."""

    def draw(count: int, generator: torch.Generator) -> Tensor:
        root = correlated(dim, generator)
        return (torch.randn(count, dim, generator=generator, dtype=torch.float64) @ root.T).float()

    return draw


def mixture(dim: int) -> Callable[[int, torch.Generator], Tensor]:
    """Returns the function that draws rows of a mixture of Gaussians, each with a covariance of its own."""

    def draw(count: int, generator: torch.Generator) -> Tensor:
        centers = 2 * torch.randn(COMPONENTS, dim, generator=generator, dtype=torch.float64)
        roots = torch.stack([correlated(dim, generator) for _ in range(COMPONENTS)])
        component = torch.randint(COMPONENTS, (count,), generator=generator)
        noise = torch.randn(count, dim, generator=generator, dtype=torch.float64)
        return (centers[component] + (roots[component] @ noise[:, :, None])[:, :, 0]).float()

    return draw


def rows_of(name: str, count: int, seed: int) -> Tensor:
    """Returns rows of one of `DATA`, with shape (count, d)."""
    generator = torch.Generator().manual_seed(seed)
    if name == "gasturbine":
        return gasturbine(count, generator)
    kind, dim = name.split("-")
    return {"gaussian": gaussian, "mixture": mixture}[kind](int(dim))(count, generator)


def gaussian_nll(train_rows: Tensor, test: Tensor) -> Tensor:
    """Returns the NLL (N,) of test rows under the shrunk Gaussian of the training rows, in the data's own units."""
    exact, mean = train_rows.double(), train_rows.double().mean(0)
    scale = exact.std(0, correction=0)
    covariance, _ = ledoit_wolf(((exact - mean) / scale).numpy(), assume_centered=True)
    standard = torch.distributions.MultivariateNormal(torch.zeros(len(mean)).double(), torch.from_numpy(covariance))
    return scale.log().sum() - standard.log_prob((test.double() - mean) / scale)


def compare(name: str, count: int, seed: int, config: TrainConfig) -> dict[str, Any]:
    """Trains on a table of so many rows and returns the figures."""
    rows = rows_of(name, count + TEST_ROWS, seed)
    data = split_rows(rows[:count], seed, name)
    data = Dataset(name, data.train, data.val, rows[count:], data.features, warned=True)
    began = time.perf_counter()
    flow = train(data, config)
    seconds = time.perf_counter() - began
    before, after = gaussian_nll(data.train, data.test), row_nll(flow, data.test)
    gain = paired_gain(before, after)
    return {
        "data": name,
        "rows": count,
        "seed": seed,
        "gaussian": float(before.mean()),
        "flow": float(after.mean()),
        "gain": gain.value,
        "gain_stderr": gain.stderr,
        "worse": not gain.value >= -max(gain.stderr, ROUNDING),
        "movements": flow.metrics["movements"],
        "initial_map": flow.metrics["initial_map"],
        "val_gap": flow.metrics["val_nll"] - flow.metrics["test_nll"],
        "seconds": seconds,
    }


def main() -> None:
    """Compares on every table and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=DATA, help="names of data")
    parser.add_argument("--rows", nargs="+", type=int, default=[200, 1000, 5000], help="numbers of rows")
    parser.add_argument("--seeds", type=int, default=1, help="tables of each kind")
    parser.add_argument("--iterations", type=int, help="iterations per block, in place of a time budget")
    parser.add_argument("--time-budget", type=float, default=10.0, help="seconds of each run")
    parser.add_argument("--initial-map", help="the initial map; the default's without")
    parser.add_argument("--out", help="JSON file to write")
    arguments = parser.parse_args()
    settings: dict[str, Any] = {"time_budget": arguments.time_budget}
    if arguments.iterations is not None:
        settings = {"iterations_per_block": arguments.iterations}
    if arguments.initial_map is not None:
        settings["initial_map"] = arguments.initial_map
    results = []
    print("        data  rows seed | gaussian     flow |     gain +- error |       | moved          | map | seconds")
    for name in arguments.data:
        for count in arguments.rows:
            for seed in range(arguments.seeds):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a few rows have much to be warned of
                    found = compare(name, count, seed, TrainConfig(seed=seed, **settings))
                results.append(found)
                moved = " ".join(f"{distance:.2f}" for distance in found["movements"])
                print(
                    f"{name:>12} {count:5} {seed:4} | {found['gaussian']:8.3f} {found['flow']:8.3f} | "
                    f"{found['gain']:8.3f} +- {found['gain_stderr']:.3f} | {'WORSE' if found['worse'] else '     '} | "
                    f"{moved:14} | {found['initial_map']} | {found['seconds']:.1f}",
                    flush=True,
                )
    print(f"{sum(found['worse'] for found in results)} of {len(results)} worse by more than the standard error")
    write(results, arguments.out)


if __name__ == "__main__":
    main()
