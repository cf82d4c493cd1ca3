"""The process in which training runs: its clock, which every decision about time reads, and the timing of calls."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

Clock = Callable[[], float]
"""Function that returns the seconds since some fixed moment."""

MEASURING_SECONDS = 0.02
"""Seconds for which a call is repeated to be timed."""

MOST_CALLS = 1000
"""Largest number of these calls: a clock may be coarse, or stand still."""

SLOW_SECONDS = 0.2
"""Seconds beyond which a first call counts and is not repeated: what it loads once is a small part of that."""


def wait_for(tensor: Tensor) -> None:
    """Waits until a tensor is computed; a GPU computes it later than it is asked for."""
    tensor.reshape(-1)[:1].tolist()


class World:
    """The process that trains, with its clock.

    Arguments:
        clock: A function that returns the time in seconds; the machine's clock if None. The run begins with this call.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = time.monotonic if clock is None else clock
        self._began = self._clock()

    def elapsed(self) -> float:
        """Returns the seconds into the run, earlier sessions of a resumed run included."""
        return self._clock() - self._began

    def go_on_after(self, seconds: float) -> None:
        """Adds the seconds that earlier sessions of the run have taken."""
        self._began -= seconds

    def seconds(self, call: Callable[[], object]) -> float:
        """Returns the mean time of a call that waits for its result, after a first one that is not counted.

        A rough measure is enough: plans are corrected while they are carried out, and short budgets have many blocks.
        """
        began = self._clock()
        call()
        start = self._clock()
        if start - began > SLOW_SECONDS:
            return start - began
        spent = 0.0
        for calls in range(1, MOST_CALLS + 1):
            call()
            spent = self._clock() - start
            if spent >= MEASURING_SECONDS:
                return spent / calls
        return max(spent, 0.0) / MOST_CALLS
