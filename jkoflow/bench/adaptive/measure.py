"""The measurement of the group "adaptive": everybody's error against float64 first, then a training iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jkoflow.bench.adaptive.cases import CASES, UserCase
from jkoflow.bench.adaptive.ours import FACTORS, ours
from jkoflow.bench.adaptive.rivals import RIVALS, Rival
from jkoflow.bench.adaptive.settings import AdaptiveSettings
from jkoflow.bench.allocator import keep_freed_memory
from jkoflow.bench.candidate import Candidate
from jkoflow.bench.case import Solution
from jkoflow.bench.deadline import Deadline
from jkoflow.bench.progress import Progress
from jkoflow.bench.record import NO_TIME, figures, finite, one_line, packages
from jkoflow.bench.timing import Timer, ratio, rounds
from jkoflow.environment import describe

FORMAT = 1
"""Version of the record's format."""

EXACT = 1e-4
"""Factor on the tolerances of the solution in float64 that errors are measured against."""

WRONG = {"rms": 1e-2, "gradient": 5e-2}
"""Errors beyond which somebody computes something else: of log_prob in nats, and of the gradient relative to its norm.
The published tolerances leave 1e-3 and 2e-3 at most."""


class Exact(NamedTuple):
    """The results that errors are measured against, in float64."""

    log_prob: Tensor
    gradient: Tensor


def measure(
    settings: AdaptiveSettings, progress: Progress, save: Callable[[dict[str, Any]], None] = lambda record: None
) -> dict[str, Any]:
    """Runs the group in this process, whose allocator and number of threads stay as it sets them.

    Arguments:
        settings: Settings of the group.
        progress: Receives the news.
        save: Function that is called with the record so far after every case.

    Returns:
        The record, as JSON can hold it: ``format``, ``group``, ``environment``, ``settings`` and ``cases``, see
        `measure_case`.
    """
    torch.set_num_threads(settings.threads)
    deadline = Deadline(settings.seconds)
    surroundings = {"allocator": keep_freed_memory(), "packages": packages(RIVALS)}
    record: dict[str, Any] = {
        "format": FORMAT,
        "group": "adaptive",
        "environment": describe() | surroundings,
        "settings": asdict(settings),
        "cases": [],
    }
    progress.start(len(settings.cases))
    for name in settings.cases:
        case = CASES[name](settings.rows)
        progress.part(case.title)
        record["cases"].append(measure_case(case, settings, deadline, progress.detail))
        progress.measured(record["cases"][-1])
        save(record)
    return record


def exact(case: UserCase) -> Exact:
    """Solves a case in float64 with tolerances that leave no error to be seen."""
    double = case.double()
    solver = ours(double, EXACT)
    log_prob = double.log_prob(solver.forward())
    return Exact(log_prob, _flat(solver.gradient()))


def errors(case: UserCase, solution: Solution, gradient: list[Tensor], right: Exact) -> dict[str, float]:
    """Measures the errors of results.

    Returns:
        ``rms`` and ``largest``, the errors of log_prob in nats, and ``gradient``, relative to the norm.
    """
    off = (case.log_prob(Solution(*(tensor.double() for tensor in solution))) - right.log_prob).abs()
    difference = _flat(gradient) - right.gradient
    return {
        "rms": float(off.square().mean().sqrt()),
        "largest": float(off.max()),
        "gradient": float(difference.norm() / right.gradient.norm()),
    }


def measure_case(
    case: UserCase, settings: AdaptiveSettings, deadline: Deadline, detail: Callable[[str], None]
) -> dict[str, Any]:
    """Measures everybody on one case.

    Returns:
        ``case``, ``title``, ``interval``, ``rtol``, ``atol``, ``rows``; ``ours``: for each factor on the
        tolerances that is compared with somebody its ``evaluations``, ``errors``, ``ms`` and ``rounds_ms``; ``peers``:
        the same of everybody else, with ``status`` (``measured``, ``not installed``, ``left out``, ``failed``,
        ``disagrees``), the times ``of_ours`` that it takes at the same tolerances, None if our error is larger there,
        the largest ``factor`` at which our error is no larger, None if there is none, and the times ``of_as_accurate``.
    """
    rivals = [rival for rival in RIVALS if case.kind in rival.kinds and rival.library in settings.libraries]
    entry: dict[str, Any] = {
        "case": case.name,
        "title": case.title,
        "interval": list(case.interval),
        "rtol": case.rtol,
        "atol": case.atol,
        "rows": len(case.x),
        "ours": [],
        "peers": [_blank(rival, settings) for rival in rivals],
    }
    candidates: dict[str, Candidate] = {}
    try:
        if deadline.allows():
            _check_all(case, rivals, entry, candidates, detail)
            _time(entry, candidates, settings, detail)
        else:
            for result in entry["peers"]:
                result["status"], result["note"] = "left out", NO_TIME
        return entry
    finally:
        for candidate in candidates.values():
            candidate.close()


def broken(record: Mapping[str, Any]) -> list[str]:
    """Returns one line for each peer that failed or computes something else; none if all is well."""
    return [
        f"{result['peer']} at {entry['title']} {result['status']}: {result['note']}"
        for entry in record["cases"]
        for result in entry["peers"]
        if result["status"] in ("failed", "disagrees")
    ]


def _blank(rival: Rival, settings: AdaptiveSettings) -> dict[str, Any]:
    status, note = "measured", None
    missing = rival.missing()
    if missing:
        status, note = "not installed", f"{', '.join(missing)} not installed (pip install jkoflow[bench])"
    elif rival.optional is not None and not settings.compiled:
        status, note = "left out", rival.optional
    return {
        "peer": rival.name,
        "status": status,
        "note": note,
        "evaluations": None,
        "errors": {},
        "of_ours": None,
        "factor": None,
        "of_as_accurate": None,
    }


def _check_all(
    case: UserCase,
    rivals: list[Rival],
    entry: dict[str, Any],
    candidates: dict[str, Candidate],
    detail: Callable[[str], None],
) -> None:
    detail("solving in float64")
    right = exact(case)
    found = {}
    for factor in FACTORS:
        detail(f"checking {_key(factor)}")
        candidate = candidates[_key(factor)] = ours(case, factor)
        found[factor] = {**_result(case, candidate, right), "factor": factor, "note": candidate.note}
    wrong = disagreement(found[1.0]["errors"])
    if wrong is not None:
        raise RuntimeError(f"jkoflow itself is wrong at {case.title}: {wrong}")
    for rival, result in zip(rivals, entry["peers"], strict=True):
        if result["status"] != "measured":
            continue
        detail(f"checking {rival.name}")
        try:
            candidate = candidates[rival.name] = rival.build(case)
            measured = _result(case, candidate, right)
        except Exception as error:  # one broken peer must not cost the figures of the others
            result["status"], result["note"] = "failed", one_line(error)
            continue
        wrong = disagreement(measured["errors"])
        if wrong is not None:
            result["status"], result["note"] = "disagrees", wrong
        result["evaluations"], result["errors"] = measured["evaluations"], finite(measured["errors"])
        result["factor"] = next((f for f in FACTORS if as_accurate(found[f]["errors"], measured["errors"])), None)
    compared = {1.0, *(result["factor"] for result in entry["peers"])}
    entry["ours"] = [found[factor] for factor in FACTORS if factor in compared]


def as_accurate(errors: dict[str, float], others: dict[str, float]) -> bool:
    """Tells whether errors of log_prob are no larger than others, both their root mean square and the largest."""
    return all(errors[name] <= others[name] for name in ("rms", "largest"))


def disagreement(found: dict[str, float]) -> str | None:
    """Says which error is too large for any tolerance here; returns None if none is."""
    wrong = [
        f"{name} is off by {found[name]:.1e}, allowed {most:g}"
        for name, most in WRONG.items()
        if not found[name] <= most
    ]
    return "; ".join(wrong) or None


def _time(
    entry: dict[str, Any],
    candidates: dict[str, Candidate],
    settings: AdaptiveSettings,
    detail: Callable[[str], None],
) -> None:
    results = {_key(result["factor"]): result for result in entry["ours"]}
    peers = {result["peer"]: result for result in entry["peers"] if result["status"] == "measured"}
    timers: dict[str, Timer] = {name: _timer(candidates[name]) for name in results}
    timers |= {name: _guarded(candidates[name], result) for name, result in peers.items()}
    times = rounds(timers, settings.rounds, settings.budget, detail)
    for name, result in (results | peers).items():
        if result.get("status", "measured") == "measured":
            result |= figures(times[name])
    for name, result in peers.items():
        if result["status"] != "measured":
            continue
        if as_accurate(results[_key(1.0)]["errors"], result["errors"]):
            result["of_ours"] = ratio(times[name], times[_key(1.0)])
        if result["factor"] is not None:
            result["of_as_accurate"] = ratio(times[name], times[_key(result["factor"])])


def _timer(candidate: Candidate) -> Timer:
    return lambda repeats: candidate.seconds("forward+backward", repeats)


def _guarded(candidate: Candidate, result: dict[str, Any]) -> Timer:
    """Returns the candidate's timer; if a run fails, the status says so and the others go on."""

    def timer(repeats: int) -> float:
        if result["status"] == "measured":
            try:
                return candidate.seconds("forward+backward", repeats)
            except Exception as error:
                result["status"], result["note"] = "failed", one_line(error)
        return math.inf

    return timer


def _result(case: UserCase, candidate: Candidate, right: Exact) -> dict[str, Any]:
    solution = candidate.forward()
    evaluations = candidate.evaluations  # of the solve alone: an adjoint evaluates again
    return {"evaluations": evaluations, "errors": errors(case, solution, candidate.gradient(), right)}


def _key(factor: float) -> str:
    return f"jkoflow, tolerances x {factor:.3g}"


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).double()
