"""How a training run tells what it is doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Progress(Protocol):
    """Receives a training run's news; the command line draws bars from it."""

    def start_round(self, number: int, kind: str, blocks: int) -> None:
        """A round over all blocks begins, or goes on after a resume; see `jkoflow.training.rounds`."""

    def start_block(self, block: int, iterations: int) -> None:
        """A block begins, or goes on after a resume, and has this many iterations; called again if the plan changes."""

    def update(self, block: int, iteration: int, terms: Mapping[str, float]) -> None:
        """So many iterations of the block are done; terms hold the latest loss and its parts, in nats."""

    def end_block(self, block: int, summary: Mapping[str, Any]) -> None:
        """A block has ended; the summary is its record in history.jsonl."""

    def message(self, text: str) -> None:
        """Something a person should read, in one line."""


class Silent:
    """A `Progress` that says nothing."""

    def start_round(self, number: int, kind: str, blocks: int) -> None:  # noqa: D102 (the protocol says what it is)
        pass

    def start_block(self, block: int, iterations: int) -> None:  # noqa: D102
        pass

    def update(self, block: int, iteration: int, terms: Mapping[str, float]) -> None:  # noqa: D102
        pass

    def end_block(self, block: int, summary: Mapping[str, Any]) -> None:  # noqa: D102
        pass

    def message(self, text: str) -> None:  # noqa: D102
        pass
