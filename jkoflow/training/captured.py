"""A run that is captured in a CUDA graph, so that all that it puts on the GPU is one launch.

An iteration of training is some sixty small kernels around one large one. Launched one by one they take longer than
they compute.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Graphs(Protocol):
    """Protocol of what captures runs."""

    def beside(self, run: Callable[[], Result]) -> Result:
        """Does a run where runs are captured, without capturing it."""
        ...

    def capture(self, run: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Captures a run without doing it.

        Returns:
            A function that does the run, and what the run returned: tensors that every replay fills anew.

        Raises:
            RuntimeError: If the run does what cannot be captured: waits for the device, or allocates too much.
        """
        ...


class CudaGraphs:
    """The graphs of a GPU.

    Arguments:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def beside(self, run: Callable[[], Result]) -> Result:
        """Does a run on the stream of captures, in its place among those of the current stream."""
        with torch.cuda.device(self._device):
            stream, current = _stream(self._device), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                result = run()
            current.wait_stream(stream)
        return result

    def capture(self, run: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Captures a run in a graph with memory of its own, which is given back with the function that replays it."""
        graph = torch.cuda.CUDAGraph()
        # other threads of the process may use the GPU meanwhile
        mode = {"stream": _stream(self._device), "capture_error_mode": "thread_local"}
        with (
            torch.cuda.device(self._device),
            # a capture that fails leaves its stream the current one; behind it this one is the current one again
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, **mode),
        ):
            result = run()
        return graph.replay, result


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream of captures, one for all: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)


def graphs_on(device: torch.device) -> Graphs | None:
    """Returns what captures runs on a device; None where launches cost nothing that a graph would save."""
    return CudaGraphs(device) if device.type == "cuda" else None


class Captured(Generic[Result]):
    """A run that is captured when it is done for the second time, and replayed from then on.

    The first time it is done without a graph: kernels are loaded when they are first called, which cannot be captured.

    Arguments:
        graphs: What captures the run.
        tell: Function that is called with one line of text if the run cannot be captured.
    """

    def __init__(self, graphs: Graphs, tell: Callable[[str], None]) -> None:
        self._graphs, self._tell = graphs, tell
        self._key: Hashable = None
        self._given: Tensor | None = None
        self._replay: Callable[[], None] | None = None
        self._result: Result | None = None
        self._fails = False

    def __call__(self, run: Callable[[Tensor], Result], key: Hashable, given: Tensor) -> Result:
        """Does the run.

        Arguments:
            run: The run. It may read and change tensors that stay where they are, beside the one that it is given.
            key: Everything but tensors that the operations of the run depend on. A new key leads to a new capture.
            given: The tensor that the run is given, of the same shape and type in every call.

        Returns:
            What the run returned; the next call may change its tensors.
        """
        if self._fails:
            return run(given)
        if key != self._key or self._given is None:
            self._replay = self._result = None  # gives back the memory of the last graph before there is another
            self._key, self._given = key, given.clone()
            return self._graphs.beside(functools.partial(run, self._given))
        self._given.copy_(given)
        if self._replay is None:
            try:
                self._replay, self._result = self._graphs.capture(functools.partial(run, self._given))
            except RuntimeError as error:
                self._fails = True
                reason = error if error.__context__ is None else error.__context__  # what has ended the capture
                first_line, *_ = str(reason).split("\n")
                self._tell(
                    "iterations are not captured in a CUDA graph, so that every kernel is launched by itself, which is "
                    f"slower: {first_line}"
                )
                return run(given)
        self._replay()
        return self._result  # type: ignore[return-value]
