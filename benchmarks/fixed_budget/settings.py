"""The settings of every method: sizes and tolerances in settings.toml, learning rates found by `tune` in rates.json."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SETTINGS = Path(__file__).parent / "settings.toml"
RATES = Path(__file__).parent / "rates.json"


def of(method: str, data: str, budget: float) -> dict[str, Any]:
    """Returns a method's settings on a data set: those of settings.toml, with the tuned learning rate if any.

    The rate, and what depends on the budget, are those of the budget whose ratio to the given one is nearest to one.
    """
    table = tomllib.loads(SETTINGS.read_text(encoding="utf-8"))[method]
    particular = table.pop("data", {}).get(data, {})
    by_budget = table.pop("budgets", {})
    if by_budget:
        table |= by_budget[_nearest(by_budget, budget)]
    tuned = tuned_at(method, data, budget)
    if tuned is None:
        return table | particular
    return table | particular | {"learning_rate": rates()[method][data][f"{tuned:g}"]["learning_rate"]}


def tuned_at(method: str, data: str, budget: float) -> float | None:
    """Returns the budget in seconds at which a learning rate was tuned and which is nearest; None without one."""
    tuned = rates().get(method, {}).get(data, {})
    return float(_nearest(tuned, budget)) if tuned else None


def _nearest(budgets: Iterable[str], budget: float) -> str:
    """Returns the one of budgets in seconds whose ratio to the given one is nearest to one."""
    return min(budgets, key=lambda text: abs(math.log(float(text) / budget)))


def candidates(method: str) -> list[float]:
    """Returns the learning rates that `tune` tries; none for a method that is not tuned."""
    return tomllib.loads(SETTINGS.read_text(encoding="utf-8"))["tune"].get(method, [])


def rates() -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the results of `tune`, by method, data set and budget in seconds: chosen rate and every rate's NLL."""
    return json.loads(RATES.read_text(encoding="utf-8")) if RATES.is_file() else {}
