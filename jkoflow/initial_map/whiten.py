"""The linear map that takes the correlations of the columns away."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jkoflow.initial_map.covariance import shrunk_covariance
from jkoflow.initial_map.rowwise import rowwise_product


class Whiten(nn.Module):
    """Maps x to the solution y of x = mean + root y.

    Arguments:
        mean: The mean, with shape (d,).
        root: Square root of the covariance: symmetric and positive definite, with shape (d, d).
    """

    mean: Tensor
    root: Tensor

    def __init__(self, mean: Tensor, root: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("root", root)
        self._known: tuple[Tensor, int, tuple[Tensor, Tensor]] | None = None

    def check_numbers(self) -> None:
        """Refuses numbers that are no invertible map.

        Raises:
            ValueError: If they are not finite, or the root has no inverse.
        """
        determinant = self._inverted()[1] if bool(self.root.isfinite().all()) else self.root.new_tensor(torch.nan)
        if not bool(self.mean.isfinite().all() and determinant.isfinite()):
            raise ValueError("the mean must be finite, and the root finite with an inverse")

    @classmethod
    def fit(cls, rows: Tensor) -> Whiten:
        """Fits a map that brings rows (N, d) to mean 0 and covariance 1 and turns them as little as possible.

        The covariance is that of `jkoflow.initial_map.covariance.shrunk_covariance`: a map by itself is the density of
        a Gaussian that few rows do not make too narrow.
        """
        variances, directions = shrunk_covariance(rows)
        return cls(rows.mean(0), (directions * variances.sqrt()) @ directions.T)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images (B, d) and logdets (B,) of x (B, d)."""
        inverse, log_det = self._inverted()
        # In float64: the inverse is large where columns are correlated, and what comes after expands its rounding.
        y = rowwise_product(x.double() - self.mean.double(), inverse.T)
        return y.to(x.dtype), -log_det.expand(x.shape[0])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns preimages (B, d) and logdets (B,) of the inverse map for y (B, d)."""
        return rowwise_product(y, self.root.T) + self.mean, self._inverted()[1].expand(y.shape[0])

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without the cached inverse, since the version counters of copies begin anew."""
        return {**self.__dict__, "_known": None}

    def _inverted(self) -> tuple[Tensor, Tensor]:
        """Returns inverse and log det of the root, computed anew only if the root has changed."""
        root = self.root
        if torch.compiler.is_compiling() or root.is_inference():  # what has no version may change unseen
            return _invert(root)
        known = self._known
        if known is None or known[0] is not root or known[1] != root._version:
            with torch.inference_mode(False), torch.no_grad():  # to be used in any mode
                known = self._known = root, root._version, _invert(root)
        return known[2]


def _invert(root: Tensor) -> tuple[Tensor, Tensor]:
    exact = root.double()
    return torch.linalg.inv(exact), torch.linalg.slogdet(exact)[1].to(root.dtype)
