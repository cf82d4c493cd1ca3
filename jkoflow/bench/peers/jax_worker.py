"""JAX and diffrax in their own process, which `jkoflow.bench.peers.jax_process` drives by standard input and output.

It runs as a file, not as a module: it knows neither jkoflow nor torch, whose threads would compete with JAX's.
Each line of its input is a JSON object with a request; each line of its output is the JSON object of the answer.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

Arrays = list[Any]
Solve = Callable[[Arrays, Any], tuple[Any, Any]]
"""Function from the parameters (weight and bias of each layer in turn) and x (B, d) to x at t1 and logdet."""


def velocity_and_divergence(parameters: Arrays, x: Any, t: Any) -> tuple[Any, Any]:
    """Returns velocity and divergence of tanh layers in closed form: one extra product for up to two, else tangents."""
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    weights, biases = parameters[0::2], parameters[1::2]
    dim = x.shape[1]
    first_t = weights[0][:, :dim].T
    h = jnp.tanh(x @ first_t + (biases[0] + weights[0][:, dim] * t))
    slopes = [1 - h * h]
    for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
        h = jnp.tanh(h @ weight.T + bias)
        slopes.append(1 - h * h)
    v = h @ weights[-1].T + biases[-1]
    if len(slopes) == 1:
        return v, slopes[0] @ (first_t * weights[1]).sum(0)
    if len(slopes) == 2:
        trace_matrix = weights[1] * (first_t.T @ weights[2]).T
        return v, ((slopes[0] @ trace_matrix.T) * slopes[1]).sum(1)
    tangents = slopes[0] * first_t[:, None, :]
    for weight, slope in zip(weights[1:-1], slopes[1:], strict=True):
        tangents = slope * (tangents @ weight.T)
    return v, (tangents * weights[-1][:, None, :]).sum((0, 2))


def unrolled(steps: int, tableau: dict[str, Any]) -> Solve:
    """Returns a solver with every stage in one graph, which JAX compiles and runs faster than a scan."""
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    def solve(parameters: Arrays, x: Any) -> tuple[Any, Any]:
        logdet = jnp.zeros(x.shape[0], x.dtype)
        for step in range(steps):
            slopes: Arrays = []
            for row, b, c in zip(tableau["a"], tableau["b"], tableau["c"], strict=True):
                at = x
                for a, slope in zip(row, slopes, strict=True):
                    at = at + (a / steps) * slope
                slope, divergence = velocity_and_divergence(parameters, at, (step + c) / steps)
                slopes.append(slope)
                logdet = logdet + (b / steps) * divergence
            for b, slope in zip(tableau["b"], slopes, strict=True):
                x = x + (b / steps) * slope
        return x, logdet

    return solve


def with_diffrax(steps: int, tableau: dict[str, Any]) -> Solve:
    """Returns diffrax's solver on constant steps with our tableau, its default adjoint and the same right-hand side."""
    import diffrax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    import numpy as np

    b = np.array(tableau["b"])
    butcher = diffrax.ButcherTableau(
        a_lower=tuple(np.array(row) for row in tableau["a"][1:]),
        b_sol=b,
        b_error=np.zeros_like(b),  # constant steps look at no error
        c=np.array(tableau["c"][1:]),
    )

    class FixedTableau(diffrax.AbstractERK):
        tableau: ClassVar[Any] = butcher
        interpolation_cls: ClassVar[Any] = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms: Any) -> int:
            return 4

    def field(t: Any, state: tuple[Any, Any], parameters: Arrays) -> tuple[Any, Any]:
        return velocity_and_divergence(parameters, state[0], t)

    def solve(parameters: Arrays, x: Any) -> tuple[Any, Any]:
        start = (x, jnp.zeros(x.shape[0], x.dtype))
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field), FixedTableau(), 0.0, 1.0, 1.0 / steps, start, args=parameters, max_steps=steps
        )
        ends: Any = solution.ys  # at the last time alone
        return ends[0][-1], ends[1][-1]

    return solve


def with_diffrax_adaptive(method: str, rtol: float, atol: float) -> Solve:
    """Returns diffrax's solver with adaptive steps, the same for all rows, which take fewer evaluations at a time."""
    import diffrax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    solver = {"dopri5": diffrax.Dopri5, "tsit5": diffrax.Tsit5}[method]()
    control = diffrax.PIDController(rtol=rtol, atol=atol)

    def field(t: Any, state: tuple[Any, Any], parameters: Arrays) -> tuple[Any, Any]:
        return velocity_and_divergence(parameters, state[0], t)

    def solve(parameters: Arrays, x: Any) -> tuple[Any, Any]:
        start = (x, jnp.zeros(x.shape[0], x.dtype))
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field), solver, 0.0, 1.0, None, start, args=parameters, stepsize_controller=control
        )
        ends: Any = solution.ys  # at the last time alone
        return ends[0][-1], ends[1][-1]

    return solve


SOLVERS: dict[str, Callable[..., Solve]] = {
    "jax": unrolled,
    "diffrax": with_diffrax,
    "diffrax adaptive": with_diffrax_adaptive,
}


class Worker:
    """A compiled solver, its gradient and their input.

    Arguments:
        solver: One of `SOLVERS`.
        options: What that solver takes: steps and tableau, or method and tolerances.
        arrays: Archive of the parameters p0, p1, ... and x.
    """

    def __init__(self, solver: str, options: dict[str, Any], arrays: str) -> None:
        import jax  # pyright: ignore[reportMissingImports]
        import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
        import numpy as np

        with np.load(arrays, allow_pickle=False) as archive:
            self.x = jnp.asarray(archive["x"])
            self.parameters = [jnp.asarray(archive[f"p{i}"]) for i in range(len(archive.files) - 1)]
        solve = SOLVERS[solver](**options)

        def loss(parameters: Arrays, x: Any) -> Any:
            y, logdet = solve(parameters, x)
            return (0.5 * (y * y).sum(1) - logdet).mean()

        self._ready = jax.block_until_ready
        self._functions = {"forward": jax.jit(solve), "forward+backward": jax.jit(jax.value_and_grad(loss))}

    def result(self, direction: str, out: str) -> dict[str, Any]:
        """Writes x and logdet, or the gradients of the parameters, as r0, r1, ... to an archive."""
        import numpy as np

        result: Sequence[Any] = self._ready(self._functions[direction](self.parameters, self.x))
        if direction != "forward":
            result = result[1]
        np.savez(out, **{f"r{i}": np.asarray(value) for i, value in enumerate(result)})  # type: ignore[arg-type]
        return {}

    def time(self, direction: str, repeats: int) -> dict[str, Any]:
        """Returns the seconds of ``repeats`` runs."""
        function = self._functions[direction]
        start = time.perf_counter()
        for _ in range(repeats):
            self._ready(function(self.parameters, self.x))
        return {"seconds": time.perf_counter() - start}


def limit_threads(threads: int) -> None:
    """Limits the processors of this process, since JAX makes as many threads as it has processors."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main() -> None:
    """Answers one request after the other until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    limit_threads(int(sys.argv[1]))
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        try:
            if what == "prepare":
                worker, answer = Worker(**request), {}
            else:
                answer = getattr(worker, what)(**request)
        except Exception as error:  # the other side tells it, and goes on with the next peer
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
