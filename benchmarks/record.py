"""Writes figures with the environment in which they were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jkoflow.environment import describe


def write(results: Any, out: str | None) -> None:
    """Writes figures with their environment as JSON, if a file is given."""
    if out is not None:
        Path(out).write_text(json.dumps({"environment": describe(), "results": results}, indent=2) + "\n")
