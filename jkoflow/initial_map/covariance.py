"""The covariance of few rows: shrunk towards equal variances, as far as rows that are left out ask for.

The sample covariance of few rows has too small variances in some directions, and rows that it was not fitted to lie far
out there. Ledoit and Wolf's shrinkage errs least in the covariance's entries, but where columns are strongly correlated
it hides the small variances, which the density depends on most. So a smaller shrinkage is taken where rows that are
left out one at a time have a clearly higher density under it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.gain import clearly_best

LEAST_VARIANCE = 1e-6
"""Least variance, as a share of the largest, that a direction is given."""

FACTORS = (*(10 ** (-step / 4) for step in range(17)), 0.0)
"""Shrinkages that are compared, as shares of Ledoit and Wolf's, which is the first."""


class Spectrum(NamedTuple):
    """A covariance by its eigenvalues."""

    variances: Tensor
    """Variances along the directions, ascending, with shape (d,)."""
    directions: Tensor
    """Orthonormal directions in columns, with shape (d, d)."""


def shrunk_covariance(rows: Tensor) -> Spectrum:
    """Returns the shrunk covariance of rows (N, d), whose variances are positive for rows that vary at all.

    It is (1 - s) S + s m with the sample covariance S, the mean m of its variances, and the shrinkage s in [0, 1],
    which vanishes with many rows: Ledoit and Wolf's, or a smaller one if the rows, each left out of the mean and of the
    covariance by which it is judged, have a clearly higher Gaussian density under that.

    References:
        | A well-conditioned estimator for large-dimensional covariance matrices (Ledoit and Wolf, 2004)
        | https://doi.org/10.1016/S0047-259X(03)00096-4
        | Covariance matrix estimation and classification with limited training data (Hoffbeck and Landgrebe, 1996)
        | https://doi.org/10.1109/34.506799

    Example:
        >>> rows = torch.randn(20, 30, dtype=torch.float64)
        >>> bool(shrunk_covariance(rows).variances.min() > 0)
        True
    """
    exact = rows.double()
    centred = exact - exact.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(rows))
    variances = variances.clamp(min=0.0)
    shrinkages = ledoit_wolf(centred, variances) * torch.tensor(FACTORS, dtype=torch.float64).to(variances)
    losses = _left_out_nll((centred @ directions).square(), variances, shrinkages)
    chosen = clearly_best(losses.unbind(1))
    shrunk = _shrink(variances, shrinkages[chosen, None], variances.mean())[0]
    return Spectrum(shrunk.to(rows.dtype), directions.to(rows.dtype))


def ledoit_wolf(centred: Tensor, variances: Tensor) -> Tensor:
    """Returns the shrinkage of Ledoit and Wolf, in [0, 1], without axes.

    Arguments:
        centred: Rows of mean 0, with shape (N, d).
        variances: Eigenvalues of their covariance, with divisor N, with shape (d,).
    """
    count, dim = centred.shape
    squares = variances.square().sum()
    distance = (squares - variances.sum().square() / dim).clamp(min=0.0)
    error = ((centred.square().sum(1).square().mean() - squares) / count).clamp(min=0.0)
    return torch.where(error < distance, error / distance, 1.0)


def _shrink(variances: Tensor, shrinkages: Tensor, towards: Tensor) -> Tensor:
    """Returns the variances (S, d) that eigenvalues (d,) become under each of the shrinkages (S,) towards a number."""
    part = shrinkages[:, None]
    floor = (LEAST_VARIANCE * variances[-1]).clamp(min=torch.finfo(variances.dtype).tiny)
    return torch.maximum((1 - part) * variances + part * towards, floor)


def _left_out_nll(squares: Tensor, variances: Tensor, shrinkages: Tensor) -> Tensor:
    """Returns the NLL (N, S), up to a constant, of every row under the Gaussian of the others, for each shrinkage.

    Without row x, and with its own mean, the covariance M less b x x^T remains of N rows with the sample covariance S,
    M = a S + s m, a = (1 - s) N / (N - 1) and b = a / (N - 1), and x is N / (N - 1) times as far from the mean.

    Arguments:
        squares: Squares of the centred rows' coordinates along the directions of the covariance, with shape (N, d).
        variances: Eigenvalues of the covariance, with shape (d,).
        shrinkages: The shrinkages s, with shape (S,).
    """
    more = len(squares) / max(len(squares) - 1, 1)
    whole = _shrink(more * variances, shrinkages, variances.mean())
    length = squares @ (1 / whole).T
    share = (1 - shrinkages) * more / max(len(squares) - 1, 1) * length
    left = 1 - share  # at most 0 where the other rows leave a direction without variance
    nll = 0.5 * (whole.log().sum(1) + left.clamp(min=1e-12).log() + more**2 * length / left.clamp(min=1e-12))
    return torch.where(left > 0, nll, torch.inf)
