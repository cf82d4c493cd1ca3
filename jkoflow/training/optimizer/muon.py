"""Muon: a matrix goes along the nearest orthogonal matrix to its mean gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jkoflow.training.optimizer.factors import Factor, add_scaled
from jkoflow.training.optimizer.flat import stacks

MOMENTUM = 0.95
"""Decay of the mean of gradients."""

COEFFICIENTS = (
    (8.0933685126, -23.6204303293, 17.4461517502),
    (3.6365855543, -2.7219267466, 0.5365462883),
    (2.6612999858, -1.9771545219, 0.4526164070),
)
"""Coefficients of the odd polynomials of degree 5 that are applied to the singular values one after the other. Each is
the one that is nearest to 1 on what the ones before have left of the interval from 0.01 to 1."""

EPSILON = 1e-7
"""Added to a matrix's norm, so that a gradient of 0 stays 0."""


class MuonRule:
    """Muon with Nesterov's momentum: all singular values of a step are about 1, whatever the gradient's are.

    Steps of tall matrices are longer, by the root of rows / columns, so that every number they put out moves as much.
    The length of the gradient does not count, so that clipping it would not shorten a step.

    Arguments:
        parameters: The parameters, with shape (Q,).
        gradient: Their gradient, with shape (Q,), where it is at every step.
        shapes: Shapes of the matrices that the parameters are; neighbours of one shape are computed together.

    Raises:
        ValueError: If a parameter is no matrix.

    References:
        | Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024)
        | https://kellerjordan.github.io/posts/muon/
        | The Polar Express: Optimal matrix sign methods and their application to the Muon algorithm
          (Amsel et al., 2025)
        | https://arxiv.org/abs/2505.16932
    """

    def __init__(self, parameters: Tensor, gradient: Tensor, shapes: Sequence[torch.Size]) -> None:
        self.memory = {"mean": torch.zeros_like(parameters)}
        self._gradient, self._ahead = gradient, torch.zeros_like(gradient)
        # made once, since views cost as much as small products
        self._matrices = [
            (stack.of(parameters), stack.of(self._ahead), math.sqrt(max(1.0, stack.rows / stack.columns)))
            for stack in stacks(shapes)
        ]

    def factors(self, rate: float, updates: int) -> tuple[float, ...]:
        """Returns the step length of the matrices of every shape, see `jkoflow.training.optimizer.rule.Rule`."""
        return tuple(-rate * length for _, _, length in self._matrices)

    def refreshes(self, updates: int) -> bool:
        """Tells that all updates are alike."""
        return False

    def step(self, factors: Sequence[Factor], refresh: bool) -> None:
        """Updates the matrices in place, see `jkoflow.training.optimizer.rule.Rule`."""
        mean = self.memory["mean"].lerp_(self._gradient, 1 - MOMENTUM)
        torch.lerp(self._gradient, mean, MOMENTUM, out=self._ahead)
        for (parameters, ahead, _), length in zip(self._matrices, factors, strict=True):
            add_scaled(parameters, orthogonalized(ahead), length)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Moves all singular values of matrices to about 1 by the iterations of Polar Express, and leaves the vectors.

    Three of its polynomials do what four or five Newton-Schulz iterations with the same coefficients do.

    Arguments:
        matrices: The matrices, with shape (n, rows, columns).

    Returns:
        The matrices, with shape (n, rows, columns); zeros for a matrix of zeros. A singular value that is a hundredth
        of the matrix's Frobenius norm or more ends between 0.73 and 1.27; smaller ones grow 78-fold.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    X = matrices.mT if is_tall else matrices  # the products with X X^T are then the smaller ones
    X = X / (torch.linalg.vector_norm(X, dim=(1, 2), keepdim=True) + EPSILON)
    for a, b, c in COEFFICIENTS:
        gram = torch.bmm(X, X.mT)
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if is_tall else X
