"""The search for every peer's learning rate, on validation rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fixed_budget import settings
from fixed_budget.driver import place, run_missing
from fixed_budget.problem import name_of
from fixed_budget.worker import Job
from jkoflow import checkpoint


def tune(
    sources: Sequence[str], methods: Sequence[str], budget: float, threads: int, folder: Path, slots: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Trains every method at every candidate rate on every data set.

    Returns:
        By method, data set and budget in seconds (such as ``"10"``): ``learning_rate`` with the smallest validation NLL
        and ``val_nll`` of every rate.
    """
    jobs = [
        Job(source, method, 0, budget, threads, rate, test=False)
        for source in sources
        for method in methods
        for rate in settings.candidates(method)
    ]
    failures = run_missing(jobs, folder, slots)
    if failures:
        raise SystemExit("\n".join(["some runs failed; run the command again:", *failures]))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for job in jobs:
        record = json.loads(place(job, folder).read_text(encoding="utf-8"))
        entries = found.setdefault(job.method, {}).setdefault(name_of(job.source), {})
        entry = entries.setdefault(f"{budget:g}", {"val_nll": {}})
        nll = record["val_nll"]
        entry["val_nll"][f"{job.learning_rate:g}"] = None if nll is None else round(nll, 4)
    for entry in (entry for data in found.values() for entries in data.values() for entry in entries.values()):
        entry["learning_rate"] = best_rate(entry["val_nll"])
    return found


def best_rate(nll: dict[str, float | None]) -> float:
    """Returns the rate of the smallest NLL; a rate without an NLL is the worst."""
    return float(min((math.inf if value is None else value, rate) for rate, value in nll.items())[1])


def keep(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Adds the results of `tune` to rates.json, beside those of other budgets."""
    known = settings.rates()
    for method, entries in found.items():
        for data, budgets in entries.items():
            known.setdefault(method, {}).setdefault(data, {}).update(budgets)
    checkpoint.write_atomically(settings.RATES, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
