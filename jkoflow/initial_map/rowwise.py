"""Products of rows with a matrix that give every row the same bits whatever its neighbors are.

A library multiplies 5 rows by another routine than 5000, and the results differ by rounding. Here all products have one
size: rows are taken `BLOCK` at a time, the last ones with zeros beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 64
"""Number of rows of a product."""


def rowwise_product(rows: Tensor, matrix: Tensor) -> Tensor:
    """Returns the products (B, e) of rows (B, d) with a matrix (d, e).

    Example:
        >>> rows, matrix = torch.randn(1000, 7), torch.randn(7, 7)
        >>> alone = torch.cat([rowwise_product(row, matrix) for row in rows.split(1)])
        >>> torch.equal(rowwise_product(rows, matrix), alone)
        True
    """
    if torch.compiler.is_compiling():  # which knows no number of rows, and multiplies by routines of its own
        return rows @ matrix
    count = rows.shape[0]
    blocks = functional.pad(rows, (0, 0, 0, -count % BLOCK)).unflatten(0, (-1, BLOCK))
    return torch.matmul(blocks, matrix.expand(blocks.shape[0], *matrix.shape)).flatten(0, 1)[:count]
