"""The figures of the group "adaptive" as tables in Markdown, which README holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jkoflow.bench.adaptive.measure import FORMAT
from jkoflow.bench.table import number, surroundings

HEADINGS = (
    "a training iteration",
    "ms",
    "evaluations",
    "error of log_prob (largest)",
    "x ours, same tolerances",
    "x ours, error no larger",
)


def markdown(record: Mapping[str, Any]) -> str:
    """Returns the tables of a record and their notes.

    Raises:
        ValueError: If the record has another format.
    """
    if (record.get("group"), record.get("format")) != ("adaptive", FORMAT):
        raise ValueError(
            f"the record must be of group adaptive and format {FORMAT}, got {record.get('group')} and "
            f"{record.get('format')}; run jkoflow bench --group adaptive again"
        )
    parts = [table(entry) for entry in record["cases"]]
    parts += [notes(record), surroundings(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(entry: Mapping[str, Any]) -> str:
    """Returns the table of one case."""
    lines = [(entry["title"], *HEADINGS[1:]), ("---", *["---:"] * (len(HEADINGS) - 1)), *lines_of(entry)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def lines_of(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the cells of all lines: ours at the published tolerances first, then everybody else."""
    ours = [("jkoflow", *_common(result), "", "") for result in entry["ours"] if result["factor"] == 1.0]
    return [*ours, *map(row, entry["peers"])]


def row(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the cells of a peer: its name, its figures, and how many times ours its time is."""
    if "ms" not in result:
        return (result["peer"], result["status"], *[""] * (len(HEADINGS) - 2))
    same = "less accurate" if result["of_ours"] is None else number(result["of_ours"])
    accurate = "-" if result["factor"] is None else f"{number(result['of_as_accurate'])} (x {result['factor']:.2g})"
    return (result["peer"], *_common(result), same, accurate)


def notes(record: Mapping[str, Any]) -> str:
    """Returns the notes to cases and peers; equal notes share a line."""
    places: dict[tuple[str, str], list[str]] = {}
    for entry in record["cases"]:
        told = [("jkoflow", result["note"]) for result in entry["ours"]]
        told += [(result["peer"], result["note"]) for result in entry["peers"]]
        for who, note in told:
            if note and entry["case"] not in (where := places.setdefault((who, note), [])):
                where.append(entry["case"])
    return "\n".join(f"- {who}: {note} ({', '.join(where)})" for (who, note), where in places.items())


def _common(result: Mapping[str, Any]) -> tuple[str, str, str]:
    errors = result["errors"]
    count = "" if result["evaluations"] is None else f"{result['evaluations']:.0f}"
    return number(result["ms"]), count, f"{errors['rms']:.0e} ({errors['largest']:.0e})"
