"""The directive ``first-lines``: a table of the source files of a folder with what each says of itself at its top.

    ```{first-lines} csrc/cpu h cpp
    ```

The arguments are a folder of the repository and the suffixes of the files. A file without a first comment is left out.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parent.parent.parent


def first_lines(path: Path) -> str:
    """Returns the first comment of a C++ or CUDA file, or the first paragraph of a Python module's docstring."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return " ".join((ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0].split())
    comment = re.match(r"(?:// .*\n)+", text)
    return " ".join(re.sub(r"^// ", "", comment[0], flags=re.M).split()) if comment else ""


class FirstLines(SphinxDirective):
    """Puts the table in its place."""

    required_arguments, optional_arguments, final_argument_whitespace = 1, 1, True

    def run(self) -> list[nodes.Node]:
        """Returns the parsed table.

        Raises:
            docutils.parsers.rst.DirectiveError: If the folder has no such files.
        """
        folder, suffixes = ROOT / self.arguments[0], self.arguments[1].split()
        paths = [path for suffix in suffixes for path in sorted(folder.glob(f"*.{suffix}"))]
        told = {path: first_lines(path) for path in paths}
        if not any(told.values()):
            raise self.error(f"first-lines needs files that begin with a comment, got none in {self.arguments[0]}")
        for path in paths:
            self.env.note_dependency(path)
        rows = [f"| `{path.name}` | {line.replace('|', '&#124;')} |" for path, line in told.items() if line]
        return self.parse_text_to_nodes("\n".join(["| file | what it is |", "| --- | --- |", *rows]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("first-lines", FirstLines)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
