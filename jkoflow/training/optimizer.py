"""Adam on one vector of all parameters of a module, and the learning rate of every iteration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

ALIGNMENT = 16
"""Every parameter starts at a multiple of this many numbers, so that kernels read aligned memory."""


class AdamState(NamedTuple):
    """Parameters and the optimiser's memory at one moment."""

    parameters: Tensor
    """All parameters as one vector, with shape (P,)."""
    mean: Tensor
    """Running mean of the gradients, with shape (P,)."""
    square: Tensor
    """Running mean of the squared gradients, with shape (P,)."""
    updates: int
    """Number of updates so far."""

    def to(self, device: torch.device) -> AdamState:
        """Returns the state with its tensors on a device."""
        return AdamState(self.parameters.to(device), self.mean.to(device), self.square.to(device), self.updates)


class HasParameters(Protocol):
    """Protocol of a module whose parameters can be trained."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Returns the parameters, always in the same order."""
        ...


class Adam:
    """Adam with gradient clipping, in a few operations per update whatever the number of parameters.

    The module's parameters become views of one vector, and so do their gradients: clipping, updating, copying and
    saving are then operations on vectors.

    Arguments:
        module: The module to train; its parameters keep their values and become views of the vector.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of squared gradients.
        clip_norm: Gradients longer than this are scaled down to it.

    References:
        | Adam: A method for stochastic optimization (Kingma and Ba, 2014)
        | https://arxiv.org/abs/1412.6980
    """

    def __init__(
        self, module: HasParameters, beta1: float = 0.9, beta2: float = 0.999, clip_norm: float = math.inf
    ) -> None:
        self.beta1, self.beta2, self.clip_norm = beta1, beta2, clip_norm
        parameters = list(module.parameters())
        self._module_parameters = parameters
        starts = [0]
        for parameter in parameters:
            starts.append(starts[-1] + -(-parameter.numel() // ALIGNMENT) * ALIGNMENT)
        self.parameters = parameters[0].new_zeros(starts[-1], requires_grad=False)
        self.gradient = torch.zeros_like(self.parameters)
        for parameter, start in zip(parameters, starts[:-1], strict=True):
            part = slice(start, start + parameter.numel())
            self.parameters[part].copy_(parameter.detach().reshape(-1))
            parameter.data = self.parameters[part].view(parameter.shape)
            parameter.grad = self.gradient[part].view(parameter.shape)
        self.mean = torch.zeros_like(self.parameters)
        self.square = torch.zeros_like(self.parameters)
        self.updates = 0

    @torch.no_grad()
    def update(self, loss: Tensor, learning_rate: float) -> Tensor:
        """Descends along the gradient of the loss.

        Arguments:
            loss: The number to minimise, a tensor without axes, computed from the module's parameters.
            learning_rate: Step length.

        Returns:
            Norm of the gradient before clipping, a tensor without axes.
        """
        self.gradient.zero_()
        loss.backward()
        norm = torch.linalg.vector_norm(self.gradient)
        if self.clip_norm < math.inf:
            self.gradient.mul_((self.clip_norm / norm).clamp(max=1.0))  # norm = 0 gives inf, clamped
        self.updates += 1
        self.mean.lerp_(self.gradient, 1 - self.beta1)
        self.square.mul_(self.beta2).addcmul_(self.gradient, self.gradient, value=1 - self.beta2)
        root = self.square.sqrt().mul_(1 / math.sqrt(1 - self.beta2**self.updates)).add_(1e-8)
        self.parameters.addcdiv_(self.mean, root, value=-learning_rate / (1 - self.beta1**self.updates))
        return norm

    def state(self) -> AdamState:
        """Returns a copy of the parameters and of the optimiser's memory."""
        return AdamState(self.parameters.clone(), self.mean.clone(), self.square.clone(), self.updates)

    def restore(self, state: AdamState) -> None:
        """Restores a state, the module's parameters included."""
        self.load(state.parameters)
        self.mean.copy_(state.mean)
        self.square.copy_(state.square)
        self.updates = state.updates

    def load(self, parameters: Tensor) -> None:
        """Puts parameters (P,) into the module and leaves the optimiser's memory alone."""
        with torch.no_grad():
            self.parameters.copy_(parameters)

    def release(self) -> None:
        """Gives the module's parameters memory of their own and ends their training."""
        for parameter in self._module_parameters:
            parameter.data = parameter.data.clone()
            parameter.grad = None


def peak_learning_rate(columns: int) -> float:
    """Returns the peak learning rate for rows with a given number of columns.

    It is 5e-3 for up to ten columns, and less for more, whose gradients are noisier.

    Example:
        >>> [peak_learning_rate(d) for d in (2, 10, 40)]
        [0.005, 0.005, 0.0025]
    """
    return 5e-3 / math.sqrt(max(1.0, columns / 10))


def learning_rate(iteration: int, iterations: int, peak: float, warmup: int) -> float:
    r"""Returns the learning rate of an iteration: linear warm-up to the peak, then half a cosine down to 1 % of it.

    Arguments:
        iteration: Number of the iteration, from 0.
        iterations: Iterations in all.
        peak: Largest learning rate.
        warmup: Iterations of the warm-up; at most a fifth of all is used.

    Returns:
        The learning rate, positive.
    """
    warmup = min(warmup, iterations // 5)
    if iteration < warmup:
        return peak * (iteration + 1) / (warmup + 1)
    return peak * cosine((iteration - warmup) / max(1, iterations - warmup))


def cosine(progress: float) -> float:
    """Returns the learning rate as a share of the peak: half a cosine down to 1 % as progress goes from 0 to 1."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
