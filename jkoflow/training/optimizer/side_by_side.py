"""Runs side by side on a GPU, which has room for many small products at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch


def side_by_side(runs: Sequence[Callable[[], None]], device: torch.device) -> None:
    """Does runs that neither read nor change what another changes.

    A GPU does them at the same time, each on a stream of its own: in their place among the runs of the current stream,
    and as branches of a CUDA graph that they are captured in. Elsewhere they are done one after the other.
    """
    first, *others = runs
    streams = _streams(device, len(others)) if device.type == "cuda" else []
    if not streams:
        for run in runs:
            run()
        return
    current = torch.cuda.current_stream(device)
    for run, stream in zip(others, streams, strict=True):
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            run()
    first()
    for stream in streams:
        current.wait_stream(stream)


@functools.cache
def _streams(device: torch.device, count: int) -> list[torch.cuda.Stream]:
    """Returns streams of a GPU, the same in every call: cuBLAS keeps a workspace for every stream that it has seen."""
    return [torch.cuda.Stream(device) for _ in range(count)]
