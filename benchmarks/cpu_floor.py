"""Measures what the Python layers cost: the CPU kernel through autograd and bare, against the floor of `jkoflow bench`.

    python benchmarks/cpu_floor.py [--threads 2] [--rounds 15] [--out figures.json]

The shares of the floor are those of `jkoflow bench`: see `jkoflow.bench.shapes.forward_flops` for what counts as work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch

import jkoflow
from jkoflow.bench import floor
from jkoflow.bench.shapes import DIRECTIONS, SHAPES, Shape, flops
from jkoflow.bench.stopwatch import wall_clock
from jkoflow.bench.timing import median, ratio, rounds
from jkoflow.ops import Fixed, native
from record import write


def candidates(shape: Shape) -> dict[str, Callable[[], object]]:
    """Returns the timed calls: the bare kernel and the way through autograd, forward and forward + backward."""
    torch.manual_seed(0)
    velocity = jkoflow.MLPVelocity(shape.dim, (shape.width,) * shape.layers)
    x = torch.randn(shape.batch, shape.dim)
    x_bar, logdet_bar = x / shape.batch, torch.full((shape.batch,), -1.0 / shape.batch)
    bare = _BareKernel(velocity, x, x_bar, logdet_bar, shape.steps)

    def forward() -> object:
        with torch.no_grad():
            return jkoflow.integrate(velocity, x, num_steps=shape.steps, keep_path=False)

    def both() -> object:
        result = jkoflow.integrate(velocity, x, num_steps=shape.steps, keep_path=False)
        return torch.autograd.grad([result.x, result.logdet], list(velocity.parameters()), [x_bar, logdet_bar])

    def bare_both() -> None:
        bare.forward()
        bare.backward()

    return {
        "forward": forward,
        "forward+backward": both,
        "bare forward": bare.forward,
        "bare forward+backward": bare_both,
    }


class _BareKernel:
    """The compiled entry points on prepared tensors, against which the Python layers are measured."""

    def __init__(self, velocity, x, x_bar, logdet_bar, steps) -> None:
        field = velocity.field()
        network = native.Network([w.detach() for w in field.weights], [b.detach() for b in field.biases], None)
        settings = native.Settings("exact", True, "tanh", 0.0, 1.0, Fixed(steps), "rk4")
        self.problem = native.describe(x, None, network, None, settings)
        outputs = native.new_outputs(x, Fixed(steps), True)
        self.problem.x_end, self.problem.logdet, self.problem.path = map(native.address, outputs)
        x_grad = torch.empty_like(x)
        self.adjoint = native._C.Adjoint()
        self.adjoint.x_end, self.adjoint.logdet, self.adjoint.x = map(native.address, (x_bar, logdet_bar, x_grad))
        gradient = native.set_gradient(self.adjoint, network, True)
        self.alive = [x, x_bar, logdet_bar, network, outputs, x_grad, gradient]

    def forward(self) -> None:
        native._C.cpu_forward(self.problem)

    def backward(self) -> None:
        native._C.cpu_backward(self.problem, self.adjoint)


def main() -> None:
    """Measures every shape and prints one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.15, help="time of each candidate in a round")
    parser.add_argument("--out", help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    print(f"{'d, H, layers, B, steps':>25} | floor GF/s | forward ms (of floor) | fwd+bwd ms (of floor) | Python costs")
    for shape in SHAPES:
        timers = {name: partial(wall_clock, run) for name, run in candidates(shape).items()}
        products = floor.timers()
        times = rounds({**products, **timers}, arguments.rounds, arguments.seconds)
        floor_times = floor.fastest(times, products)
        work = {direction: flops(shape, direction) for direction in DIRECTIONS}
        row = {
            "shape": shape._asdict(),
            "floor_gflops": floor.gflops(times, products),
            "milliseconds": {name: 1e3 * median(times[name]) for name in timers},
            "of_floor": {name: flops / floor.FLOPS * ratio(floor_times, times[name]) for name, flops in work.items()},
            "python_cost": {name: ratio(times[name], times[f"bare {name}"]) - 1 for name in work},
        }
        results.append(row)
        ms, share, cost = row["milliseconds"], row["of_floor"], row["python_cost"]
        rate = max(row["floor_gflops"].values())
        print(
            f"{tuple(shape)!s:>25} | {rate:10.0f} | {ms['forward']:10.2f} ({share['forward']:6.1%}) | "
            f"{ms['forward+backward']:10.2f} ({share['forward+backward']:6.1%}) | "
            f"{cost['forward']:+.1%}, {cost['forward+backward']:+.1%}",
            flush=True,
        )
    write(results, arguments.out)


if __name__ == "__main__":
    main()
