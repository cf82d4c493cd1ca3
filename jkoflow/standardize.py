"""The first layer of a flow, which brings columns of data or context to mean 0 and deviation 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """The first layer of a flow, :math:`(x - mean) / std` per column.

    Arguments:
        mean: Column means, with shape (d,).
        std: Column standard deviations, positive, with shape (d,).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        if mean.shape != std.shape or mean.dim() != 1:
            raise ValueError(f"mean and std must have the same shape (d,), got {tuple(mean.shape)}, {tuple(std.shape)}")
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        if not mean.is_meta:  # what is read from a file gets its numbers later
            self.check_numbers()

    def check_numbers(self) -> None:
        """Refuses numbers that standardise nothing.

        Raises:
            ValueError: If the mean is not finite, or the std not finite and positive.
        """
        mean, std = self.mean, self.std
        if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise ValueError("mean must be finite and std finite and positive in every column")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardises x (B, d); logdet (B,) is minus the sum of log std."""
        return (x - self.mean) / self.std, -self.std.log().sum().expand(x.shape[0])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Undoes `forward` for z (B, d); logdet (B,) is the sum of log std."""
        return z * self.std + self.mean, self.std.log().sum().expand(z.shape[0])
