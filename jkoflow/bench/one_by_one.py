"""The measurement on a GPU: one peer after the other, the most telling first, recorded one by one until time is up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any

import torch

from jkoflow.bench import agreement, record, tf32
from jkoflow.bench.candidate import Outcome, Peer, TorchCandidate, reference
from jkoflow.bench.case import Case
from jkoflow.bench.deadline import PATIENCE, Deadline, Overtime, time_limit
from jkoflow.bench.gpu import Gpu
from jkoflow.bench.progress import Progress
from jkoflow.bench.settings import Settings
from jkoflow.bench.shapes import Direction, Shape
from jkoflow.bench.stopwatch import in_turn
from jkoflow.bench.timing import rounds

NOT_REACHED = "not reached"
"""Note in the entry of every peer whose turn has not come, which remains if a benchmark is killed."""

SEVERITY = ("left out", "failed", "disagrees")

Problems = dict[Direction, tuple[str, str]]
"""Problems of a peer by direction: a status and the reason."""


def measure_shapes(
    peers: Sequence[Peer],
    settings: Settings,
    gpu: Gpu,
    deadline: Deadline,
    progress: Progress,
    entries: list[dict[str, Any]],
    save: Callable[[], None],
) -> None:
    """Measures the peers at the shapes, as far as there is time.

    Arguments:
        peers: All peers, ours first.
        settings: Settings of the benchmark.
        gpu: GPU to measure on.
        deadline: End of the time in which measurements are started.
        progress: Receives the benchmark's news.
        entries: List to which an entry for each shape is added, as `jkoflow.bench.paired.measure_shape` returns it but
            for two things. ``ceilings_gflops`` are the rates of the GPU's units in a large product, of which
            ``of_floor`` is the share. ``errors`` are those against float64.
        save: Function that is called whenever an entry has changed.
    """
    blank = [[record.blank(peer, settings) for peer in peers] for _ in settings.shapes]
    able = [peer for peer, result in zip(peers, blank[0], strict=True) if result["status"] == "measured"]
    parts = order(len(settings.shapes), able)
    progress.start(len(parts) + 1)
    progress.part("matrix products")
    ceilings = gpu.ceilings()
    for shape, results in zip(settings.shapes, blank, strict=True):
        for result in results:
            if result["status"] == "measured":
                result["status"], result["note"] = "left out", NOT_REACHED
        entries.append(
            {"shape": shape._asdict(), "peers": results, "floor_gflops": {}, "ceilings_gflops": dict(ceilings)}
        )
    save()
    for title, group, index in parts:
        shape, entry = settings.shapes[index], entries[index]
        progress.part(f"{shape.text}: {title}")
        results = {result["peer"]: result for result in entry["peers"]}
        if not deadline.allows():
            for peer in group:
                results[peer.name]["note"] = record.NO_TIME
            save()
            continue
        _Part(shape, entry, reference(peers), settings, gpu, deadline, progress, save).measure(group)
        progress.measured(entry | {"peers": [results[peer.name] for peer in group]})
        gpu.free()


def order(shapes: int, peers: Sequence[Peer]) -> list[tuple[str, list[Peer], int]]:
    """Returns the parts of a benchmark: name, peers and index of the shape.

    Ours and the quick peers come first at the first shape, then ours at all other shapes, then the peers that compile
    at the first shape, and then the rest.
    """
    ours = [peer for peer in peers if peer.library == "jkoflow"]
    slow = [peer for peer in peers if peer.compiling > 0]
    quick = [peer for peer in peers if peer not in ours and peer not in slow]
    others = range(1, shapes)
    parts = [("ours", ours, 0), ("others", quick, 0), *(("ours", ours, i) for i in others), ("compiled", slow, 0)]
    parts += [("others", quick, i) for i in others] + [("compiled", slow, i) for i in others]
    return [part for part in parts if part[1]]


class _Part:
    """The measurement of some peers at one shape."""

    def __init__(
        self,
        shape: Shape,
        entry: dict[str, Any],
        ours: dict[Direction, str],
        settings: Settings,
        gpu: Gpu,
        deadline: Deadline,
        progress: Progress,
        save: Callable[[], None],
    ) -> None:
        self.shape = shape
        self.results = {result["peer"]: result for result in entry["peers"]}
        self.ceilings = entry["ceilings_gflops"]
        self.ours = ours
        self.settings = settings
        self.gpu = gpu
        self.deadline = deadline
        self.progress = progress
        self.save = save

    @cached_property
    def case(self) -> Case:
        """Makes the case that all peers get."""
        return Case(self.shape, self.gpu.device)

    @cached_property
    def exact(self) -> agreement.Expected:
        """Computes the right result with the exact divergence, in float64."""
        return agreement.exact(self.case, estimate=False)

    @cached_property
    def estimated(self) -> agreement.Expected:
        """Computes the right result with Hutchinson's estimate, in float64."""
        return agreement.exact(self.case, estimate=True)

    def measure(self, peers: Sequence[Peer]) -> None:
        """Checks and times the peers, each direction by itself."""
        for peer in peers:
            problems: Problems = {}
            for direction in peer.directions:
                self.progress.detail(f"{direction}: {peer.name}")
                problem = self._try(peer, direction)
                if problem is not None:
                    problems[direction] = problem
                _conclude(peer, self.results[peer.name], problems)
                self.save()

    def _try(self, peer: Peer, direction: Direction) -> tuple[str, str] | None:
        """Measures a direction; if that does not succeed, returns the peer's status, and why."""
        needed = peer.needed(direction)
        if not self.deadline.allows(needed):
            return "left out", record.NO_TIME
        limit = time_limit(PATIENCE * needed) if peer.compiling else nullcontext()
        try:
            with tf32.products(peer.tf32), limit:
                return self._measure(peer, direction)
        except Overtime as overtime:
            return "left out", str(overtime)
        except torch.cuda.OutOfMemoryError:
            problem = "left out", "out of memory"
        except Exception as error:  # one broken peer must not cost the figures of the others
            problem = "failed", record.one_line(error)
        self.gpu.free()  # what the error's frames held is free only here
        return problem

    def _measure(self, peer: Peer, direction: Direction) -> tuple[str, str] | None:
        candidate = peer.build(self.case)
        try:
            if not isinstance(candidate, TorchCandidate):
                raise TypeError(f"{peer.name} does not run on PyTorch's tensors, as everybody on a GPU must")
            result = self.results[peer.name]
            result["note"], result["evaluations"] = candidate.note, candidate.evaluations
            run = partial(candidate.run, direction)
            runs: list[Callable[[], Outcome]] = (
                self.gpu.replay(run, self.case.batches) if peer.graph else [partial(run, x) for x in self.case.batches]
            )
            errors = agreement.distances(direction, runs[0](), self.estimated if peer.estimate else self.exact)
            result["errors"] |= record.finite(errors)
            wrong = agreement.disagreement(peer, errors, self.shape.steps)
            if wrong is not None:
                return "disagrees", wrong
            timer = partial(self.gpu.stopwatch, in_turn(runs))
            times = rounds({peer.name: timer}, self.settings.rounds, self.settings.budget, pause=None)[peer.name]
            result[direction] = self._figures(peer, direction, record.figures(times))
            return None
        finally:
            candidate.close()

    def _figures(self, peer: Peer, direction: Direction, figures: dict[str, Any]) -> dict[str, Any]:
        ours = figures if peer.name == self.ours[direction] else self.results[self.ours[direction]].get(direction)
        if ours is not None:
            figures["of_ours"] = figures["ms"] / ours["ms"]
        work = record.work(peer, self.shape, direction)
        if peer.work is not None and work is not None:
            figures["of_floor"] = work / (1e6 * figures["ms"] * self.ceilings[peer.work.unit])
        return figures


def _conclude(peer: Peer, result: dict[str, Any], problems: Problems) -> None:
    """Records in the status and the note of a peer how far its measurement came."""
    reasons = {direction: why for direction, (_, why) in problems.items()}
    reasons |= {d: NOT_REACHED for d in peer.directions if d not in result and d not in problems}
    if not reasons:
        result["status"] = "measured"
        return
    result["status"] = max((status for status, _ in problems.values()), key=SEVERITY.index, default="left out")
    everywhere = len(reasons) == len(peer.directions) and len(set(reasons.values())) == 1
    if everywhere:
        result["note"] = next(iter(reasons.values()))
    else:
        result["note"] = "; ".join(f"{direction}: {why}" for direction, why in reasons.items())
