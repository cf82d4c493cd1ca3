"""What a flow is trained on: three parts of one table, checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jkoflow.data.checks import DataError, check_finite, check_varies


@dataclass(frozen=True)
class Dataset:
    """Rows to train on, to choose parameters by and to report on, in their own units.

    Arguments:
        name: What reports call it.
        train: Rows to train on, float32, finite, no column constant, with shape (N, d).
        val: Rows to choose parameters by, with shape (N_val, d).
        test: Rows to report on, with shape (N_test, d).
        features: Names of the d columns.
        attribution: Source and licence, shown wherever the data are.

    Raises:
        DataError: If a part is empty, of another shape or dtype, holds NaN or inf, or a column of train is constant.

    Example:
        >>> rows = torch.randn(30, 2)
        >>> Dataset("noise", rows[:20], rows[20:25], rows[25:], ("a", "b")).dim
        2
    """

    name: str
    train: Tensor
    val: Tensor
    test: Tensor
    features: tuple[str, ...]
    attribution: str = ""

    def __post_init__(self) -> None:
        dim = len(self.features)
        for part, rows in (("train", self.train), ("val", self.val), ("test", self.test)):
            if rows.dim() != 2 or rows.shape[1] != dim or dim == 0 or rows.dtype != torch.float32:
                raise DataError(
                    f"{part} must be float32 with shape (N, {dim}) to match the {dim} features, got {rows.dtype} "
                    f"with shape {tuple(rows.shape)}"
                )
            if rows.shape[0] == 0:
                raise DataError(f"{part} is empty; give it at least one row")
            check_finite(rows.detach().cpu().numpy(), self.features, part)
        check_varies(self.train.detach().cpu().numpy(), self.features, "train")

    @property
    def dim(self) -> int:
        """Number d of features."""
        return len(self.features)


def require_batch(data: Dataset, batch_size: int) -> None:
    """Makes sure that the training part fills a batch.

    Arguments:
        data: The data to train on.
        batch_size: Rows in a batch.

    Raises:
        DataError: If there are fewer training rows than that.
    """
    rows = data.train.shape[0]
    if rows < batch_size:
        raise DataError(
            f"{data.name} has {rows} training rows, fewer than a batch of {batch_size}; "
            f"give more rows, or set batch_size = {rows} or less in the configuration"
        )
