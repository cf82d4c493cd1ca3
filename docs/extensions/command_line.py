"""The directive ``command-line``: the arguments and options of every ``jkoflow`` command, from the program itself."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.cli import get_docs_for_click
from typer.main import get_command

from jkoflow.cli.commands import app as commands


def as_markdown() -> str:
    """Returns the commands' help as Markdown, a section for each command, without a title of their own."""
    group = get_command(commands)
    context: Any = group.make_context("jkoflow", [], resilient_parsing=True)
    text = get_docs_for_click(obj=group, ctx=context, name="jkoflow")
    return text.partition("\n")[2].replace("\n### ", "\n## ")


class CommandLine(SphinxDirective):
    """Puts the sections of all commands in its place."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Returns the parsed sections."""
        return self.parse_text_to_nodes(as_markdown(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
