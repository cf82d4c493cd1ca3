"""The whole benchmark: it checks and times all peers at every shape and records the results."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from jkoflow.bench import memory, one_by_one, paired
from jkoflow.bench.allocator import keep_freed_memory
from jkoflow.bench.candidate import reference
from jkoflow.bench.deadline import Deadline
from jkoflow.bench.gpu import Gpu, open_gpu
from jkoflow.bench.peers import MEASURED_MEMORY, PEERS
from jkoflow.bench.progress import Progress
from jkoflow.bench.record import FORMAT, chosen, one_line, packages
from jkoflow.bench.settings import Settings, device_type
from jkoflow.environment import describe
from jkoflow.ops import FallbackWarning


def measure(
    settings: Settings,
    progress: Progress,
    save: Callable[[dict[str, Any]], None] = lambda record: None,
    gpu: Gpu | None = None,
) -> dict[str, Any]:
    """Runs the benchmark in this process, whose allocator and number of threads stay as it sets them.

    Arguments:
        settings: Settings of the benchmark.
        progress: Receives the benchmark's news.
        save: Function that is called with the record so far: on the CPU after every shape, on a GPU after every
            measurement.
        gpu: GPU to measure on; by default the settings' device.

    Returns:
        The record, as JSON can hold it: ``format``, ``environment``, ``settings``, ``reference`` (the names of the
        peers that others are compared with), ``shapes`` with the figures of each peer, and ``memory``.

    Raises:
        ValueError: If the settings ask for a GPU that is not available.
    """
    if gpu is None and device_type(settings.device) == "cuda":
        gpu = open_gpu(settings.device)
    peers = chosen(PEERS if gpu is None else gpu.peers, settings)
    deadline = Deadline(settings.seconds)
    torch.set_num_threads(settings.threads)
    surroundings = {"allocator": keep_freed_memory()} if gpu is None else {"gpu": dict(gpu.description)}
    record: dict[str, Any] = {
        "format": FORMAT,
        "environment": describe() | surroundings | {"packages": packages()},
        "settings": {name: value for name, value in asdict(settings).items() if name != "shapes"},
        "reference": reference(peers),
        "shapes": [],
        "memory": None,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # the figures carry a note instead
        if gpu is not None:
            with gpu.use():
                one_by_one.measure_shapes(
                    peers, settings, gpu, deadline, progress, record["shapes"], lambda: save(record)
                )
            return record
        progress.start(len(settings.shapes) + settings.memory)
        for shape in settings.shapes:
            progress.part(shape.text)
            record["shapes"].append(paired.measure_shape(shape, peers, settings, deadline, progress.detail))
            progress.measured(record["shapes"][-1])
            save(record)
    if settings.memory:
        progress.part("memory")
        record["memory"] = measure_memory(settings, deadline, progress.detail)
    return record


def measure_memory(settings: Settings, deadline: Deadline, detail: Callable[[str], None]) -> dict[str, Any]:
    """Measures the bytes per row of one training step by peer and shape, or says why they are not measured."""
    reason = memory.unsupported()
    if reason is None and not deadline.allows():
        reason = "no time left"
    if reason is not None:
        return {"method": None, "note": f"not measured: {reason}", "bytes_per_row": {}, "failed": {}}
    found, failed = {}, {}
    for peer in chosen(PEERS, settings):
        if peer.name not in MEASURED_MEMORY or peer.missing():
            continue
        detail(f"memory of {peer.name}")
        try:
            found[peer.name] = memory.measure(peer.name, settings.shapes)
        except RuntimeError as error:
            failed[peer.name] = one_line(error)
    return {"method": memory.METHOD, "note": None, "bytes_per_row": found, "failed": failed}
