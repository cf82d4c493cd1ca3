"""Prints README's tables of figures, or puts them into README.

jkoflow bench --compile --out runs/bench && cp runs/bench/bench.json benchmarks/results/
python benchmarks/readme_table.py --write
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from jkoflow.bench.table import markdown

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "benchmarks/results/bench.json"
START, END = "<!-- begin: benchmarks/readme_table.py -->\n", "<!-- end: benchmarks/readme_table.py -->"


def replaced(page: str, tables: str) -> str:
    """Returns a page with other tables between its two marks."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise SystemExit(f"README.md must have the lines {START.strip()} and {END}")
    return f"{before}{start}\n{tables}\n{end}{after}"


def main() -> None:
    """Prints or writes the tables of the stored record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=RECORD, help="bench.json of jkoflow bench --out")
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    arguments = parser.parse_args()
    tables = markdown(json.loads(arguments.record.read_text(encoding="utf-8")))
    if arguments.write:
        readme = ROOT / "README.md"
        readme.write_text(replaced(readme.read_text(encoding="utf-8"), tables), encoding="utf-8")
    else:
        print(tables, end="")


if __name__ == "__main__":
    main()
