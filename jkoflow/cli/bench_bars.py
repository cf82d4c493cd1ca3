"""The progress of ``jkoflow bench``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn

from jkoflow.cli import json_lines
from jkoflow.cli.bars import Bars

REFRESH_SECONDS = 0.25


class BenchBars(Bars):
    """One bar on a terminal, lines elsewhere: a `jkoflow.bench.progress.Progress` and a context manager.

    Arguments:
        screen: Where to draw.
        show: Function that prints the figures of a part.
    """

    def __init__(self, screen: Console, show: Callable[[dict[str, Any], Console], None]) -> None:
        self._show = show
        self._live = screen.is_terminal
        # a file has no width of its own: tables there take what they need
        self._screen = screen if self._live else Console(width=120)
        super().__init__(
            self._screen,
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            auto_refresh=False,  # its thread would take time from what is measured
            disable=not self._live,
        )
        self._task = self._bars.add_task("bench", total=1, news="")
        self._begun = self._parts = 0
        self._drawn = 0.0

    def start(self, parts: int) -> None:
        """Sets the length of the bar."""
        self._parts = parts
        self._bars.update(self._task, total=parts)

    def part(self, text: str) -> None:
        """Shows the name of the part that is measured next."""
        json_lines.tell("progress", of=text, unit="parts", done=self._begun, total=self._parts)
        self._bars.update(self._task, completed=self._begun, description=text, refresh=True)
        self._begun += 1
        if not self._live:
            print(f"{self._begun}/{self._parts}: {text}", flush=True)

    def detail(self, text: str) -> None:
        """Shows a line about the present step of the measurement."""
        now = time.monotonic()
        self._bars.update(self._task, news=text, refresh=now - self._drawn > REFRESH_SECONDS)
        if now - self._drawn > REFRESH_SECONDS:
            self._drawn = now

    def measured(self, entry: dict[str, Any]) -> None:
        """Prints the figures of a part or of a piece of it."""
        json_lines.tell("measured", entry=entry)
        self._show(entry, self._screen)
