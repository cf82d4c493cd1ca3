"""Random integrations in float32 on every instruction set against float64: do they err more than PyTorch?

    python benchmarks/random_cases.py [--cases 2500] [--first 0] [--isas avx512 avx2]

A case is a number: sizes, activation, method, divergence, interval and scales of the weights follow from it, some of
them saturating. Sensitive cases multiply roundings by chance: there PyTorch errs more than twice as much as PyTorch
with its hidden units in another order. So its error is the largest of a few orders, and one more order is judged like a
kernel, for comparison. tests/test_random_cases.py runs the first cases.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

import jkoflow
from jkoflow.ops import native
from jkoflow.ops.tableau import TABLEAUX

ACTIVATIONS = ("tanh", "softplus", "softplus(20)", "silu", "elu", "selu", "gelu")
INTERVALS = ((0.0, 1.0), (1.0, 0.0), (-1.0, 2.0), (0.3, 0.4))
STAGES = 12  # of an integration, about: gradients of parameters are sums over rows and stages


class Case(NamedTuple):
    """The settings of an integration."""

    number: int
    batch: int
    dim: int
    hidden: tuple[int, ...]
    activation: str
    time: bool
    context_dim: int
    linear: bool
    method: str
    num_steps: int
    divergence: str
    interval: tuple[float, float]
    gain: float
    """By how much the weights and biases of the first layer are larger than usual, and those of the last smaller."""


def case_of(number: int) -> Case:
    """Draws a case, the same for a number everywhere."""
    draw = torch.Generator().manual_seed(number)

    def among(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    def one_of(choices: Sequence[object]) -> object:
        return choices[among(0, len(choices) - 1)]

    depth = among(1, 4)
    widest = 200 if depth <= 2 else 60  # deeper ones take a pass for each feature
    return Case(
        number=number,
        batch=among(1, 60),
        dim=among(1, 40 if depth <= 2 else 12),
        hidden=tuple(among(1, widest) for _ in range(depth)),
        activation=str(one_of(ACTIVATIONS)),
        time=among(0, 3) > 0,
        context_dim=one_of((0, 0, 0, 1, 3)),  # type: ignore[arg-type]
        linear=among(0, 1) == 1,
        method=str(one_of(tuple(TABLEAUX))),
        num_steps=among(1, 4),
        divergence=str(one_of(("exact", "hutchinson"))),
        interval=one_of(INTERVALS),  # type: ignore[arg-type]
        gain=one_of((1.0, 1.0, 3.0, 30.0, 1000.0)),  # type: ignore[arg-type]
    )


def inputs(case: Case) -> tuple[jkoflow.MLPVelocity, dict[str, Tensor]]:
    """Draws velocity, x, context, noise and cotangents of a case, in float32."""
    draw = torch.Generator().manual_seed(case.number + 1_000_000)
    velocity = jkoflow.MLPVelocity(case.dim, case.hidden, case.activation, case.time, case.context_dim, case.linear)
    last = len(case.hidden)
    scale = {"layers.0": case.gain, f"layers.{last}": 1 / math.sqrt(case.gain)}
    with torch.no_grad():
        for name, parameter in velocity.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            usual = 1 / math.sqrt(parameter.shape[-1]) if parameter.dim() == 2 else 0.3
            parameter.copy_(noise * usual * scale.get(name.rpartition(".")[0], 1.0))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    tensors = {"x": normal(case.batch, case.dim)}
    if case.context_dim:
        tensors["context"] = normal(case.batch, case.context_dim)
    if case.divergence == "hutchinson":
        tensors["noise"] = normal(case.batch, case.dim)
    tensors |= {"bar x": normal(case.batch, case.dim), "bar logdet": normal(case.batch)}
    return velocity, tensors


def run(case: Case, backend: str, dtype: torch.dtype, order: int = 0) -> dict[str, Tensor]:
    """Computes x, logdet and the gradients of everything; orders but 0 shuffle the hidden units."""
    velocity, tensors = inputs(case)
    velocity = velocity.to(dtype)
    draw = torch.Generator().manual_seed(order)
    units = [torch.randperm(width, generator=draw) if order else torch.arange(width) for width in case.hidden]
    with torch.no_grad():
        for layer, shuffled in enumerate(units):
            shuffle(dict(velocity.named_parameters()), layer, shuffled)
    given = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    leaves = {name: given[name].requires_grad_() for name in ("x", "context") if name in given}
    t0, t1 = case.interval
    end, logdet, _ = jkoflow.integrate(
        velocity, given["x"], context=given.get("context"), noise=given.get("noise"), backend=backend,  # type: ignore[arg-type]
        t0=t0, t1=t1, num_steps=case.num_steps, method=case.method, divergence=case.divergence,  # type: ignore[arg-type]
    )  # fmt: skip
    wanted = leaves | dict(velocity.named_parameters())
    gradients = torch.autograd.grad(
        [end, logdet], list(wanted.values()), [given["bar x"], given["bar logdet"]], materialize_grads=True
    )
    found = {"x": end.detach(), "logdet": logdet.detach()}
    named = dict(zip(wanted, gradients, strict=True))
    for layer, shuffled in enumerate(units):
        shuffle(named, layer, torch.argsort(shuffled))
    return found | {f"grad {name}": gradient for name, gradient in named.items()}


def shuffle(parameters: dict[str, Tensor], layer: int, units: Tensor) -> None:
    """Puts the units of a hidden layer into another order, in place."""
    for name, axis in ((f"layers.{layer}.weight", 0), (f"layers.{layer}.bias", 0), (f"layers.{layer + 1}.weight", 1)):
        parameters[name].copy_(parameters[name].index_select(axis, units))


def kernel(number: int) -> dict[str, Tensor]:
    """Runs a case on the CPU kernels that the environment chooses."""
    torch.set_num_threads(1)
    return run(case_of(number), "cpu", torch.float32)


class Result(NamedTuple):
    """The error of one result of one case."""

    who: str
    """The instruction set, or `PYTORCH`."""
    case: Case
    name: str
    error: float
    peer: float
    """The largest error of PyTorch in float32, over the orders."""
    floor: float
    """A few roundings of the largest entry, which are always allowed."""

    def beyond(self) -> bool:
        """Says whether the error is more than twice PyTorch's."""
        return not self.error <= 2 * self.peer + self.floor


PYTORCH = "PyTorch in another order"
ORDERS = 3  # that PyTorch's error is the largest of; the next one is judged


def judge(
    case: Case, found: dict[str, dict[str, Tensor]], peers: Sequence[dict[str, Tensor]], exact: dict[str, Tensor]
) -> list[Result]:
    """Returns the errors of what has been found, by who found it, beside those of the peers."""
    results = []
    for name, value in exact.items():
        if value.numel() == 0:
            continue
        terms = case.batch * STAGES if name.startswith("grad l") else 0
        floor = max(4e-7, 1e-7 * terms**0.5) * max(1.0, value.abs().max().item())

        def error(part: dict[str, Tensor], name: str = name, value: Tensor = value) -> float:
            return (part[name].double() - value).abs().max().item()

        peer = max(error(part) for part in peers)
        results += [Result(who, case, name, error(part), peer, floor) for who, part in found.items()]
    return results


def compare(numbers: Sequence[int], isas: Sequence[str]) -> Iterator[list[Result]]:
    """Yields the errors of one case after the other.

    Arguments:
        numbers: The cases.
        isas: Instruction sets, each run in a process of its own.
    """
    spawn, before = multiprocessing.get_context("spawn"), os.environ.get("JKOFLOW_ISA")
    pools = {}
    try:
        for isa in isas:
            os.environ["JKOFLOW_ISA"] = isa
            pools[isa] = ProcessPoolExecutor(1, spawn)
            pools[isa].submit(kernel, numbers[0]).result()  # the process starts in this environment
        results = {isa: [pool.submit(kernel, number) for number in numbers] for isa, pool in pools.items()}
        for i, number in enumerate(numbers):
            case = case_of(number)
            *peers, other = (run(case, "reference", torch.float32, order) for order in range(ORDERS + 1))
            exact = run(case, "reference", torch.float64)
            found = {isa: results[isa][i].result() for isa in isas} | {PYTORCH: other}
            yield judge(case, found, peers, exact)
    finally:
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)
        if before is None:
            os.environ.pop("JKOFLOW_ISA", None)
        else:
            os.environ["JKOFLOW_ISA"] = before


def ratio(results: Sequence[Result]) -> float:
    """Returns the geometric mean of error / peer, over results that say more than rounding does."""
    told = [result for result in results if max(result.error, result.peer) > result.floor]
    logs = [math.log(max(result.error, 1e-30) / max(result.peer, 1e-30)) for result in told]
    return math.exp(sum(logs) / len(logs)) if logs else 1.0


def main() -> None:
    """Prints what is beyond twice PyTorch's error, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--isas", nargs="+", default=native.capabilities()["isas"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    numbers = range(arguments.first, arguments.first + arguments.cases)
    results = []
    for found in compare(numbers, arguments.isas):
        results += found
        for result in found:
            if result.beyond():
                print(f"{result.who}, {result.name}: {result.error:.2e}, PyTorch {result.peer:.2e}: {result.case}")
    for who in (*arguments.isas, PYTORCH):
        own = [result for result in results if result.who == who]
        beyond = len({result.case.number for result in own if result.beyond()})
        by_activation = {
            activation: f"{ratio([result for result in own if result.case.activation == activation]):.2f}"
            for activation in ACTIVATIONS
        }
        print(f"{who}: {beyond} of {len(numbers)} cases beyond twice PyTorch's error; mean ratios {by_activation}")


if __name__ == "__main__":
    main()
