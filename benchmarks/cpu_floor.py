"""The CPU kernel against the floor: its matrix-product flops at the rate of a 2048^3 torch.mm in the same rounds.

    python benchmarks/cpu_floor.py [--threads 2] [--rounds 15] [--out figures.json]

Only products with the weight matrices count as work; activations, packing and the rest are overhead. A backward pass
recomputes the stages, and that counts as work: it must be done in this design, which keeps the positions only.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from paired import ratio, rounds, write

import jkoflow
from jkoflow.ops import native


class Shape(NamedTuple):
    """One case: features, width of both hidden layers, batch and Runge-Kutta steps."""

    dim: int
    width: int
    batch: int
    steps: int

    def forward_flops(self) -> int:
        """Two H x H products and the first and last layer, per stage of the 4-stage method."""
        return self.batch * self.steps * 4 * 2 * (2 * self.width**2 + 2 * self.width * self.dim)


SHAPES = [
    Shape(2, 128, 2000, 3),
    Shape(6, 128, 10000, 3),
    Shape(43, 128, 2000, 3),
    Shape(63, 256, 1000, 3),
    Shape(2, 64, 10000, 3),
]
FLOOR_SIZE = 2048


def candidates(shape: Shape) -> dict[str, Callable[[], object]]:
    """The bare kernel and the way through autograd, forward and forward + backward, beside the floor."""
    torch.manual_seed(0)
    velocity = jkoflow.MLPVelocity(shape.dim, (shape.width, shape.width))
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

    a, b, c = (torch.randn(FLOOR_SIZE, FLOOR_SIZE) for _ in range(3))
    return {
        "floor": lambda: torch.mm(a, b, out=c),
        "forward": forward,
        "forward+backward": both,
        "bare forward": bare.forward,
        "bare forward+backward": bare_both,
    }


class _BareKernel:
    """The compiled entry points on tensors that are ready: what the Python layers are measured against."""

    def __init__(self, velocity, x, x_bar, logdet_bar, steps) -> None:
        field = velocity.field()
        network = native.Network([w.detach() for w in field.weights], [b.detach() for b in field.biases], None)
        settings = native.Settings("exact", True, "tanh", 0.0, 1.0, steps, "rk4")
        self.problem = native._describe(x, None, network, None, settings)
        outputs = native.new_outputs(x, steps, True)
        self.problem.x_end, self.problem.logdet, self.problem.path = map(native._address, outputs)
        x_grad = torch.empty_like(x)
        self.adjoint = native._C.Adjoint()
        self.adjoint.x_end, self.adjoint.logdet, self.adjoint.x = map(native._address, (x_bar, logdet_bar, x_grad))
        gradients = native._set_gradients(self.adjoint, network, True)
        self.alive = [x, x_bar, logdet_bar, network, outputs, x_grad, gradients]

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
    print(f"{'d, H, B, steps':>20} | floor GF/s | forward ms (of floor) | fwd+bwd ms (of floor) | Python costs")
    for shape in SHAPES:
        times = rounds(candidates(shape), arguments.rounds, arguments.seconds)
        mm = 2 * FLOOR_SIZE**3
        work = {"forward": shape.forward_flops(), "forward+backward": 4 * shape.forward_flops()}
        row = {
            "shape": shape._asdict(),
            "floor_gflops": mm / statistics.median(times["floor"]) / 1e9,
            "milliseconds": {name: 1e3 * statistics.median(values) for name, values in times.items()},
            "of_floor": {name: flops / mm * ratio(times["floor"], times[name]) for name, flops in work.items()},
            "python_cost": {name: ratio(times[name], times[f"bare {name}"]) - 1 for name in work},
        }
        results.append(row)
        ms, share, cost = row["milliseconds"], row["of_floor"], row["python_cost"]
        print(
            f"{tuple(shape)!s:>20} | {row['floor_gflops']:10.0f} | {ms['forward']:10.2f} ({share['forward']:6.1%}) | "
            f"{ms['forward+backward']:10.2f} ({share['forward+backward']:6.1%}) | "
            f"{cost['forward']:+.1%}, {cost['forward+backward']:+.1%}",
            flush=True,
        )
    write(results, arguments.out)


if __name__ == "__main__":
    main()
