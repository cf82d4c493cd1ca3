"""Runs every kernel of the GPU on few rows: for compute-sanitizer, which slows kernels down by far, or as a first look.

compute-sanitizer --tool memcheck python scripts/gpu_small.py [--fewer] [--seconds 50] [--compare]

With --seconds no case is started after that time. Cases of few rows come first, among them every kernel in its first
precision; what fills the GPU comes last. --compare looks at the results, too: against the reference in float64.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from typing import Any, NamedTuple

import torch

import jkoflow
from jkoflow.ops import cuda

WIDTHS = [(60,), (130,), (64, 50), (128, 128), (256, 140), (33, 64, 20), (100, 128, 80)]
BATCH = 70
"""Number of samples, which is no multiple of a tile; on a GPU they make small tiles."""
LARGE = 92
"""Samples for each multiprocessor: thread blocks have large tiles and, with up to 128 units, a small one at the end."""
ALLOWED = {"fp32": 1e-4, "tf32x3": 1e-4, "tf32": 5e-2}
"""Largest error relative to the largest entry of a result."""
TOLERANCE = {"fp32": 1e-5, "tf32x3": 1e-5, "tf32": 1e-2}
"""Tolerance of adaptive steps, above the rounding of the products: below it steps would become ever shorter."""
ADAPTIVE = 4
"""Factor of the error that is allowed to adaptive steps: rounding may decide on a step more or less."""


class Case(NamedTuple):
    """A case: how it integrates and how many rows."""

    precision: str
    adaptive: bool
    divergence: str
    batch: int
    hidden: tuple[int, ...]

    @property
    def text(self) -> str:
        """Returns the case in words."""
        steps = "adaptive" if self.adaptive else "equal"
        return f"{self.precision}, {steps} steps, {self.divergence}, {self.batch} rows, {self.hidden}"


def all_cases(large: int, fewer: bool) -> list[Case]:
    """Returns the cases in their order; ``large`` is the number of rows that fills the GPU."""
    precisions = ("tf32x3", "fp32", "tf32")
    kinds = [(False, "exact"), (True, "exact"), (False, "hutchinson"), (True, "hutchinson"), (False, "none")]
    cases = [Case(p, *kind, BATCH, hidden) for p in precisions for kind in kinds for hidden in WIDTHS]
    cases += [Case(p, False, "exact", large, hidden) for p, hidden in itertools.product(precisions, WIDTHS)]
    if fewer:
        cases = [c for c in cases if c.divergence != "none" and (c.precision, c.divergence) != ("tf32", "hutchinson")]
    return cases


def run(case: Case, compare: bool = False) -> float | None:
    """Integrates forwards and backwards, evaluates once, and computes the fused loss with its gradient.

    Returns:
        The largest error relative to the largest entry, over all results; None without comparison.
    """
    torch.manual_seed(0)
    velocity = jkoflow.MLPVelocity(3, case.hidden, context_dim=2, linear=True).cuda()
    x, context = torch.randn(case.batch, 3, device="cuda"), torch.randn(case.batch, 2, device="cuda")
    got = results(velocity, x, context, case, backend="cuda", precision=case.precision)
    torch.cuda.synchronize()
    for name, value in got.items():
        assert bool(value.isfinite().all()), f"{case.text}: {name} is not finite"
    if not compare:
        return None
    exact = results(copy.deepcopy(velocity).double(), x.double(), context.double(), case, backend="reference")
    errors = {
        name: float((got[name] - value).abs().max() / value.abs().max().clamp(min=1)) for name, value in exact.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    allowed = ALLOWED[case.precision] * (ADAPTIVE if case.adaptive else 1)
    assert errors[worst] <= allowed, f"{case.text}: {worst} is wrong by {errors[worst]:.1e}"
    return errors[worst]


def results(
    velocity: jkoflow.MLPVelocity, x: torch.Tensor, context: torch.Tensor, case: Case, **where: Any
) -> dict[str, torch.Tensor]:
    """Returns all results of a case, and the gradients of x and of the parameters."""
    x = x.clone().requires_grad_()
    noise = torch.ones_like(x) if case.divergence == "hutchinson" else None
    options: dict[str, Any] = {"context": context, "divergence": case.divergence, "noise": noise, **where}
    steps: dict[str, Any] = {"num_steps": 2}
    if case.adaptive:
        steps = {"method": "dopri5", "rtol": TOLERANCE[case.precision], "atol": TOLERANCE[case.precision]}
    integrated = jkoflow.integrate(velocity, x, **options, **steps)
    found = {"x": integrated.x, "logdet": integrated.logdet}
    if not case.adaptive:
        found["velocity"], found["rate"] = jkoflow.velocity_and_divergence(velocity, x, 0.3, **options)
    total = sum((part.sum() for part in found.values()), x.new_zeros(()))
    if case.divergence != "none":
        found["loss"] = jkoflow.jko_loss(velocity, x, 0.5, **options, **steps).total
        total = total / len(x) + found["loss"]
    parameters = dict(velocity.named_parameters())
    gradients = torch.autograd.grad(total, [x, *parameters.values()], allow_unused=True, materialize_grads=True)
    found |= dict(zip(("grad x", *(f"grad {name}" for name in parameters)), gradients, strict=True))
    return {name: value.detach() for name, value in found.items()}


def main() -> None:
    """Runs all cases, or fewer if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fewer", action="store_true", help="leave out what differs least from other cases")
    parser.add_argument("--compare", action="store_true", help="compare the results with the reference in float64")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to start no more case")
    arguments = parser.parse_args()
    if (reason := cuda.missing()) is not None:
        raise SystemExit(f"no CUDA kernels here: {reason}")
    large = LARGE * torch.cuda.get_device_properties(0).multi_processor_count
    cases = all_cases(large, arguments.fewer)
    started = time.monotonic()
    done = 0
    failures = []
    for case in cases:
        if time.monotonic() - started > arguments.seconds:
            break
        try:
            error = run(case, arguments.compare)
        except AssertionError as wrong:  # the other cases tell where it is
            failures.append(str(wrong))
            print(wrong, flush=True)
            continue
        done += 1
        within = "" if error is None else f", error {error:.1e}"
        print(f"{case.text}: {time.monotonic() - started:.1f} s{within}", flush=True)
    print(f"{done} of {len(cases)} cases", flush=True)
    if failures:
        raise SystemExit(f"{len(failures)} cases are wrong")


if __name__ == "__main__":
    main()
