"""Writes docs/licences.md: the licence of every pinned package, as its own metadata gives it.

It needs an environment with all extras: `pip install -e '.[test,lint,bench,docs]'`.
"""

import importlib.metadata
import sys
from importlib.metadata import PackageMetadata
from pathlib import Path

from pins import CONSTRAINTS, sections

PAGE = Path(__file__).parent.parent / "docs" / "licences.md"
LONGEST_NAME = 60
"""Characters beyond which the field License holds a text, not a name."""

HEAD = """# Licences of what the project uses

jkoflow is under the Apache License 2.0 and contains no code of others; the gas-turbine data that it ships are under
CC BY 4.0 (`jkoflow/data/gasturbine.LICENSE.txt`). Installing it brings the packages under "run time"; each extra brings
more, and the rest is used by the project's own tests, benchmarks and checks. `python scripts/licences.py` writes this
page from the packages' metadata; where a package names its licence in several ways, all of them stand here.
"""


def _field(metadata: PackageMetadata, name: str) -> str:
    return metadata[name].strip() if name in metadata else ""


def licence(metadata: PackageMetadata) -> str:
    """The names of a licence in a package's metadata; without a doubt only where it has an SPDX expression."""
    if expression := _field(metadata, "License-Expression"):
        return expression
    text = _field(metadata, "License")
    names = [text] if 0 < len(text) <= LONGEST_NAME and "\n" not in text else []
    classifiers = metadata.get_all("Classifier") or []
    names += [each.split(" :: ")[-1] for each in classifiers if each.startswith("License :: ")]
    return " / ".join(dict.fromkeys(names)) or "none named"


def main() -> None:
    """Writes the page."""
    parts = [HEAD]
    for section, pins in sections(CONSTRAINTS.read_text()).items():
        parts += [f"\n## {section}\n", "| package | licence |", "| --- | --- |"]
        for pin in pins:
            try:
                parts.append(f"| {pin['name']} | {licence(importlib.metadata.metadata(pin['name']))} |")
            except importlib.metadata.PackageNotFoundError:
                sys.exit(f"licences.py: {pin['name']} is not installed: pip install -e '.[test,lint,bench,docs]'")
    PAGE.write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
