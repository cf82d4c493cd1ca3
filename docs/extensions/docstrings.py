"""How docstrings are read: single backticks are links if the name is documented, and else code.

A name that begins with ``jkoflow.`` has to be documented, under this or its full name: Sphinx warns of it, which ends
the build. Names of other libraries are not looked up, since the build has no network.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.importer import import_object

_STAR = re.compile(r"(?<![\\*\w])\*(?=\w*[,)])")


def _full_name(name: str) -> str | None:
    """Returns the name under which a function or class is defined; None if there is nothing of this name."""
    module, _, attribute = name.rpartition(".")
    try:
        thing = import_object(module, [attribute])[-1]
        return f"{thing.__module__}.{thing.__qualname__}"
    except (ImportError, AttributeError):
        return None


def _resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    """Returns a link to what a name stands for, or its text where nothing needs to be documented.

    The types in signatures are such names, since they stand for what is imported where they are written.
    """
    domain = env.domains.get(node.get("refdomain", ""))
    if not isinstance(domain, PythonDomain):
        return None
    name = node["reftarget"]
    if name.startswith("jkoflow.") and (full := _full_name(name)) in domain.objects and full != name:
        return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], full, node, content)
    in_signature = not isinstance(content, nodes.literal)
    return content if in_signature or not name.startswith("jkoflow.") else None


def _with_plain_stars(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Escapes the star of a shape such as (*, d), which reStructuredText takes for the beginning of an emphasis."""
    lines[:] = [_STAR.sub(r"\\*", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Makes single backticks names of Python."""
    app.config.default_role = "py:obj"
    app.connect("missing-reference", _resolve)
    app.connect("autodoc-process-docstring", _with_plain_stars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
