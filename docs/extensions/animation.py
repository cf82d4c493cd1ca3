"""The directive ``animation``: a moving picture that stands still for readers who ask for that, and on request.

    ```{animation} /figures/blocks.webp
    :still: /figures/blocks.png
    :alt: what the picture shows
    ```

Whoever prefers reduced motion, or does not run scripts to stop it, sees the still picture.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class animation(nodes.image):  # noqa: N801 (docutils names what visits a node after its class)
    """A picture that moves, whose ``still`` is the address of one that does not."""


class Animation(SphinxDirective):
    """Puts the picture in its place."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Callable[[str], Any]] | None] = {
        "still": directives.unchanged_required,
        "alt": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """Returns both pictures, so that Sphinx copies both."""
        if missing := {"still", "alt"} - set(self.options):
            raise self.error(f"animation needs {' and '.join(sorted(missing))}")
        alt = self.options["alt"]
        return [animation(uri=self.options["still"], moving=self.arguments[0], alt=alt)]


def _find(app: Sphinx, doctree: nodes.document) -> None:
    """Tells Sphinx of the moving pictures; it finds the still ones by itself."""
    for node in doctree.findall(animation):
        docname = app.env.current_document.docname
        path, _ = app.env.relfn2path(node["moving"], docname)
        app.env.note_dependency(path)
        app.env.images.add_file(docname, path)
        node["moving"] = path


def _copy(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Has the moving pictures copied beside the pages, as the builder does with all others."""
    for node in doctree.findall(animation):
        app.builder.images[node["moving"]] = app.env.images[node["moving"]][1]


def _visit(translator: Any, node: animation) -> None:
    still, moving = (
        posixpath.join(translator.builder.imgpath, translator.builder.images[node[name]]) for name in ("uri", "moving")
    )
    translator.body.append(
        f'<figure class="animation" data-still="{still}" data-moving="{moving}">'
        f'<img src="{still}" alt="{translator.attval(node["alt"])}">'
        '<button type="button" hidden>Stop</button></figure>\n'
    )
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive; static/site.js has the button."""
    app.add_node(animation, html=(_visit, None))
    app.add_directive("animation", Animation)
    app.connect("doctree-read", _find)
    app.connect("doctree-resolved", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
