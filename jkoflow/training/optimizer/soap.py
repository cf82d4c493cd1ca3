"""SOAP: Adam in the eigenbasis of the gradients of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.training.optimizer.factors import Factor, add_scaled
from jkoflow.training.optimizer.flat import stacks

BETA = 0.95
"""Decay of all means: of gradients, of their squares in the eigenbasis, and of their products."""

REFRESH_EVERY = 10
"""Updates between two refreshes of the eigenbases."""

EPSILON = 1e-8
"""Added to the root of the mean square, as in Adam."""


class _Matrices(NamedTuple):
    """Matrices of one shape and their memory, all with shape (n, rows, columns) but for the sides'."""

    parameters: Tensor
    gradient: Tensor
    mean: Tensor
    square: Tensor
    """Mean of the squares of the gradient in the eigenbases."""
    left: _Side
    right: _Side


class _Side(NamedTuple):
    """The rows of matrices, or their columns, with shape (n, size, size)."""

    product: Tensor
    """Mean of G G^T, or of G^T G."""
    basis: Tensor
    """Its eigenvectors, one a column, as far as they are known."""

    def gather(self, G: Tensor, refresh: bool) -> None:
        """Takes gradients (n, size, *) into the mean."""
        self.product.baddbmm_(G, G.mT, beta=BETA, alpha=1 - BETA)
        if refresh:
            self.basis.copy_(torch.linalg.qr(torch.bmm(self.product, self.basis)).Q)


class SoapRule:
    r"""SOAP: the gradient G of a matrix is updated as Adam would in the eigenbases of the means of G G^T and G^T G.

    A refresh of a basis Q of a mean P is one step of orthogonal iteration, the Q of the QR decomposition of P Q. So is
    the first one, from the identity at the first update, where the publication takes an eigendecomposition: that
    would wait for the device, and fail for gradients that are NaN. A refresh takes time of the order of the cubes of
    both sides of a matrix.

    Arguments:
        parameters: The parameters, with shape (Q,).
        gradient: Their gradient, with shape (Q,), where it is at every step.
        shapes: Shapes of the matrices that the parameters are; neighbours of one shape are computed together.

    Raises:
        ValueError: If a parameter is no matrix.

    References:
        | SOAP: Improving and stabilizing Shampoo using Adam (Vyas et al., 2024)
        | https://arxiv.org/abs/2409.11321
    """

    def __init__(self, parameters: Tensor, gradient: Tensor, shapes: Sequence[torch.Size]) -> None:
        self.memory = {"mean": torch.zeros_like(parameters), "square": torch.zeros_like(parameters)}
        self._gradient = gradient
        self._matrices: list[_Matrices] = []
        mean, square = self.memory["mean"], self.memory["square"]
        for number, stack in enumerate(stacks(shapes)):
            left = self._side(f"left.{number}", stack.matrices, stack.rows, parameters)
            right = self._side(f"right.{number}", stack.matrices, stack.columns, parameters)
            values, G, M, V = (stack.of(vector) for vector in (parameters, gradient, mean, square))
            self._matrices.append(_Matrices(values, G, M, V, left, right))

    def _side(self, name: str, matrices: int, size: int, like: Tensor) -> _Side:
        eye = torch.eye(size, dtype=like.dtype, device=like.device)
        side = _Side(like.new_zeros(matrices, size, size), eye.repeat(matrices, 1, 1))
        self.memory[name], self.memory[f"{name}.basis"] = side
        return side

    def factors(self, rate: float, updates: int) -> tuple[float, ...]:
        """Returns what brings the root mean square to its size, and the step length, with the bias corrected in both.

        See `jkoflow.training.optimizer.rule.Rule`.
        """
        correction = 1 - BETA**updates
        return 1 / math.sqrt(correction), -rate / correction

    def refreshes(self, updates: int) -> bool:
        """Tells whether an update refreshes the eigenbases: no CUDA graph holds a QR decomposition."""
        return updates % REFRESH_EVERY == 1

    def step(self, factors: Sequence[Factor], refresh: bool) -> None:
        """Updates the matrices in place, see `jkoflow.training.optimizer.rule.Rule`."""
        scale, length = factors
        self.memory["mean"].lerp_(self._gradient, 1 - BETA)
        for matrices in self._matrices:
            _update(matrices, scale, length, refresh)


def _update(matrices: _Matrices, scale: Factor, length: Factor, refresh: bool) -> None:
    """Updates matrices of one shape by Adam in their eigenbases."""
    parameters, gradient, mean, square, left, right = matrices
    left.gather(gradient, refresh)
    right.gather(gradient.mT, refresh)
    turned, turned_mean = (torch.bmm(torch.bmm(left.basis.mT, G), right.basis) for G in (gradient, mean))
    square.mul_(BETA).addcmul_(turned, turned, value=1 - BETA)
    root = square.sqrt().mul_(scale).add_(EPSILON)
    step = torch.bmm(torch.bmm(left.basis, turned_mean.div_(root)), right.basis.mT)
    add_scaled(parameters, step, length)
