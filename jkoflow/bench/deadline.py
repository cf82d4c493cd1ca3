"""The time limit of a benchmark: the end of all starts, and the interruption of work that takes too long."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LEAST = 5.0
"""Seconds that have to be left for a measurement to be started."""

PATIENCE = 1.5
"""Multiple of the expected seconds after which work is given up."""


class Overtime(BaseException):
    """Raised if the time of some work is up; it is no Exception, because torch.compile goes on after an Exception."""


class Deadline:
    """The end of a benchmark's time.

    Arguments:
        seconds: Seconds from now; None for a benchmark without a limit.
        clock: Function that returns the time in seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = float("inf") if seconds is None else clock() + seconds

    def allows(self, seconds: float = LEAST) -> bool:
        """Tells whether the given number of seconds is left."""
        return self._end - self._clock() >= seconds


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `Overtime` in work that takes longer and returns to Python now and then, as compiling does.

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
