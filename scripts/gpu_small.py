"""Every kernel of the GPU once, on few rows: what compute-sanitizer watches, since it slows kernels down by far.

compute-sanitizer --tool memcheck python scripts/gpu_small.py [--fewer]
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch

import jkoflow
from jkoflow.ops import cuda

WIDTHS = [(60,), (130,), (64, 50), (128, 128), (256, 140), (33, 64, 20), (100, 128, 80)]
BATCH = 70
"""No multiple of a tile."""


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
    """Runs the cases, fewer of them if asked for."""
    if (reason := cuda.missing()) is not None:
        raise SystemExit(f"no CUDA kernels here: {reason}")
    fewer = "--fewer" in sys.argv[1:]
    cases = 0
    for hidden, precision in itertools.product(WIDTHS, ("fp32", "tf32x3", "tf32")):
        for divergence in ("exact", "hutchinson", "none"):
            if fewer and (divergence == "none" or (precision, divergence) == ("tf32", "hutchinson")):
                continue
            run(hidden, precision, divergence, BATCH)
            cases += 1
    print(f"{cases} cases", flush=True)


if __name__ == "__main__":
    main()
