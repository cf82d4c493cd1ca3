"""Timing in paired rounds: every round runs each candidate, so that a slow moment of the machine affects all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Timer = Callable[[int], float]
"""Function that makes a number of runs and returns the seconds that they took."""

Rounds = list[float | None]
"""Seconds per run, one value a round; None in rounds that a candidate sat out."""

FEWEST, FEWEST_SLOW = 3, 2
"""Smallest numbers of rounds of a slow candidate, and of one that takes more than ten times its seconds in a round."""

PAUSE, LONGEST_PAUSE = 0.02, 0.3
"""Seconds between two candidates, and their largest number, in which the threads of the last candidate stop spinning.
The clock of a process counts threads that run on other processors by ticks of the kernel, of up to 10 ms."""


def settle() -> None:
    """Waits until no thread of this process computes; threads of OpenBLAS spin for a tenth of a second."""
    for _ in range(round(LONGEST_PAUSE / PAUSE)):
        before = time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - before < PAUSE / 4:
            return


def rounds(
    timers: Mapping[str, Timer],
    count: int,
    budget: float,
    advance: Callable[[str], None] = lambda name: None,
    pause: Callable[[], None] | None = settle,
) -> dict[str, Rounds]:
    """Times candidates in turn.

    Arguments:
        timers: Timers of the candidates, by name.
        count: Number of rounds.
        budget: Seconds that each candidate gets in a round: it runs as often as fits, at least once. A slower candidate
            sits out rounds, evenly, until its rounds fit as well, or down to `FEWEST`.
        advance: Function that is called with the name of each candidate before it runs.
        pause: Function that waits, before each candidate, until the machine is at rest; None if no threads are in the
            way, as on a GPU.

    Returns:
        Seconds per run, by name.
    """
    repeats, entered = {}, {}
    for name, timer in timers.items():
        advance(name)
        once = timer(1)
        if once < budget:
            once = timer(1)  # the first run warmed up
        repeats[name] = max(1, round(budget / once))
        fewest = FEWEST_SLOW if once > 10 * budget else FEWEST
        number = min(count, max(fewest, round(count * budget / once)))
        entered[name] = {round(i * (count - 1) / max(number - 1, 1)) for i in range(number)}
    times: dict[str, Rounds] = {name: [] for name in timers}
    for index in range(count):
        for name, timer in timers.items():
            if index not in entered[name]:
                times[name].append(None)
                continue
            advance(name)
            if pause is not None:
                pause()
            times[name].append(timer(repeats[name]) / repeats[name])
    return times


def median(values: Rounds) -> float:
    """Returns the median over the rounds that were run."""
    return statistics.median(value for value in values if value is not None)


def ratio(numerator: Sequence[float | None], denominator: Sequence[float | None]) -> float:
    """Returns the median of the ratio within a round, over the rounds in which both ran."""
    pairs = zip(numerator, denominator, strict=True)
    return statistics.median(a / b for a, b in pairs if a is not None and b is not None)
