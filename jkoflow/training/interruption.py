"""Signals that end a run, and the moments at which it can end without losing what it has done."""

from __future__ import annotations

import _thread
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

GRACE_SECONDS = 3.0
"""Seconds in which a run must come to a moment at which it can be saved; after them it ends where it is."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Raised where a signal ends what is going on.

    Arguments:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


def interrupt(number: int, frame: FrameType | None = None) -> NoReturn:
    """Raises `Interrupted`: the handler of signals for programs that end by an exception."""
    raise Interrupted(number)


class Interruption:
    """While it is entered, the first signal only asks for an end, see ``asked``; a second one ends at once.

    So does the first one after `GRACE_SECONDS`. Handlers that a program has set for itself are left alone, and so are
    all outside of the main thread, where signals do not arrive.
    """

    asked: int | None = None
    """Number of the signal that asked for an end; None if none did."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if handler in (signal.SIG_DFL, signal.default_int_handler, interrupt):
                    self._before[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            interrupt(self.asked)
        self.asked = number
        self._timer = threading.Timer(GRACE_SECONDS, self._insist)
        self._timer.daemon = True
        self._timer.start()

    def _insist(self) -> None:
        if self._before:
            _thread.interrupt_main(signal.Signals(next(iter(self._before))))
