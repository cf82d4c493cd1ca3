"""Joins the pieces in which a cell prints, which may end anywhere: myst-nb ends a line after each."""

from __future__ import annotations

from typing import Any

from myst_nb.core import render
from sphinx.application import Sphinx

_merge = render.coalesce_streams


def merged(outputs: list[Any]) -> list[Any]:
    """Returns the outputs of a cell with the pieces of each stream as one."""
    kept: list[Any] = []
    streams: dict[str, Any] = {}
    for output in outputs:
        name = output["name"] if output["output_type"] == "stream" else None
        if name in streams:
            streams[name]["text"] += output["text"]
            continue
        kept.append(output)
        if name is not None:
            streams[name] = output
    return _merge(kept)


def setup(app: Sphinx) -> dict[str, bool]:
    """Puts it in the place of myst-nb's."""
    render.coalesce_streams = merged
    return {"parallel_read_safe": True, "parallel_write_safe": True}
