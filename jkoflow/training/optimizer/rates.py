"""The peak learning rates of every optimiser, and the share of them that an iteration takes."""

from __future__ import annotations

import math
from typing import NamedTuple

OPTIMIZERS = ("adam", "muon", "soap")
"""The names of the optimisers."""


class PeakRates(NamedTuple):
    """The largest learning rates of a training."""

    matrices: float
    """Peak rate of the matrices of a network's layers."""
    vectors: float
    """Peak rate of everything else: biases and the linear term."""

    def times(self, factor: float) -> PeakRates:
        """Returns both rates multiplied by a factor."""
        return PeakRates(self.matrices * factor, self.vectors * factor)


DEFAULT_RATES = {"muon": PeakRates(3e-2, 5e-3), "soap": PeakRates(3e-3, 5e-3)}
"""Peak rates unless the settings name another; those of Adam are `peak_learning_rate`."""


def peak_rates(optimizer: str, columns: int, given: float | None = None) -> PeakRates:
    """Returns the peak rates of an optimiser.

    Arguments:
        optimizer: Name of the optimiser, one of `OPTIMIZERS`.
        columns: Number of columns of the rows.
        given: Peak rate of the matrices. That of the vectors is then changed by the same factor. None means the
            optimiser's own.

    Returns:
        The peak rates of matrices and vectors.

    Example:
        >>> peak_rates("muon", 2), peak_rates("adam", 2)
        (PeakRates(matrices=0.03, vectors=0.005), PeakRates(matrices=0.005, vectors=0.005))
        >>> peak_rates("muon", 2, given=0.06)
        PeakRates(matrices=0.06, vectors=0.01)
    """
    rates = DEFAULT_RATES.get(optimizer) or PeakRates(*2 * (peak_learning_rate(columns),))
    return rates if given is None else PeakRates(given, given * rates.vectors / rates.matrices)


def peak_learning_rate(columns: int) -> float:
    """Returns the peak learning rate of Adam for rows with a given number of columns.

    It is 5e-3 for up to ten columns, and less for more, whose gradients are noisier.

    Example:
        >>> [peak_learning_rate(d) for d in (2, 10, 40)]
        [0.005, 0.005, 0.0025]
    """
    return 5e-3 / math.sqrt(max(1.0, columns / 10))


def learning_rate(
    iteration: int, iterations: int, peak: float, warmup: int, span: tuple[float, float] = (0.0, 1.0)
) -> float:
    r"""Returns the learning rate of an iteration: linear warm-up to the peak, then half a cosine down to 1 % of it.

    Arguments:
        iteration: Number of the iteration, from 0.
        iterations: Iterations in all.
        peak: Largest learning rate; with 1, the result is the factor that all rates are multiplied by.
        warmup: Iterations of the warm-up; at most a fifth of all is used.
        span: Part of the cosine that these iterations go through; all of it unless a training has several parts.

    Returns:
        The learning rate, positive.
    """
    warmup = min(warmup, iterations // 5)
    if iteration < warmup:
        return peak * cosine(span[0]) * (iteration + 1) / (warmup + 1)
    first, last = span
    return peak * cosine(first + (last - first) * (iteration - warmup) / max(1, iterations - warmup))


def cosine(progress: float) -> float:
    """Returns the learning rate as a share of the peak: half a cosine down to 1 % as progress goes from 0 to 1."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
