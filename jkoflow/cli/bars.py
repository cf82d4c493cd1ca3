"""The base of the commands' progress bars, which are drawn as long as a ``with`` statement lasts."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TextColumn


class Bars:
    """Progress bars with a description in front and news behind, drawn as long as a ``with`` statement lasts.

    Arguments:
        console: Where to draw.
        columns: Columns between description and news.
        options: Further arguments of `rich.progress.Progress`.
    """

    def __init__(self, console: Console, *columns: ProgressColumn, **options: Any) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            *columns,
            TextColumn("{task.fields[news]}", markup=False),
            console=console,
            **options,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
