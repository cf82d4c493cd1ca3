"""Where training runs: one process, with its clock; `jkoflow.training.ranks` has the world of several."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from jkoflow.environment import usable_device
from jkoflow.metrics import RowsCall, by_itself

Clock = Callable[[], float]
"""Function that returns the seconds since some fixed moment."""

T = TypeVar("T")

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

    What several processes would have to agree on, or to do together, is asked of the world. One process agrees with
    itself: here nothing is sent, and nothing is copied.

    Arguments:
        clock: A function that returns the time in seconds; the machine's clock if None. The run begins with this call.
    """

    rank = 0
    """Number of this process."""
    size = 1
    """Number of processes."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = time.monotonic if clock is None else clock
        self._began = self._clock()
        self._asked: Callable[[], int | None] = lambda: None

    @property
    def leads(self) -> bool:
        """Tells whether this process writes files and tells the news."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Returns the device with a name, see `jkoflow.environment.usable_device`."""
        return usable_device(name)

    # ---- Time

    def elapsed(self) -> float:
        """Returns the seconds into the run, earlier sessions of a resumed run included."""
        return self._clock() - self._began

    def recent(self) -> float:
        """Returns the seconds into the run as of the last update at the least, which takes no agreement of its own."""
        return self.elapsed()

    def go_on_after(self, seconds: float) -> None:
        """Adds the seconds that earlier sessions of the run have taken."""
        self._began -= seconds

    def seconds(self, call: Callable[[], object]) -> float:
        """Returns the mean time of a call that waits for its result, after a first one that is not counted.

        A rough measure is enough: plans are corrected while they are carried out, and short budgets have many blocks.
        """
        began = self.elapsed()
        call()
        start = self.elapsed()
        if start - began > SLOW_SECONDS:
            return start - began
        spent = 0.0
        for calls in range(1, MOST_CALLS + 1):
            call()
            spent = self.elapsed() - start
            if spent >= MEASURING_SECONDS:
                return spent / calls
        return max(spent, 0.0) / MOST_CALLS

    # ---- Agreement

    def listen(self, asked: Callable[[], int | None]) -> None:
        """Takes over the function that returns the number of the signal that has come to this process, or None."""
        self._asked = asked

    def signal(self) -> int | None:
        """Returns the number of the signal that has come to any process; None if none has."""
        return self._asked()

    def recent_signal(self) -> int | None:
        """Returns the same as of the last update, which takes no agreement of its own."""
        return self._asked()

    def first(self, call: Callable[[], T]) -> T:
        """Returns what a call returns that the leading process alone makes, or raises what it raises."""
        return call()

    def together(self, call: Callable[[], T]) -> T:
        """Returns what a call returns that all processes make; if it fails in any of them, it fails in all."""
        return call()

    def check_same(self, digest: Callable[[], str], text: str) -> None:
        """Refuses to go on if a digest differs between processes; the text says of what it is, and the fix."""

    def check_memory(self, limit: str | None) -> None:
        """Refuses a limit of memory where it does not hold."""

    # ---- Rows

    def part(self, count: int) -> slice:
        """Returns which of so many rows this process holds, or computes."""
        return slice(0, count)

    def share_out(self, call: RowsCall, rows: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """Returns tensors that a call computes row by row, each process for a part of the rows.

        Arguments:
            call: Function of rows (n, d) and their context (n, c) that returns tensors with one entry for each row.
            rows: Rows that all processes have, with shape (N, d).
            context: Conditioning variables of the rows, with shape (N, c).
        """
        return by_itself(call, rows, context)

    def gathered(self, part: Tensor) -> Tensor:
        """Returns the rows of all processes, one process after the other, given those of this one."""
        return part

    def sums(self, values: Sequence[float]) -> list[float]:
        """Returns the sums of numbers over all processes."""
        return list(values)

    # ---- Updates

    def update(self, gradient_and_tail: Tensor) -> None:
        """Adds up the gradients of all processes, with the numbers behind them, in their place."""

    # ---- Ends

    def meet(self) -> None:
        """Waits until all processes are here."""

    def close(self) -> None:
        """Ends what connects the processes, so that none waits for one that has failed."""
