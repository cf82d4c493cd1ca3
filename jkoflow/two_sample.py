"""Distances between two samples, by kernel and by energy, with a threshold for chance, and a classifier's accuracy.

Distances depend on the units of the columns: give both samples on standardised columns.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jkoflow.optional import require

FIXED_BANDWIDTH = 1.0
"""Bandwidth of a Gaussian kernel on standardised columns that does not depend on the samples."""


class Discrepancy(NamedTuple):
    """A distance between two samples."""

    value: float
    """The squared distance; positive by chance even if both samples are of one distribution."""
    stderr: float
    """Standard error of the value; NaN for samples of one row."""
    threshold: float
    r"""Threshold :math:`\tau` that the value exceeds with probability alpha if both samples are of one distribution."""


class Accuracy(NamedTuple):
    """The accuracy of a classifier that tells two samples apart."""

    value: float
    """Share of held-out rows that are assigned to the right sample; 0.5 if the samples cannot be told apart."""
    stderr: float
    """Standard error of the value."""


def mmd(
    x: Tensor,
    y: Tensor,
    bandwidth: float | Literal["median"] = "median",
    *,
    bootstraps: int = 200,
    alpha: float = 0.05,
    seed: int = 0,
) -> Discrepancy:
    r"""Computes the squared maximum mean discrepancy with the kernel :math:`k(a, b) = \exp(-|a - b|^2 / (2 \sigma^2))`.

    .. math:: \frac{1}{n^2} \sum_{i,j} k(x_i, x_j) + \frac{1}{m^2} \sum_{i,j} k(y_i, y_j)
              - \frac{2}{nm} \sum_{i,j} k(x_i, y_j)

    Arguments:
        x: One sample, with shape (n, d).
        y: Another, with shape (m, d).
        bandwidth: :math:`\sigma`, positive, or ``"median"``: the median distance between two different rows of both.
        bootstraps: Random divisions of the pooled rows that the threshold is taken from.
        alpha: Level of the test that compares the value with the threshold.
        seed: Seed of the divisions.

    Returns:
        The value, its standard error and the threshold.

    Raises:
        ValueError: If a sample is empty or their columns differ, or a number is out of its range.

    References:
        | A kernel two-sample test (Gretton et al., 2012)
        | https://jmlr.org/papers/v13/gretton12a.html

    Example:
        >>> x, y = torch.randn(200, 2), torch.randn(200, 2)
        >>> result = mmd(x + 1, y)
        >>> result.value > result.threshold
        True
    """
    distances = _distances(x, y)
    if bandwidth == "median":
        bandwidth = _median(distances)
        if bandwidth == 0:
            raise ValueError("more than half of all pairs of rows are equal: the median distance is 0; pass a number")
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth must be positive and finite, or 'median', got {bandwidth}")
    return _discrepancy((-0.5 * (distances / bandwidth).square()).exp(), len(x), bootstraps, alpha, seed)


def median_distance(x: Tensor, y: Tensor) -> float:
    """Returns the median distance between two different rows of samples (n, d) and (m, d), a bandwidth for `mmd`."""
    return _median(_distances(x, y))


def energy_distance(x: Tensor, y: Tensor, *, bootstraps: int = 200, alpha: float = 0.05, seed: int = 0) -> Discrepancy:
    r"""Computes the squared energy distance :math:`2 E|x - y| - E|x - x'| - E|y - y'|`, which needs no bandwidth.

    Arguments:
        x: One sample, with shape (n, d).
        y: Another, with shape (m, d).
        bootstraps: Random divisions of the pooled rows that the threshold is taken from.
        alpha: Level of the test that compares the value with the threshold.
        seed: Seed of the divisions.

    Returns:
        The value, its standard error and the threshold.

    Raises:
        ValueError: If a sample is empty or their columns differ, or a number is out of its range.

    References:
        | Energy statistics: a class of statistics based on distances (Szekely and Rizzo, 2013)
        | https://doi.org/10.1016/j.jspi.2013.03.018

    Example:
        >>> energy_distance(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])).value
        10.0
    """
    return _discrepancy(-_distances(x, y), len(x), bootstraps, alpha, seed)


def classifier_accuracy(x: Tensor, y: Tensor, *, folds: int = 5, seed: int = 0) -> Accuracy:
    """Measures how well gradient-boosted trees learn to tell two samples apart (a classifier two-sample test).

    Arguments:
        x: One sample, with shape (n, d).
        y: Another, with shape (m, d); best with as many rows.
        folds: Parts of the rows, each judged by a classifier that was trained on the others.
        seed: Seed of the parts and of the classifier.

    Returns:
        The accuracy, averaged over both samples with equal weights, and its standard error.

    Raises:
        ValueError: If a sample has fewer rows than folds, or their columns differ.
        jkoflow.data.MissingExtraError: If scikit-learn is missing.

    References:
        | Revisiting classifier two-sample tests (Lopez-Paz and Oquab, 2017)
        | https://arxiv.org/abs/1610.06545

    Example:
        >>> classifier_accuracy(torch.randn(500, 2), torch.randn(500, 2)).value  # doctest: +SKIP
        0.498
    """
    ensemble = require("sklearn.ensemble", "the classifier two-sample test", "sklearn")
    selection = require("sklearn.model_selection", "the classifier two-sample test", "sklearn")
    _check(x, y)
    if min(len(x), len(y)) < folds:
        raise ValueError(f"each sample must have at least {folds} rows, one per fold, got {len(x)} and {len(y)}")
    rows = torch.cat([x, y]).double().cpu().numpy()
    labels = np.repeat([0, 1], [len(x), len(y)])
    parts = selection.StratifiedKFold(folds, shuffle=True, random_state=seed)
    guesses = selection.cross_val_predict(
        ensemble.HistGradientBoostingClassifier(random_state=seed), rows, labels, cv=parts
    )
    shares = [float((guesses[labels == label] == label).mean()) for label in (0, 1)]
    variances = [share * (1 - share) / count for share, count in zip(shares, (len(x), len(y)), strict=True)]
    return Accuracy(sum(shares) / 2, math.sqrt(sum(variances)) / 2)


def _median(distances: Tensor) -> float:
    rows, columns = torch.triu_indices(*distances.shape, offset=1, device=distances.device)
    return float(distances[rows, columns].median())


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Returns the distances (n + m, n + m) between all rows of both samples, in float64."""
    _check(x, y)
    rows = torch.cat([x, y]).detach().double()
    # by differences: distances of near rows by products lose half of their digits
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def _check(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) == 0:
        raise ValueError(
            f"x and y must have shapes (n, d) and (m, d) with at least one row, got {tuple(x.shape)}, {tuple(y.shape)}"
        )


def _discrepancy(kernel: Tensor, n: int, bootstraps: int, alpha: float, seed: int) -> Discrepancy:
    """Computes w^T K w for a kernel matrix (n + m, n + m), its standard error and threshold; w = 1/n, ..., -1/m, ..."""
    if bootstraps < 1 or not 0 < alpha < 1:
        raise ValueError(f"bootstraps must be at least 1 and alpha between 0 and 1, got {bootstraps}, {alpha}")
    total = kernel.shape[0]
    weights = kernel.new_full((total,), -1 / (total - n))
    weights[:n] = 1 / n
    influence = kernel @ weights  # of every row: half the derivative of the value with respect to its weight
    parts = (influence[:n], influence[n:])
    variance = sum(4 * float(part.var()) / len(part) if len(part) > 1 else math.nan for part in parts)
    generator = torch.Generator().manual_seed(seed)
    divisions = torch.stack([weights[torch.randperm(total, generator=generator)] for _ in range(bootstraps)], 1)
    chance = (divisions * (kernel @ divisions)).sum(0)
    return Discrepancy(float(weights @ influence), math.sqrt(variance), float(torch.quantile(chance, 1 - alpha)))
