"""Random integrations in float32 on every instruction set against float64: which err more than twice PyTorch's error?

    python benchmarks/random_cases.py [--cases 2500] [--first 0] [--isas avx512 avx2]

A case is a number: sizes, activation, method, divergence, interval and scales of the weights follow from it, some of
them saturating. tests/test_random_cases.py runs the first of them. The exit status is 1 if a case is beyond the rule.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
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


def run(case: Case, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Computes x, logdet and the gradients of everything."""
    velocity, tensors = inputs(case)
    velocity = velocity.to(dtype)
    given = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    leaves = {name: given[name].requires_grad_() for name in ("x", "context") if name in given}
    t0, t1 = case.interval
    end, logdet, _ = jkoflow.integrate(
        velocity, given["x"], context=given.get("context"), noise=given.get("noise"), backend=backend,
        t0=t0, t1=t1, num_steps=case.num_steps, method=case.method, divergence=case.divergence,
    )  # fmt: skip
    wanted = leaves | dict(velocity.named_parameters())
    gradients = torch.autograd.grad(
        [end, logdet], list(wanted.values()), [given["bar x"], given["bar logdet"]], materialize_grads=True
    )
    found = {"x": end.detach(), "logdet": logdet.detach()}
    return found | {f"grad {name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}


def kernel(number: int) -> dict[str, Tensor]:
    """Runs a case on the CPU kernels that the environment chooses."""
    torch.set_num_threads(1)
    return run(case_of(number), "cpu", torch.float32)


class Excess(NamedTuple):
    """A result that errs more than the rule allows."""

    isa: str
    case: Case
    name: str
    error: float
    peer: float
    """The error of PyTorch in float32."""


def excesses(
    isa: str, case: Case, got: dict[str, Tensor], peer: dict[str, Tensor], exact: dict[str, Tensor]
) -> list[Excess]:
    """Compares a case's results with the rule: twice PyTorch's error, and a few roundings of the largest entry."""
    found = []
    for name, value in exact.items():
        size = value.abs().max().item() if value.numel() else 0.0
        terms = case.batch * STAGES if name.startswith("grad l") else 0
        floor = max(4e-7, 1e-7 * terms**0.5) * max(1.0, size)
        error, of_peer = (
            (part[name].double() - value).abs().max().item() if value.numel() else 0.0 for part in (got, peer)
        )
        if not error <= 2 * of_peer + floor:
            found.append(Excess(isa, case, name, error, of_peer))
    return found


def compare(numbers: Sequence[int], isas: Sequence[str]) -> Iterator[list[Excess]]:
    """Yields what is beyond the rule, for one case after the other.

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
            peer, exact = run(case, "reference", torch.float32), run(case, "reference", torch.float64)
            yield [excess for isa in isas for excess in excesses(isa, case, results[isa][i].result(), peer, exact)]
    finally:
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)
        if before is None:
            os.environ.pop("JKOFLOW_ISA", None)
        else:
            os.environ["JKOFLOW_ISA"] = before


def main() -> int:
    """Prints every excess and a summary; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--isas", nargs="+", default=native.capabilities()["isas"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    numbers = range(arguments.first, arguments.first + arguments.cases)
    total: dict[str, set[int]] = {isa: set() for isa in arguments.isas}
    for found in compare(numbers, arguments.isas):
        for excess in found:
            total[excess.isa].add(excess.case.number)
            print(f"{excess.isa} {excess.name}: error {excess.error:.2e}, PyTorch {excess.peer:.2e}: {excess.case}")
    for isa, beyond in total.items():
        print(f"{isa}: {len(beyond)} of {len(numbers)} cases beyond the rule")
    return 1 if any(total.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
