"""The protocol through which a training run tells what it is doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Progress(Protocol):
    """Receives a training run's news; the command line draws bars from it."""

    def start_round(self, number: int, kind: str, blocks: int) -> None:
        """Receives that a round over all blocks begins or, after a resume, goes on; see `jkoflow.training.rounds`."""

    def start_block(self, block: int, iterations: int) -> None:
        """Receives that a block begins, or goes on, and its number of iterations; called again if the plan changes."""

    def update(self, block: int, iteration: int, terms: Mapping[str, float]) -> None:
        """Receives the number of iterations of the block that are done, and the latest loss and its terms, in nats."""

    def end_block(self, block: int, summary: Mapping[str, Any]) -> None:
        """Receives that a block has ended; the summary is its record in history.jsonl."""

    def message(self, text: str) -> None:
        """Receives something that a person should read, in one line."""


class Silent:
    """A `Progress` that ignores all news."""

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
