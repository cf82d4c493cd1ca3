"""The settings of every method: sizes and tolerances in settings.toml, learning rates found by `tune` in rates.json."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

SETTINGS = Path(__file__).parent / "settings.toml"
RATES = Path(__file__).parent / "rates.json"


def of(method: str, data: str) -> dict[str, Any]:
    """Returns a method's settings on a data set: those of settings.toml, with the tuned learning rate if any."""
    table = tomllib.loads(SETTINGS.read_text(encoding="utf-8"))[method]
    particular = table.pop("data", {}).get(data, {})
    tuned = rates().get(method, {}).get(data)
    return table | particular | ({} if tuned is None else {"learning_rate": tuned["learning_rate"]})


def candidates(method: str) -> list[float]:
    """Returns the learning rates that `tune` tries; none for a method that is not tuned."""
    return tomllib.loads(SETTINGS.read_text(encoding="utf-8"))["tune"].get(method, [])


def rates() -> dict[str, dict[str, Any]]:
    """Returns the results of `tune`, by method and data set: chosen learning rate, budget and every rate's NLL."""
    return json.loads(RATES.read_text(encoding="utf-8")) if RATES.is_file() else {}
