"""The page of the comparison in the documentation, whose part between two marks is generated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fixed_budget.table import markdown

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs/comparison.md"
RECORD = ROOT / "benchmarks/results/fixed_budget.json"
START, END = "<!-- begin: benchmarks/compare.py -->\n", "<!-- end: benchmarks/compare.py -->"
FIGURES = {"seconds": ROOT / "docs/comparison_seconds.png", "batches": ROOT / "docs/comparison_batches.png"}


def generated(record: Mapping[str, Any]) -> str:
    """Returns tables and figures of a record, as they stand between the marks."""
    pictures = "\n\n".join(
        f"![Validation NLL against {against}, every run]({path.name})" for against, path in FIGURES.items()
    )
    return f"{START}\n{pictures}\n\n{markdown(record)}\n{END}"


def replaced(page: str, record: Mapping[str, Any]) -> str:
    """Returns the page with another part between its marks.

    Raises:
        ValueError: If the page lacks the marks.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{PAGE.name} must have the lines {START.strip()} and {END}")
    return f"{before}{generated(record)}{after}"


def write(record: Mapping[str, Any]) -> None:
    """Writes the generated part of the page and its figures."""
    from fixed_budget.figures import curves

    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")
    curves(record, "seconds").savefig(FIGURES["seconds"], dpi=110)
    curves(record, "batches").savefig(FIGURES["batches"], dpi=110)
