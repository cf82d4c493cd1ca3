"""The replay of a run from a CUDA graph, with one launch for all that the run puts on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def replayed(run: Callable[[Tensor], Result], batches: Sequence[Tensor]) -> list[Callable[[], Result]]:
    """Captures a run on each batch in a CUDA graph of its own.

    Arguments:
        run: The run to capture. It is called before the capture, because CUDA loads a kernel when it is first used.
        batches: Tensors (B, d) on the current GPU, which the graphs read again at every replay.

    Returns:
        For each batch, a function that replays its graph and returns the result. The next replay of the same graph
        overwrites the tensors of the result.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for batch in batches[:2]:
            run(batch)
    torch.cuda.current_stream().wait_stream(stream)
    return [_captured(run, batch) for batch in batches]


def _captured(run: Callable[[Tensor], Result], batch: Tensor) -> Callable[[], Result]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(batch)

    def replay() -> Result:
        graph.replay()
        return result

    return replay
