"""The time limit of a benchmark: when nothing more is started, and what is given up because it takes too long."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LEAST = 5.0
"""Seconds that have to be left for anything to be started."""

PATIENCE = 1.5
"""What is told to take some seconds is given up after so many times as many."""


class Overtime(BaseException):
    """Says that the time of something is up. It is no Exception, because torch.compile goes on after one of those."""


class Deadline:
    """Knows when a benchmark's time ends.

    Arguments:
        seconds: From now; None for a benchmark without a limit.
        clock: Tells the time in seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = float("inf") if seconds is None else clock() + seconds

    def allows(self, seconds: float = LEAST) -> bool:
        """Tells whether so many seconds are left."""
        return self._end - self._clock() >= seconds


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `Overtime` in what takes longer and returns to Python now and then, as compiling does.

    It works in the main thread only, where Python handles signals.
    """

    def stop(number: int, frame: object) -> None:
        raise Overtime(f"took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)  # again and again: someone may catch it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
