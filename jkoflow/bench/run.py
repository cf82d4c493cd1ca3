"""The whole benchmark: checks and times everybody at every shape and writes down what it found."""

from __future__ import annotations

import importlib.metadata
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from jkoflow.bench import agreement, floor, memory
from jkoflow.bench.allocator import keep_freed_memory
from jkoflow.bench.candidate import Candidate, Peer
from jkoflow.bench.case import Case
from jkoflow.bench.peers import FUSED, LIBRARIES, MEASURED_MEMORY, OURS, PEERS, SPLIT, SPLIT_FUSED
from jkoflow.bench.shapes import DIRECTIONS, SHAPES, Direction, Shape, flops
from jkoflow.bench.timing import Rounds, Timer, median, ratio, rounds
from jkoflow.environment import describe
from jkoflow.ops import FallbackWarning

FORMAT = 2
"""Version of the record."""

REFERENCE: dict[Direction, str] = {"forward": OURS, "forward+backward": FUSED}
"""Whom the others are compared with."""


@dataclass(frozen=True)
class Settings:
    """What to measure and for how long.

    Arguments:
        shapes: Sizes.
        libraries: Which of `jkoflow.bench.peers.LIBRARIES`; jkoflow is always among them.
        threads: Threads of everybody.
        rounds: Paired rounds.
        budget: Seconds of each candidate in a round.
        compiled: Whether to compile what ``torch.compile`` can.
        memory: Whether to measure the memory that training takes on the CPU.
        device: Where the tensors live; peers that run on the CPU alone are left out elsewhere.

    Raises:
        ValueError: If a number is not positive or a library is not known.
    """

    shapes: tuple[Shape, ...] = SHAPES
    libraries: tuple[str, ...] = LIBRARIES
    threads: int = field(default_factory=torch.get_num_threads)
    rounds: int = 7
    budget: float = 0.1
    compiled: bool = False
    memory: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ValueError("shapes must name at least one shape, got none")
        unknown = [name for name in self.libraries if name not in LIBRARIES]
        if unknown:
            raise ValueError(f"peers must be among {', '.join(LIBRARIES)}, got {', '.join(unknown)}")
        for name in ("threads", "rounds", "budget"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class Progress(Protocol):
    """Is told what happens."""

    def start(self, parts: int) -> None:
        """That many shapes and, with memory, one part more will be measured."""

    def part(self, text: str) -> None:
        """The next part begins."""

    def detail(self, text: str) -> None:
        """What is being done now."""

    def shape_done(self, entry: dict[str, Any]) -> None:
        """A shape's figures are there."""


def run(settings: Settings, progress: Progress) -> dict[str, Any]:
    """Runs the benchmark in this process, whose allocator and number of threads stay as it sets them.

    Arguments:
        settings: What to measure.
        progress: Is told what happens.

    Returns:
        The record, as JSON can hold it: ``format``, ``environment``, ``settings``, ``shapes`` with the figures of each
        peer, and ``memory``.
    """
    allocator = keep_freed_memory()
    torch.set_num_threads(settings.threads)
    progress.start(len(settings.shapes) + settings.memory)
    entries = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # the figures carry a note instead
        for shape in settings.shapes:
            progress.part(shape.text)
            entries.append(measure_shape(shape, settings, progress.detail))
            progress.shape_done(entries[-1])
    if settings.memory:
        progress.part("memory")
    return {
        "format": FORMAT,
        "environment": describe() | {"allocator": allocator, "packages": _packages()},
        "settings": {name: value for name, value in asdict(settings).items() if name != "shapes"},
        "shapes": entries,
        "memory": measure_memory(settings, progress.detail) if settings.memory else None,
    }


def measure_shape(shape: Shape, settings: Settings, detail: Callable[[str], None]) -> dict[str, Any]:
    """The figures of every peer at one shape.

    Returns:
        ``shape``, ``floor_gflops`` (for each direction the rates of the products that were timed with it, the fastest
        of which is the floor) and ``peers``: of each its name, its ``status`` (``measured``, ``not installed``,
        ``left out``, ``failed`` or ``disagrees``), a ``note``, its ``evaluations`` in a solve (of a peer that chooses
        its own steps), its ``errors`` against ours, and for each direction the milliseconds ``ms`` (a median), the
        times ``of_ours`` it takes, the milliseconds of each round, and, for ours, the share ``of_floor``.
    """
    case = Case(shape, settings.device)
    peers = [peer for peer in PEERS if peer.library in {*settings.libraries, "jkoflow"}]
    right = {estimate: agreement.expected(case, estimate) for estimate in (False, True)}
    results: dict[str, dict[str, Any]] = {}
    candidates: dict[str, Candidate] = {}
    try:
        for peer in peers:
            detail(f"checking {peer.name}")
            result = results[peer.name] = {
                "peer": peer.name,
                "status": "measured",
                "note": None,
                "evaluations": None,
                "errors": {},
            }
            result["status"], result["note"] = _standing(peer, settings)
            if result["status"] == "measured":
                try:
                    _check(peer, case, right[peer.estimate], result, candidates)
                except Exception as error:  # one broken peer must not cost the figures of the others
                    result["status"], result["note"] = "failed", _one_line(error)
        entry = {"shape": shape._asdict(), "peers": list(results.values())}
        for direction in DIRECTIONS:
            _time(direction, shape, [p for p in peers if p.name in candidates], candidates, settings, entry, detail)
        return entry
    finally:
        for candidate in candidates.values():
            candidate.close()


def measure_memory(settings: Settings, detail: Callable[[str], None]) -> dict[str, Any]:
    """Bytes per row of one training step by peer and shape, or why there are none."""
    reason = memory.unsupported()
    if reason is not None:
        return {"method": None, "note": f"not measured: {reason}", "bytes_per_row": {}, "failed": {}}
    found, failed = {}, {}
    for peer in PEERS:
        if peer.name not in MEASURED_MEMORY or peer.library not in {*settings.libraries, "jkoflow"} or peer.missing():
            continue
        detail(f"memory of {peer.name}")
        try:
            found[peer.name] = memory.measure(peer.name, settings.shapes)
        except RuntimeError as error:
            failed[peer.name] = _one_line(error)
    return {"method": memory.METHOD, "note": None, "bytes_per_row": found, "failed": failed}


def broken(record: dict[str, Any]) -> list[str]:
    """Peers that failed or that compute something else, one line each; empty if all is well."""
    lines = [
        f"{result['peer']} at {Shape(**entry['shape']).text} {result['status']}: {result['note']}"
        for entry in record["shapes"]
        for result in entry["peers"]
        if result["status"] in ("failed", "disagrees")
    ]
    used = record["memory"] or {"failed": {}}
    return lines + [f"{name}: its memory cannot be measured: {why}" for name, why in used["failed"].items()]


def _standing(peer: Peer, settings: Settings) -> tuple[str, str | None]:
    missing = peer.missing()
    if missing:
        return "not installed", f"{', '.join(missing)} not installed (pip install jkoflow[bench])"
    reason = peer.unavailable()
    if reason is not None:
        return "left out", reason
    if peer.optional is not None and not settings.compiled:
        return "left out", peer.optional
    if peer.cpu_only and torch.device(settings.device).type != "cpu":
        return "left out", f"measured on the CPU only, not on {settings.device}"
    return "measured", None


def _check(
    peer: Peer,
    case: Case,
    right: agreement.Expected,
    result: dict[str, Any],
    candidates: dict[str, Candidate],
) -> None:
    candidate = peer.build(case)
    try:
        result["note"], result["evaluations"] = candidate.note, candidate.evaluations
        errors = agreement.errors(peer, candidate, right)
        result["errors"] = {name: error if math.isfinite(error) else None for name, error in errors.items()}
        wrong = agreement.disagreement(peer, errors, case.shape.steps)
        if wrong is None:
            candidates[peer.name] = candidate
        else:
            result["status"], result["note"] = "disagrees", wrong
    finally:
        if peer.name not in candidates:
            candidate.close()


def _time(
    direction: Direction,
    shape: Shape,
    peers: Sequence[Peer],
    candidates: dict[str, Candidate],
    settings: Settings,
    entry: dict[str, Any],
    detail: Callable[[str], None],
) -> None:
    products = floor.timers(settings.device)
    timers = dict(products)
    results = {result["peer"]: result for result in entry["peers"]}
    for peer in peers:
        if direction in peer.directions and results[peer.name]["status"] == "measured":
            timers[peer.name] = _guarded(candidates[peer.name], direction, results[peer.name])
    times = rounds(timers, settings.rounds, settings.budget, lambda name: detail(f"{direction}: {name}"))
    entry.setdefault("floor_gflops", {})[direction] = floor.gflops(times, products)
    for name, result in results.items():
        if name in times and result["status"] == "measured":
            result[direction] = _figures(times, floor.fastest(times, products), name, direction, shape)


def _guarded(candidate: Candidate, direction: Direction, result: dict[str, Any]) -> Timer:
    """The candidate's timer; if it breaks, its status says so and the others go on."""

    def timer(repeats: int) -> float:
        if result["status"] == "measured":
            try:
                return candidate.seconds(direction, repeats)
            except Exception as error:
                result["status"], result["note"] = "failed", _one_line(error)
        return math.inf

    return timer


def _figures(
    times: dict[str, Rounds], floor_times: Rounds, name: str, direction: Direction, shape: Shape
) -> dict[str, Any]:
    own = times[name]
    figures: dict[str, Any] = {"ms": 1e3 * median(own), "rounds_ms": [t if t is None else 1e3 * t for t in own]}
    reference = REFERENCE[direction]
    if reference in times and all(map(math.isfinite, filter(None, times[reference]))):
        figures["of_ours"] = ratio(own, times[reference])
    if name in (OURS, FUSED, SPLIT, SPLIT_FUSED):
        work = flops(shape, direction, fused=name in (FUSED, SPLIT_FUSED))
        figures["of_floor"] = work / floor.FLOPS * ratio(floor_times, own)
    return figures


def _packages() -> dict[str, str]:
    names = sorted({name for peer in PEERS for name in peer.requires if not peer.missing()})
    return {name: importlib.metadata.version(name) for name in names}


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
