"""Who is told how a benchmark goes on."""

from __future__ import annotations

from typing import Any, Protocol


class Progress(Protocol):
    """Is told what happens."""

    def start(self, parts: int) -> None:
        """Hears that so many parts will be measured."""

    def part(self, text: str) -> None:
        """Hears which part begins."""

    def detail(self, text: str) -> None:
        """Hears what is being done now."""

    def measured(self, entry: dict[str, Any]) -> None:
        """Gets the figures of a shape: its entry in the record, or one with the peers of this part alone."""
