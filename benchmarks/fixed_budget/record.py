"""The record of a comparison: all its runs in one small file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fixed_budget.methods import METHODS
from fixed_budget.worker import FORMAT

DIGITS = 6


def collect(*folders: Path) -> dict[str, Any]:
    """Collects the records of directories, such as those of several budgets; equal environments are held once.

    Raises:
        ValueError: If there are no records, or a record has another format.
    """
    runs, environments = [], []
    for path in sorted(path for folder in folders for path in folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if run.get("format") != FORMAT:
            raise ValueError(f"{path} must have format {FORMAT}, got {run.get('format')}; run the comparison again")
        environment = run.pop("environment")
        if environment not in environments:
            environments.append(environment)
        del run["format"]
        runs.append(_rounded({**run, "environment": environments.index(environment)}))
    if not runs:
        raise ValueError(f"{', '.join(map(str, folders))} holds no records; run the comparison first")
    order = {name: place for place, name in enumerate(METHODS)}
    runs.sort(key=lambda run: (run["budget"], run["dim"], run["data"], order[run["method"]], run["seed"]))
    return {"format": FORMAT, "environments": environments, "runs": runs}


def read(path: Path) -> dict[str, Any]:
    """Reads a record that `write` wrote.

    Raises:
        ValueError: If the record has another format.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("format") != FORMAT:
        raise ValueError(f"{path} must have format {FORMAT}, got {record.get('format')}; run the comparison again")
    return record


def write(record: dict[str, Any], path: Path) -> None:
    """Writes a record, one line per run."""
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in record["runs"])
    head = json.dumps({"format": record["format"], "environments": record["environments"]}, indent=1)
    path.write_text(f'{head.removesuffix("}").rstrip()},\n "runs": [\n{lines}\n]}}\n', encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
