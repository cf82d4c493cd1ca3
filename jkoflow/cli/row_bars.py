"""Progress over the rows of a large file, and over the files of a folder."""

from __future__ import annotations

import time
from collections import Counter

from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from jkoflow.cli import console, json_lines
from jkoflow.cli.bars import Bars
from jkoflow.cli.console import LINE_SECONDS
from jkoflow.cli.score_folder import Done


class RowBars(Bars):
    """A bar over rows on a terminal, lines elsewhere; on stderr, as it is no result.

    Arguments:
        name: What they are of.
    """

    def __init__(self, name: str) -> None:
        screen = console.for_progress()
        self._name, self._live, self._told = name, screen.is_terminal, time.monotonic()
        super().__init__(
            screen,
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            refresh_per_second=4,
            disable=not self._live,
        )
        self._task = self._bars.add_task(name, total=None, news="rows")

    def advance(self, done: int, rows: int) -> None:
        """Shows how many rows are done, of how many."""
        json_lines.tell("progress", of=self._name, unit="rows", done=done, total=rows)
        self._bars.update(self._task, completed=done, total=rows)
        self._say(f"{self._name}: {done} of {rows} rows")

    def _say(self, text: str) -> None:
        """Prints a line if there is no bar, and no other line was printed shortly before."""
        if not self._live and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


class FolderBars(RowBars):
    """The same over the files of a folder.

    Arguments:
        files: Number of files.
    """

    def __init__(self, files: int) -> None:
        super().__init__("files")
        self._files, self._states, self._rows = files, dict[str, str](), 0
        self._bars.update(self._task, total=files, news="")

    def tell(self, done: Done) -> None:
        """Shows what has become of a file."""
        self._states[done.name] = done.state
        if done.state == "scored" and done.tally is not None:
            self._rows += done.tally.rows
        counts = Counter(self._states.values())
        news = f"{', '.join(f'{count} {state}' for state, count in counts.items())}, {self._rows} rows"
        rows = 0 if done.tally is None else done.tally.rows
        json_lines.tell("file", name=done.name, state=done.state, rows=rows, text=done.text)
        json_lines.tell("progress", of="files", unit="files", done=len(self._states), total=self._files)
        self._bars.update(self._task, completed=len(self._states), news=news)
        self._say(f"{len(self._states)} of {self._files} files: {news}")
