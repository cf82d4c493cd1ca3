"""Loads the compiled kernels and registers them as torch custom operators."""

from __future__ import annotations

from torch import Tensor

from jkoflow.velocity import MLPField


def unsupported(field: MLPField | None, x: Tensor, divergence: str, backend: str) -> str | None:
    """Why no compiled kernel can run the request, or None if one can."""
    return "kernels are being built"


def integrate_mlp(
    field: MLPField, x: Tensor, context: Tensor | None, t0: float, t1: float, num_steps: int, method: str,
    divergence: str, keep_path: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    raise NotImplementedError
