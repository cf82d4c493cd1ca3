"""Links from pages of the site into the rest of the repository, as they are written for a reader of the repository.

A link to a Markdown file beside ``docs`` leads to the page of the site that shows it. Sphinx offers any other file for
download, from the site itself.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

SHOWN = {
    "CHANGELOG.md": "/project/changelog.md",
    "CONTRIBUTING.md": "/project/contributing.md",
    "SECURITY.md": "/project/security.md",
}
"""Pages of the site that show a file of the repository's root."""
_LINK = re.compile(r"\]\((?:\.\./)+([A-Z]+\.md)(#[\w-]+)?\)")


def _to_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replaces links to files of the root, and a page that is to show one by its text."""
    for name, page in SHOWN.items():
        if f"{page}" == f"/{docname}.md":
            text = (Path(app.srcdir).parent / name).read_text(encoding="utf-8")
            source[0] = text.replace("](docs/", "](/")
            app.env.note_dependency(str(Path(app.srcdir).parent / name))
    source[0] = _LINK.sub(lambda link: f"]({SHOWN.get(link[1], link[1])}{link[2] or ''})", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Rewrites every page before it is read."""
    app.connect("source-read", _to_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
