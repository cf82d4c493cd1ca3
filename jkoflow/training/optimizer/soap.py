"""SOAP: Adam in the eigenbasis of the gradients of a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jkoflow.training.optimizer.flat import Stack, stacks

BETA = 0.95
"""Decay of all means: of gradients, of their squares in the eigenbasis, and of their products."""

REFRESH_EVERY = 10
"""Updates between two refreshes of the eigenbases."""

EPSILON = 1e-8
"""Added to the root of the mean square, as in Adam."""


class SoapRule:
    r"""SOAP: the gradient G of a matrix is updated as Adam would in the eigenbases of the means of G G^T and G^T G.

    A refresh of a basis Q of a mean P is one step of orthogonal iteration, the Q of the QR decomposition of P Q. So is
    the first one, from the identity at the first update, where the publication takes an eigendecomposition: that
    would wait for the device, and fail for gradients that are NaN. A refresh takes time of the order of the cubes of
    both sides of a matrix.

    Arguments:
        parameters: The parameters, with shape (Q,).
        shapes: Shapes of the matrices that the parameters are; neighbours of one shape are computed together.

    Raises:
        ValueError: If a parameter is no matrix.

    References:
        | SOAP: Improving and stabilizing Shampoo using Adam (Vyas et al., 2024)
        | https://arxiv.org/abs/2409.11321
    """

    def __init__(self, parameters: Tensor, shapes: Sequence[torch.Size]) -> None:
        self._stacks = stacks(shapes)
        self.memory = {"mean": torch.zeros_like(parameters), "square": torch.zeros_like(parameters)}
        for number, stack in enumerate(self._stacks):
            for side, size in (("left", stack.rows), ("right", stack.columns)):
                eye = torch.eye(size, dtype=parameters.dtype, device=parameters.device)
                self.memory[f"{side}.{number}"] = parameters.new_zeros(stack.matrices, size, size)
                self.memory[f"{side}_basis.{number}"] = eye.repeat(stack.matrices, 1, 1)

    def step(self, parameters: Tensor, gradient: Tensor, rate: float, updates: int) -> None:
        """Updates the matrices in place, see `jkoflow.training.optimizer.rule.Rule`."""
        self.memory["mean"].lerp_(gradient, 1 - BETA)
        for number, stack in enumerate(self._stacks):
            self._gather(number, stack.of(gradient), refresh=updates % REFRESH_EVERY == 1)
            self._descend(number, stack, parameters, gradient, rate, updates)

    def _gather(self, number: int, gradients: Tensor, refresh: bool) -> None:
        """Takes the gradients (n, rows, columns) of a stack into the means of their products."""
        for side, G in (("left", gradients), ("right", gradients.mT)):
            product, basis = self.memory[f"{side}.{number}"], self.memory[f"{side}_basis.{number}"]
            product.baddbmm_(G, G.mT, beta=BETA, alpha=1 - BETA)
            if refresh:
                basis.copy_(torch.linalg.qr(product @ basis).Q)

    def _descend(
        self, number: int, stack: Stack, parameters: Tensor, gradient: Tensor, rate: float, updates: int
    ) -> None:
        """Updates the matrices of a stack by Adam in their eigenbases."""
        left, right = self.memory[f"left_basis.{number}"], self.memory[f"right_basis.{number}"]
        turned, mean = (left.mT @ stack.of(vector) @ right for vector in (gradient, self.memory["mean"]))
        square = stack.of(self.memory["square"])
        square.mul_(BETA).addcmul_(turned, turned, value=1 - BETA)
        correction = 1 - BETA**updates
        root = square.sqrt().mul_(1 / math.sqrt(correction)).add_(EPSILON)
        step = left @ mean.div_(root) @ right.mT
        stack.of(parameters).add_(step, alpha=-rate / correction)
