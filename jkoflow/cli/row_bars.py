"""Progress over the rows of a large file, and over the files of a folder."""

from __future__ import annotations

import sys
import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from jkoflow.cli.bars import Bars
from jkoflow.cli.console import LINE_SECONDS
from jkoflow.cli.score_folder import Done


class RowBars(Bars):
    """A bar over rows on a terminal, lines elsewhere; on stderr, as it is no result.

    Arguments:
        console: Where to draw.
        name: What they are of.
    """

    def __init__(self, console: Console, name: str) -> None:
        self._name, self._live, self._told = name, console.is_terminal, time.monotonic()
        super().__init__(
            console,
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            refresh_per_second=4,
            disable=not self._live,
        )
        self._task = self._bars.add_task(name, total=None, news="rows")

    def advance(self, done: int, rows: int) -> None:
        """Shows how many rows are done, of how many."""
        self._bars.update(self._task, completed=done, total=rows)
        if not self._live and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            print(f"{self._name}: {done} of {rows} rows", file=sys.stderr, flush=True)


class FolderBars(RowBars):
    """The same over the files of a folder.

    Arguments:
        console: Where to draw.
        files: Number of files.
    """

    def __init__(self, console: Console, files: int) -> None:
        super().__init__(console, "files")
        self._files, self._states, self._rows = files, dict[str, str](), 0
        self._bars.update(self._task, total=files, news="")

    def tell(self, done: Done) -> None:
        """Shows what has become of a file."""
        self._states[done.name] = done.state
        if done.state == "scored" and done.tally is not None:
            self._rows += done.tally.rows
        counts = Counter(self._states.values())
        news = f"{', '.join(f'{count} {state}' for state, count in counts.items())}, {self._rows} rows"
        self._bars.update(self._task, completed=len(self._states), news=news)
        if not self._live and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            print(f"{len(self._states)} of {self._files} files: {news}", file=sys.stderr, flush=True)
