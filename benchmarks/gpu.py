"""The CUDA kernels against torchdiffeq, hand-written PyTorch and this GPU's matrix products, one block of rk4 steps.

    python benchmarks/gpu.py [--out figures.json] [--seconds 240] [--shapes "6,128,2,10000,3"] [--groups ours,compiled]

Every contender is compared with float64 before it is timed: solution, logdet and gradient. Times are medians of rounds
between CUDA events, warm, over several batches in rotation; "graph" means replayed from a CUDA graph. The loss of
forward+backward is mean(|y|^2/2 - logdet). Peers multiply in float32 unless their name says TF32. What no time is left
for, or no memory, is listed as such. With --device cpu the same code runs on the CPU, to try it out.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from jkoflow.bench.case import Case, Solution, loss
from jkoflow.bench.peers import closed_form, torchdiffeq
from jkoflow.bench.shapes import DIRECTIONS, Direction, Shape, flops, parse_shapes
from jkoflow.environment import describe
from jkoflow.ops import Precision, integrate, jko_loss
from jkoflow.ops.tableau import TABLEAUX

SHAPES = (
    "6,128,2,10000,3 2,128,2,10000,3 2,128,3,10000,3 43,128,2,10000,3 63,256,2,10000,3 2,64,2,10000,3 "
    "6,128,2,100000,3 2,128,2,100000,3 2,128,3,100000,3 43,128,2,100000,3 63,256,2,100000,3 2,64,2,100000,3 "
    "6,128,2,250,3"
)
"""The goal's first; the networks of `jkoflow bench` at two sizes of batch; a batch of training."""
GROUPS = ("ours", "closed form", "torchdiffeq", "compiled")
INPUTS = 4
"""Batches in rotation, so that no run finds its own batch in the cache."""
ROUNDS = 7
CEILING = 8192
"""Size of the matrix products that the kernels' rates are compared with."""
ALLOWED = {"fp32": 1e-4, "tf32": 5e-2}
"""Largest error relative to the norm, of products in float32 (or 3xTF32) and in TF32."""
COMPILE_SECONDS = {"forward": 60.0, "forward+backward": 120.0}
"""Time that has to be left for torch.compile in mode max-autotune to be started; given up after 1.5 times as much."""

Run = Callable[[Tensor], Any]


class Overtime(BaseException):
    """A contender's time is up. No Exception, because torch.compile goes on after one of those."""


@dataclass
class Contender:
    """Something to be measured."""

    name: str
    group: str
    solve: Callable[[Tensor], Solution] | None
    """From x (B, d) to the solution; None if it has no forward direction."""
    objective: Callable[[Tensor], Tensor]
    """From x (B, d) to the loss."""
    allowed: float = ALLOWED["fp32"]
    estimate: bool = False
    graph: bool = False
    """Whether it is also measured from a CUDA graph."""
    tf32: bool = False
    """Whether PyTorch's products may use TF32."""
    products: int = 1
    """Products on the unit that it runs on for each one of the algorithm: 3 in 3xTF32."""
    unit: str | None = None
    """The ceiling that it should be held against, or None."""
    fused: bool = False
    note: str | None = None


@dataclass
class Benchmark:
    """The measurements, and where they are written to after each one."""

    device: torch.device
    deadline: float
    out: Path | None
    environment: dict[str, Any]
    ceilings: dict[str, float] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **result: Any) -> None:
        """Adds a result and writes all of them."""
        self.results.append(result)
        what = f"{result['us']:10.1f} us" if "us" in result else result["left_out"]
        shape = Shape(**result["shape"]).text
        print(f"{shape:<34} {result['contender']:<44} {result['direction']:<17} {what}", flush=True)
        self.write()

    def write(self) -> None:
        """Writes everything measured so far, if a file is wanted."""
        if self.out is None:
            return
        content = {
            "environment": self.environment,
            "ceilings_tflops": self.ceilings,
            "results": self.results,
            "summary": self.summary(),
        }
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(self.out)

    def summary(self) -> list[str]:
        """The first shape as a table."""
        lines = [", ".join(f"{name} {rate:.1f} TFLOP/s" for name, rate in self.ceilings.items())]
        if not self.results:
            return lines
        shape = self.results[0]["shape"]
        lines.append(f"{Shape(**shape).text}: us forward | forward+backward | largest error | of the ceiling, likewise")
        rows: dict[str, dict[str, Any]] = {}
        for result in self.results:
            if result["shape"] == shape:
                rows.setdefault(result["contender"], {})[result["direction"]] = result
        for name, row in rows.items():
            cells = [f"{row[d]['us']:10.1f}" if "us" in row.get(d, {}) else f"{'-':>10}" for d in DIRECTIONS]
            found = [error for result in row.values() for error in result.get("errors", {}).values()]
            wrong = "" if all(result.get("agrees", True) for result in row.values()) else "  WRONG"
            shares = [
                f"{100 * row[d]['share']:3.0f} %" if "share" in row.get(d, {}) else f"{'-':>5}" for d in DIRECTIONS
            ]
            line = f"{' | '.join(cells)} | {max(found):.1e}{wrong} | {' | '.join(shares)}" if found else "-"
            lines.append(f"{name:<44} {line}")
        return lines


# ---- Contenders


def contenders(case: Case) -> list[Contender]:
    """Everybody, ours first."""
    solve = closed_form.unrolled(case.velocity, case.shape.steps)

    def eager(x: Tensor) -> Solution:  # its views of the weights belong to the stream that it runs on
        return closed_form.unrolled(case.velocity, case.shape.steps)(x)

    found = list(_ours(case))
    for name, graph, tf32 in (("closed form by hand", True, False), ("closed form by hand, TF32", True, True)):
        allowed = ALLOWED["tf32" if tf32 else "fp32"]
        found.append(
            Contender(f"{name}, eager", "closed form", eager, _objective(eager), allowed, graph=graph, tf32=tf32)
        )
    for name, estimate in (("exact", False), ("Hutchinson", True)):
        by_autograd, label = _autograd_solver(case, case.probe if estimate else None)
        found.append(
            Contender(f"{label}, {name}", "torchdiffeq", by_autograd, _objective(by_autograd), estimate=estimate)
        )
    for tf32 in (False, True):
        compiled = torch.compile(solve, mode="max-autotune", fullgraph=True, dynamic=False)
        objective = torch.compile(_objective(solve), mode="max-autotune", fullgraph=True, dynamic=False)
        name = "closed form by hand, max-autotune" + (", TF32" if tf32 else "")
        allowed = ALLOWED["tf32" if tf32 else "fp32"]
        found.append(Contender(name, "compiled", _marked(compiled), _marked(objective), allowed, tf32=tf32))
    return found


def _ours(case: Case) -> Iterator[Contender]:
    on_gpu = case.x.device.type == "cuda"
    precisions: tuple[Precision, ...] = ("tf32x3", "tf32", "fp32") if on_gpu else ("fp32",)
    for precision in precisions:
        options: dict[str, Any] = {
            "num_steps": case.shape.steps,
            "precision": precision,
            "backend": "cuda" if on_gpu else "cpu",
        }

        def solve(x: Tensor, options: dict[str, Any] = options) -> Solution:
            result = integrate(case.velocity, x, keep_path=False, **options)
            return Solution(result.x, result.logdet)

        def fused(x: Tensor, options: dict[str, Any] = options) -> Tensor:
            return jko_loss(case.velocity, x, float("inf"), **options).total

        def estimated(x: Tensor, options: dict[str, Any] = options) -> Solution:
            result = integrate(case.velocity, x, keep_path=False, divergence="hutchinson", noise=case.probe, **options)
            return Solution(result.x, result.logdet)

        shared: dict[str, Any] = {
            "group": "ours",
            "allowed": ALLOWED["tf32" if precision == "tf32" else "fp32"],
            "graph": True,
            "products": 3 if precision == "tf32x3" else 1,
            "unit": "fp32" if precision == "fp32" else "tf32",
        }
        yield Contender(f"jkoflow {precision}", solve=solve, objective=_objective(solve), **shared)
        yield Contender(f"jkoflow {precision}, fused loss", solve=None, objective=fused, fused=True, **shared)
        if precision == precisions[0]:
            name = f"jkoflow {precision}, Hutchinson"
            shared |= {"unit": None, "graph": False}  # other products than those that are counted
            yield Contender(name, solve=estimated, objective=_objective(estimated), estimate=True, **shared)


def _objective(solve: Callable[[Tensor], Solution]) -> Callable[[Tensor], Tensor]:
    return lambda x: loss(solve(x))


def _marked(run: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """A compiled function whose earlier results may be overwritten."""

    def marked(x: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return run(x)

    return marked


def _autograd_solver(case: Case, probe: Tensor | None) -> tuple[Callable[[Tensor], Solution], str]:
    if find_spec("torchdiffeq") is not None:
        build = torchdiffeq.exact if probe is None else torchdiffeq.hutchinson
        return cast("Any", build(case)).solve, "torchdiffeq"
    rhs = torchdiffeq.AutogradDivergence(case.velocity, probe)
    tableau, steps = TABLEAUX["rk4"], case.shape.steps

    def solve(x: Tensor) -> Solution:
        logdet = x.new_zeros(x.shape[0])
        for step in range(steps):
            slopes: list[tuple[Tensor, Tensor]] = []
            for row, c in zip(tableau.a, tableau.c, strict=True):
                at = x
                for a, (slope, _) in zip(row, slopes, strict=True):
                    at = at + (a / steps) * slope
                t = torch.full((), (step + c) / steps, device=x.device)
                slopes.append(rhs(t, (at, logdet)))
            for b, (slope, divergence) in zip(tableau.b, slopes, strict=True):
                x, logdet = x + (b / steps) * slope, logdet + (b / steps) * divergence
        return Solution(x, logdet)

    return solve, "fixed grid with torchdiffeq's right-hand side (torchdiffeq is not installed)"


# ---- Correctness


class Exact:
    """Solutions and gradients of a case in float64, computed when they are asked for."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.velocity = copy.deepcopy(case.velocity).double()

    @cached_property
    def exact(self) -> tuple[Solution, list[Tensor]]:
        """With the exact divergence."""
        return self._solve(None)

    @cached_property
    def estimated(self) -> tuple[Solution, list[Tensor]]:
        """With Hutchinson's estimate."""
        return self._solve(self.case.probe.double())

    def _solve(self, noise: Tensor | None) -> tuple[Solution, list[Tensor]]:
        result = integrate(
            self.velocity,
            self.case.x.double(),
            num_steps=self.case.shape.steps,
            divergence="exact" if noise is None else "hutchinson",
            noise=noise,
            backend="reference",
            keep_path=False,
        )
        solution = Solution(result.x, result.logdet)
        gradient = torch.autograd.grad(loss(solution), list(self.velocity.parameters()))
        return Solution(*(part.detach() for part in solution)), list(gradient)


def errors(contender: Contender, case: Case, exact: Exact, direction: Direction) -> dict[str, float]:
    """Errors relative to the norm, against float64."""
    right, gradient = exact.estimated if contender.estimate else exact.exact
    got = runner(contender, case, direction)(case.x)
    if direction == "forward":
        pairs = {"x": ([got.x], [right.x]), "logdet": ([got.logdet], [right.logdet])}
    else:
        pairs = {"gradient": (list(got), gradient)}
    return {name: _distance(*pair) for name, pair in pairs.items()}


def _distance(got: list[Tensor], wanted: list[Tensor]) -> float:
    one, other = (torch.cat([part.detach().double().flatten() for part in parts]) for parts in (got, wanted))
    return float((one - other).norm() / other.norm())


# ---- Timing


def runner(contender: Contender, case: Case, direction: Direction) -> Run:
    """What is timed, as a function of the batch."""
    if direction == "forward":
        solve = contender.solve
        assert solve is not None

        def forward(x: Tensor) -> Solution:
            with torch.no_grad():
                return solve(x)

        return forward
    parameters = case.parameters
    return lambda x: torch.autograd.grad(contender.objective(x), parameters)


def replayed(run: Run, inputs: list[Tensor]) -> list[Callable[[], object]]:
    """The runs on all inputs as CUDA graphs."""
    graphs = []
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for x in inputs[:2]:
            run(x)
    torch.cuda.current_stream().wait_stream(stream)
    kept = []
    for x in inputs:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept.append(run(x))
        graphs.append(graph.replay)
    return graphs


def seconds_per_run(runs: list[Callable[[], object]], device: torch.device, budget: float) -> tuple[float, float]:
    """Median over rounds of the time of a run, and the spread of the rounds (largest over smallest)."""
    runs[0]()
    first = _elapsed(runs[:1], 1, device)
    if first > budget:  # slow: three runs say enough
        times = [_elapsed([runs[i % len(runs)]], 1, device) for i in range(3)]
        return statistics.median(times), max(times) / min(times)
    for run in runs:
        run()
    first = _elapsed(runs, len(runs), device) / len(runs)
    repeats = max(len(runs), min(500, int(budget / ROUNDS / max(first, 1e-7))))
    times = [_elapsed(runs, repeats, device) / repeats for _ in range(ROUNDS)]
    return statistics.median(times), max(times) / min(times)


def _elapsed(runs: list[Callable[[], object]], repeats: int, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        for i in range(repeats):
            runs[i % len(runs)]()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for i in range(repeats):
        runs[i % len(runs)]()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `Overtime` in what takes longer and returns to Python now and then, as compiling does."""

    def stop(number: int, frame: object) -> None:
        raise Overtime(f"took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)  # again and again: someone may catch it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def products(tf32: bool) -> Iterator[None]:
    """Whether PyTorch's matrix products may use TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def ceilings(device: torch.device, size: int) -> dict[str, float]:
    """Rates of a large matrix product, in TFLOP/s."""
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    out = torch.empty_like(a)
    rates = {}
    for name in ("fp32", "tf32") if device.type == "cuda" else ("fp32",):
        with products(name == "tf32"):
            seconds, _ = seconds_per_run([lambda: torch.mm(a, b, out=out)], device, 0.3)
            rates[name] = 2 * size**3 / seconds / 1e12
    return rates


# ---- The run


def measure(benchmark: Benchmark, case: Case, exact: Exact, contender: Contender, direction: Direction) -> None:
    """Checks and times one contender in one direction, plain and from a graph."""
    left = benchmark.deadline - time.monotonic()
    entry: dict[str, Any] = {"shape": case.shape._asdict(), "direction": direction}
    compiled = contender.group == "compiled"
    needed = COMPILE_SECONDS[direction] if compiled else 5
    if left < needed:
        benchmark.add(**entry, contender=contender.name, left_out="no time left")
        return
    device = case.x.device
    generator = torch.Generator().manual_seed(1)
    more = [torch.randn(case.x.shape, generator=generator).to(device) for _ in range(INPUTS - 1)]
    inputs = [case.x, *more]
    if compiled:
        torch.compiler.reset()
    with products(contender.tf32), time_limit(1.5 * needed) if compiled else nullcontext():
        for graph in (False, True) if contender.graph and device.type == "cuda" else (False,):
            name = contender.name + (", graph" if graph else "")
            try:
                run = runner(contender, case, direction)
                found = errors(contender, case, exact, direction)
                runs = replayed(run, inputs) if graph else [partial(run, x) for x in inputs]
                seconds, spread = seconds_per_run(runs, device, 0.15)
                del runs
            except Overtime as error:
                benchmark.add(**entry, contender=name, left_out=str(error))
                return
            except torch.cuda.OutOfMemoryError:
                benchmark.add(**entry, contender=name, left_out="out of memory")
                torch.cuda.empty_cache()
                return
            except Exception as error:  # a peer that fails is a result, too
                message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                benchmark.add(**entry, contender=name, left_out=message)
                return
            result = entry | {"contender": name, "us": 1e6 * seconds, "spread": spread, "errors": found}
            result["agrees"] = all(error <= contender.allowed for error in found.values())
            if contender.unit is not None:
                rate = flops(case.shape, direction, contender.fused) / seconds / 1e12
                result["tflops"] = rate
                if contender.unit in benchmark.ceilings:
                    result["ceiling"] = contender.unit
                    result["share"] = rate * contender.products / benchmark.ceilings[contender.unit]
            benchmark.add(**result)


def main() -> None:
    """Measures what there is time for, the most telling first, and prints a table of the first shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", default=SHAPES, help="as d,H,layers,B,steps, with spaces between shapes")
    parser.add_argument("--groups", default=",".join(GROUPS), help="some of " + ", ".join(GROUPS))
    parser.add_argument("--seconds", type=float, default=480, help="when to start nothing more")
    parser.add_argument("--out", type=Path, help="JSON file, written after every measurement")
    parser.add_argument("--ceiling", type=int, default=CEILING, help="size of the matrix products")
    arguments = parser.parse_args()
    groups = arguments.groups.split(",")
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"groups must be some of {', '.join(GROUPS)}, got {', '.join(sorted(unknown))}")
    shapes = parse_shapes(arguments.shapes)
    device = torch.device(arguments.device)
    environment = describe()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        environment["gpu"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
        }
    benchmark = Benchmark(device, time.monotonic() + arguments.seconds, arguments.out, environment)
    benchmark.ceilings = ceilings(device, arguments.ceiling)
    # the quick ones on the first shape, ours on all, the slow to compile on the first, then the rest
    order = [(group, shapes[0]) for group in GROUPS[:-1]]
    order += [("ours", shape) for shape in shapes[1:]] + [("compiled", shapes[0])]
    order += [(group, shape) for shape in shapes[1:] for group in GROUPS[1:-1]]
    order += [("compiled", shape) for shape in shapes[1:]]
    for group, shape in order:
        if group not in groups:
            continue
        case = Case(shape, device)
        exact = Exact(case)
        for contender in contenders(case):
            if contender.group == group:
                for direction in DIRECTIONS:
                    if direction == "forward+backward" or contender.solve is not None:
                        measure(benchmark, case, exact, contender, direction)
        del case, exact
        if device.type == "cuda":
            torch.cuda.empty_cache()
    benchmark.write()
    print("\n" + "\n".join(benchmark.summary()))


if __name__ == "__main__":
    main()
