"""The sweep by which the default configuration is chosen: variations of one setting at a time, on validation rows."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fixed_budget.driver import run_missing
from fixed_budget.methods import OURS
from fixed_budget.record import collect, read, write
from fixed_budget.worker import Job

ROOT = Path(__file__).parent.parent.parent
VARIATIONS = Path(__file__).parent / "sweep.toml"
RECORD = ROOT / "benchmarks/results/sweep.json"
PAGE = ROOT / "docs/sweep.md"
START, END = "<!-- begin: benchmarks/compare.py sweep -->\n", "<!-- end: benchmarks/compare.py sweep -->"
DEFAULT = "default"


def variations() -> dict[str, dict[str, Any]]:
    """Returns the settings of the variations by label."""
    return tomllib.loads(VARIATIONS.read_text(encoding="utf-8"))["variations"]


def run(
    sources: Sequence[str], seeds: int, budget: float, folder: Path, slots: int, labels: Sequence[str] = ()
) -> None:
    """Runs the variations that have no record yet, or only those with the given labels, on one thread each.

    Raises:
        ValueError: If a label is unknown.
    """
    chosen = variations()
    if unknown := set(labels) - chosen.keys():
        raise ValueError(f"labels must be of {', '.join(chosen)}, got {', '.join(sorted(unknown))}")
    jobs = [
        Job(source, OURS, seed, budget, changes=chosen[label], label=label)
        for seed in range(seeds)
        for label in labels or chosen
        for source in sources
    ]
    failures = run_missing(jobs, folder, slots)
    if failures:
        raise SystemExit("\n".join(["some runs failed; the same command tries them again:", *failures]))


def keep(folder: Path) -> None:
    """Stores a directory's records, without their curves, in place of the stored ones of the same budget."""
    record = collect(folder)
    for found in record["runs"]:
        found["changes"] = variations()[found["label"]]
        del found["curve"]
    budgets = {found["budget"] for found in record["runs"]}
    if RECORD.exists():
        before = read(RECORD)
        kept = [found for found in before["runs"] if found["budget"] not in budgets]
        first = len(record["environments"])
        used = sorted({found["environment"] for found in kept})
        record["environments"] += [before["environments"][index] for index in used]
        record["runs"] += [{**found, "environment": first + used.index(found["environment"])} for found in kept]
    record["runs"].sort(key=lambda found: found["budget"])
    write(record, RECORD)


def tables(record: Mapping[str, Any]) -> str:
    """Returns a table for every budget, as Markdown."""
    budgets = sorted({found["budget"] for found in record["runs"]})
    return "\n".join(table([found for found in record["runs"] if found["budget"] == budget]) for budget in budgets)


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns, as Markdown, what every variation gains or loses against the default, in nats of the validation NLL."""
    data = list(dict.fromkeys(found["data"] for found in runs))
    seeds = len({found["seed"] for found in runs})

    def nll(label: str, name: str) -> float | None:
        values = [f["val_nll"] for f in runs if (f["label"], f["data"]) == (label, name)]
        return None if not values or None in values else mean(values)

    lines = [
        f"Validation NLL of the default in nats on standardised columns, and what each variation adds to it (less is "
        f"better): {runs[0]['budget']:g} s of processor time on one thread, {seeds} seed{'s' if seeds > 1 else ''}.",
        "",
        f"| variation | settings | {' | '.join(data)} | mean |",
        f"| --- | --- | {' | '.join(['---:'] * (len(data) + 1))} |",
    ]
    for label in dict.fromkeys(found["label"] for found in sorted(runs, key=_order)):
        changes = next(found["changes"] for found in runs if found["label"] == label)
        text = ", ".join(f"`{name} = {json.dumps(value)}`" for name, value in changes.items())
        if label == DEFAULT:
            cells = ["" if (value := nll(label, name)) is None else f"{value:.3f}" for name in data]
            lines.append(f"| **{label}** | | {' | '.join(cells)} | |")
            continue
        gaps: list[float | None] = []
        for name in data:
            value, base = nll(label, name), nll(DEFAULT, name)
            gaps.append(None if value is None or base is None else value - base)
        cells = ["" if gap is None else f"{gap:+.3f}" for gap in gaps]
        average = "" if None in gaps else f"{mean(gap for gap in gaps if gap is not None):+.3f}"
        lines.append(f"| {label} | {text} | {' | '.join(cells)} | {average} |")
    chosen = {f["data"]: f["initial_map"] for f in runs if f["label"] == DEFAULT and f["seed"] == 0}
    lines += ["", "Initial maps that the default chose: " + ", ".join(f"{k} `{v}`" for k, v in chosen.items()) + "."]
    return "\n".join(lines) + "\n"


def write_page() -> None:
    """Writes the generated part of the page.

    Raises:
        ValueError: If the page lacks the marks.
    """
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replaced(page, read(RECORD)), encoding="utf-8")


def replaced(page: str, record: Mapping[str, Any]) -> str:
    """Returns the page with another table between its marks."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{PAGE.name} must have the lines {START.strip()} and {END}")
    return f"{before}{START}\n{tables(record)}\n{END}{after}"


def _order(found: Mapping[str, Any]) -> int:
    return list(variations()).index(found["label"])
