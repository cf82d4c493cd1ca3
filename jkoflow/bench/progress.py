"""The protocol through which a benchmark tells what it is doing."""

from __future__ import annotations

from typing import Any, Protocol


class Progress(Protocol):
    """Receives a benchmark's news."""

    def start(self, parts: int) -> None:
        """Receives the number of parts that will be measured."""

    def part(self, text: str) -> None:
        """Receives the name of the part that begins."""

    def detail(self, text: str) -> None:
        """Receives a line about the present step of the measurement."""

    def measured(self, entry: dict[str, Any]) -> None:
        """Receives the figures of a shape: its entry in the record, or an entry with the peers of this part alone."""
