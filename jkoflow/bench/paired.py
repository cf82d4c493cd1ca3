"""The measurement on the CPU: at each shape all peers in the same rounds, beside the matrix products of the floor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from jkoflow.bench import agreement, floor, record
from jkoflow.bench.candidate import Candidate, Peer, reference
from jkoflow.bench.case import Case
from jkoflow.bench.deadline import Deadline
from jkoflow.bench.settings import Settings
from jkoflow.bench.shapes import DIRECTIONS, Direction, Shape
from jkoflow.bench.timing import Rounds, Timer, ratio, rounds


def measure_shape(
    shape: Shape, peers: Sequence[Peer], settings: Settings, deadline: Deadline, detail: Callable[[str], None]
) -> dict[str, Any]:
    """Measures every peer at one shape.

    Returns:
        ``shape``, ``floor_gflops`` (for each direction the rates of the products that were timed with it, the fastest
        of which is the floor) and ``peers``: for each peer its name, its ``status`` (``measured``, ``not installed``,
        ``left out``, ``failed`` or ``disagrees``), a ``note``, its ``evaluations`` in a solve (of a peer that chooses
        its own steps), its ``errors`` against ours, and for each direction the milliseconds ``ms`` (a median), the
        times ``of_ours`` it takes, the milliseconds of each round, and, for ours, the share ``of_floor``.
    """
    entry: dict[str, Any] = {
        "shape": shape._asdict(),
        "peers": [record.blank(peer, settings) for peer in peers],
        "floor_gflops": {},
    }
    candidates: dict[str, Candidate] = {}
    try:
        _check_all(Case(shape, settings.device), peers, entry, candidates, deadline, detail)
        for direction in DIRECTIONS if candidates else ():
            _time(direction, shape, peers, candidates, settings, entry, detail)
        return entry
    finally:
        for candidate in candidates.values():
            candidate.close()


def _check_all(
    case: Case,
    peers: Sequence[Peer],
    entry: dict[str, Any],
    candidates: dict[str, Candidate],
    deadline: Deadline,
    detail: Callable[[str], None],
) -> None:
    """Keeps the candidates that compute the same as ours, and records what is wrong with the others."""
    right: dict[bool, agreement.Expected] = {}
    for peer, result in zip(peers, entry["peers"], strict=True):
        detail(f"checking {peer.name}")
        if result["status"] != "measured":
            continue
        if not deadline.allows():
            result["status"], result["note"] = "left out", record.NO_TIME
            continue
        if peer.estimate not in right:
            right[peer.estimate] = agreement.expected(case, peer.estimate)
        try:
            _check(peer, case, right[peer.estimate], result, candidates)
        except Exception as error:  # one broken peer must not cost the figures of the others
            result["status"], result["note"] = "failed", record.one_line(error)


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
        result["errors"] = record.finite(errors)
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
    products = floor.timers()
    timers = dict(products)
    timed = []
    for peer, result in zip(peers, entry["peers"], strict=True):
        if peer.name in candidates and direction in peer.directions and result["status"] == "measured":
            timers[peer.name] = _guarded(candidates[peer.name], direction, result)
            timed.append((peer, result))
    times = rounds(timers, settings.rounds, settings.budget, lambda name: detail(f"{direction}: {name}"))
    entry["floor_gflops"][direction] = floor.gflops(times, products)
    ours = times.get(reference(peers)[direction], [math.inf])
    for peer, result in timed:
        if result["status"] == "measured":
            result[direction] = _figures(peer, direction, shape, times[peer.name], ours, floor.fastest(times, products))


def _guarded(candidate: Candidate, direction: Direction, result: dict[str, Any]) -> Timer:
    """Returns the candidate's timer; if a run fails, the status says so and the other candidates go on."""

    def timer(repeats: int) -> float:
        if result["status"] == "measured":
            try:
                return candidate.seconds(direction, repeats)
            except Exception as error:
                result["status"], result["note"] = "failed", record.one_line(error)
        return math.inf

    return timer


def _figures(
    peer: Peer, direction: Direction, shape: Shape, times: Rounds, ours: Rounds, floor_times: Rounds
) -> dict[str, Any]:
    figures = record.figures(times)
    if all(map(math.isfinite, filter(None, ours))):
        figures["of_ours"] = ratio(times, ours)
    work = record.work(peer, shape, direction)
    if work is not None:
        figures["of_floor"] = work / floor.FLOPS * ratio(floor_times, times)
    return figures
