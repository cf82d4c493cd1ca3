"""Parameters as parts of one vector, and matrices of one shape in it as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

ALIGNMENT = 16
"""Every parameter starts at a multiple of this many numbers, so that kernels read aligned memory."""

TAIL = 16
"""Numbers behind the gradients in their memory: what several processes add up together with these."""


def padded(numbers: int) -> int:
    """Returns how many numbers of a vector a parameter of so many takes up.

    Example:
        >>> [padded(n) for n in (1, 16, 17)]
        [16, 16, 32]
    """
    return -(-numbers // ALIGNMENT) * ALIGNMENT


def attach(parameters: Sequence[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """Makes parameters and their gradients views of two vectors, one after the other; their values stay.

    Arguments:
        parameters: The parameters, each of them once.

    Returns:
        The vectors of all parameters, with shape (P,), and of all gradients, with shape (P + `TAIL`,), and zeros
        between them.
    """
    length = sum(padded(parameter.numel()) for parameter in parameters)
    values = parameters[0].new_zeros(length, requires_grad=False)
    gradient = values.new_zeros(length + TAIL)
    start = 0
    for parameter in parameters:
        part = slice(start, start + parameter.numel())
        values[part].copy_(parameter.detach().reshape(-1))
        parameter.data = values[part].view(parameter.shape)
        parameter.grad = gradient[part].view(parameter.shape)
        start += padded(parameter.numel())
    return values, gradient


class Stack(NamedTuple):
    """The place, in a vector, of neighbouring matrices of one shape."""

    start: int
    """Place of the first number of the first matrix."""
    matrices: int
    """Number of matrices."""
    rows: int
    columns: int

    def of(self, vector: Tensor) -> Tensor:
        """Returns the matrices in a vector (P,) as a view, with shape (matrices, rows, columns)."""
        size = self.rows * self.columns
        stride = padded(size)
        parts = vector[self.start : self.start + self.matrices * stride].unflatten(0, (self.matrices, stride))
        return parts[:, :size].unflatten(1, (self.rows, self.columns))


def stacks(shapes: Sequence[torch.Size]) -> list[Stack]:
    """Returns where the matrices of these shapes lie in their vector, neighbours of one shape together.

    Arguments:
        shapes: Shapes of the parameters of the vector, in its order.

    Raises:
        ValueError: If a parameter is no matrix.

    Example:
        >>> [tuple(stack) for stack in stacks([torch.Size((3, 2)), torch.Size((3, 2)), torch.Size((2, 3))])]
        [(0, 2, 3, 2), (32, 1, 2, 3)]
    """
    found, start = [], 0
    for shape, group in groupby(shapes):
        if len(shape) != 2:
            raise ValueError(f"parameters must be matrices, got one of shape {tuple(shape)}; update it with adam")
        found.append(Stack(start, len(list(group)), *shape))
        start += found[-1].matrices * padded(shape.numel())
    return found
