"""Runs every kernel of the GPU once, on few rows, for compute-sanitizer, which slows kernels down by far.

compute-sanitizer --tool memcheck python scripts/gpu_small.py [--fewer] [--seconds 50]

With --seconds no case is started after that time. Every kernel in its first precision comes before the next precision.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import torch

import jkoflow
from jkoflow.ops import cuda

WIDTHS = [(60,), (130,), (64, 50), (128, 128), (256, 140), (33, 64, 20), (100, 128, 80)]
BATCH = 70
"""Number of samples, which is no multiple of a tile; on a GPU they make small tiles."""
LARGE = 92
"""Samples for each multiprocessor: thread blocks have large tiles and, with up to 128 units, a small one at the end."""


def run(hidden: tuple[int, ...], precision: str, divergence: str, batch: int) -> None:
    """Integrates forwards and backwards, and computes the fused loss with its gradient."""
    velocity = jkoflow.MLPVelocity(3, hidden, context_dim=2, linear=True).cuda()
    x, context = torch.randn(batch, 3, device="cuda", requires_grad=True), torch.randn(batch, 2, device="cuda")
    noise = torch.ones_like(x) if divergence == "hutchinson" else None
    options: dict[str, Any] = {
        "context": context,
        "noise": noise,
        "backend": "cuda",
        "precision": precision,
        "num_steps": 2,
    }
    options["divergence"] = divergence
    end, logdet, path = jkoflow.integrate(velocity, x, **options)
    assert path is not None
    (end.sum() + logdet.sum() + path.sum()).backward()
    if divergence != "none":
        jkoflow.jko_loss(velocity, x, 0.5, **options).total.backward()
    torch.cuda.synchronize()
    assert all(
        bool(parameter.grad.isfinite().all()) for parameter in velocity.parameters() if parameter.grad is not None
    )


def main() -> None:
    """Runs all cases, or fewer if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fewer", action="store_true", help="leave out what differs least from other cases")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to start no more case")
    arguments = parser.parse_args()
    if (reason := cuda.missing()) is not None:
        raise SystemExit(f"no CUDA kernels here: {reason}")
    large = LARGE * torch.cuda.get_device_properties(0).multi_processor_count
    cases = [
        (precision, divergence, batch, hidden)
        for precision, divergence in itertools.product(("tf32x3", "fp32", "tf32"), ("exact", "hutchinson", "none"))
        for batch in ((BATCH, large) if divergence == "exact" else (BATCH,))
        for hidden in WIDTHS
    ]
    if arguments.fewer:
        cases = [c for c in cases if c[1] != "none" and c[:2] != ("tf32", "hutchinson")]
    started = time.monotonic()
    done = 0
    for precision, divergence, batch, hidden in cases:
        if time.monotonic() - started > arguments.seconds:
            break
        run(hidden, precision, divergence, batch)
        done += 1
        print(f"{precision}, {divergence}, {batch} rows, {hidden}: {time.monotonic() - started:.1f} s", flush=True)
    print(f"{done} of {len(cases)} cases", flush=True)


if __name__ == "__main__":
    main()
