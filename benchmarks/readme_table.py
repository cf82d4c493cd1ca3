"""Prints README's tables of figures, or puts them into README.

jkoflow bench --compile --out runs/bench && cp runs/bench/bench.json benchmarks/results/
jkoflow bench --group adaptive --compile --threads 1 --out runs/bench && cp runs/bench/adaptive.json benchmarks/results/
python benchmarks/readme_table.py --write
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jkoflow.bench.adaptive import table as adaptive
from jkoflow.bench.table import markdown

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {"bench": markdown, "adaptive": adaptive.markdown}
"""Names of the records, which the marks in README hold, and the functions that make tables of them."""


def replaced(page: str, name: str, tables: str) -> str:
    """Returns a page with other tables between the two marks of a record."""
    first, last = (f"<!-- {word}: benchmarks/readme_table.py, {name}.json -->\n" for word in ("begin", "end"))
    before, start, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not (start and end):
        raise SystemExit(f"README.md must have the lines {first.strip()} and {last.strip()}")
    return f"{before}{start}\n{tables}\n{end}{after}"


def main() -> None:
    """Prints or writes the tables of the stored records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of bench.json and adaptive.json")
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    page = readme.read_text(encoding="utf-8")
    for name, tables_of in TABLES.items():
        tables = tables_of(json.loads((arguments.results / f"{name}.json").read_text(encoding="utf-8")))
        page = replaced(page, name, tables)
        if not arguments.write:
            print(tables)
    if arguments.write:
        readme.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
