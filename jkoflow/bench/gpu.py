"""A GPU as a benchmark uses it: its stopwatch, its replays from CUDA graphs and its matrix products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jkoflow.bench import ceilings
from jkoflow.bench.candidate import Outcome, Peer
from jkoflow.bench.graph import replayed
from jkoflow.bench.peers.on_gpu import CUDA_PEERS
from jkoflow.bench.stopwatch import Stopwatch, cuda_events
from jkoflow.environment import cuda_status
from jkoflow.ops.native import capabilities


@dataclass(frozen=True)
class Gpu:
    """The functions by which a benchmark uses a GPU; tests make one of the CPU.

    Arguments:
        device: Device of the tensors.
        peers: All peers that are measured on it.
        description: Entry of the record that describes it.
        stopwatch: Function that times its work.
        replay: Function that makes replays of a run's CUDA graphs, one for each batch.
        ceilings: Function that measures the GFLOP/s of its units in a large product.
        use: Function that enters a context in which it is PyTorch's current device.
        free: Function that gives back the memory that is no longer used.
    """

    device: torch.device
    peers: tuple[Peer, ...]
    description: Mapping[str, Any]
    stopwatch: Stopwatch
    replay: Callable[[Callable[[Tensor], Outcome], Sequence[Tensor]], list[Callable[[], Outcome]]]
    ceilings: Callable[[], dict[str, float]]
    use: Callable[[], AbstractContextManager[Any]]
    free: Callable[[], None]


def open_gpu(name: str) -> Gpu:
    """Opens an NVIDIA GPU that the kernels can run on.

    Arguments:
        name: "cuda" for the first one, or "cuda:1".

    Raises:
        ValueError: If there is none; the message says what there is and what to do.
    """
    index = torch.device(name).index or 0
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ValueError(
            f"--device {name} needs an NVIDIA GPU, but there is {cuda_status()}; run it on a machine with a GPU and a "
            "PyTorch for CUDA, or measure the CPU with --device cpu"
        )
    if index >= count:
        last = "" if count == 1 else f" to cuda:{count - 1}"
        raise ValueError(
            f"--device {name} needs {index + 1} GPUs, but there is {cuda_status()}; choose --device cuda:0{last}"
        )
    if reason := capabilities()["cuda"]:
        raise ValueError(f"--device {name} needs the CUDA kernels, but they cannot run here: {reason}")
    device = torch.device("cuda", index)
    properties = torch.cuda.get_device_properties(device)
    return Gpu(
        device=device,
        peers=CUDA_PEERS,
        description={
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
        },
        stopwatch=cuda_events,
        replay=replayed,
        ceilings=partial(ceilings.rates, device, cuda_events),
        use=partial(torch.cuda.device, device),
        free=torch.cuda.empty_cache,
    )
