"""An optimiser on one vector of all parameters, whose parts have rules and rates of their own."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jkoflow.training.optimizer.adam import AdamRule
from jkoflow.training.optimizer.factors import Factor
from jkoflow.training.optimizer.flat import TAIL, attach, padded
from jkoflow.training.optimizer.groups import Group
from jkoflow.training.optimizer.muon import MuonRule
from jkoflow.training.optimizer.rule import Rule
from jkoflow.training.optimizer.side_by_side import side_by_side
from jkoflow.training.optimizer.soap import SoapRule
from jkoflow.training.optimizer.state import OptimizerState
from jkoflow.training.upload import Upload

UPDATES_AHEAD = 64
"""Updates that the CPU may be ahead of a GPU."""


class _Part(NamedTuple):
    """A group of parameters as a part of the vector."""

    parameters: Tensor
    rule: Rule
    rate: float
    decay: float
    place: slice
    """Place, among the factors, of what is left of the parameters by their decay, and of the rule's factors."""


class Optimizer:
    """An optimiser with gradient clipping, in a few operations per update whatever the number of parameters.

    The parameters become views of one vector, and so do their gradients: clipping, updating, copying and saving are
    then operations on vectors. Nothing waits for the device.

    An update is `prepare`, which computes numbers, and `descend` or `apply`, which call nothing but operations on
    tensors that stay where they are, the same in every update unless `refreshes`.

    Arguments:
        groups: The parameters, with what updates them; they keep their values and become views of the vector.
        beta1: Adam's decay of the mean of gradients.
        beta2: Adam's decay of the mean of squared gradients.
        clip_norm: Gradients of all parameters together that are longer than this are scaled down to it.

    Raises:
        ValueError: If a parameter of Muon or SOAP is no matrix, or a rule is not known.
    """

    def __init__(
        self, groups: Sequence[Group], beta1: float = 0.9, beta2: float = 0.99, clip_norm: float = math.inf
    ) -> None:
        self.clip_norm = clip_norm
        self._module_parameters = [parameter for group in groups for parameter in group.parameters]
        self.parameters, self.gradient_and_tail = attach(self._module_parameters)
        self.gradient = self.gradient_and_tail[:-TAIL]
        self.updates = 0
        self._parts: list[_Part] = []
        start = 0
        for group in groups:
            end = start + sum(padded(parameter.numel()) for parameter in group.parameters)
            values, gradient = self.parameters[start:end], self.gradient[start:end]
            rule = _rule(group, values, gradient, beta1, beta2)
            first = self._parts[-1].place.stop if self._parts else 0
            place = slice(first, first + 1 + len(rule.factors(group.rate, 1)))
            self._parts.append(_Part(values, rule, group.rate, group.decay, place))
            start = end
        self._trained = [parameter for parameter in self._module_parameters if parameter.requires_grad]
        self._gradients = [grad for parameter in self._trained if (grad := parameter.grad) is not None]
        self._on_device: Upload | None = None
        self._factors: list[Factor] = []
        if self.parameters.is_cuda:
            self.keep_factors_on_device()

    @property
    def memory(self) -> dict[str, Tensor]:
        """Returns the memory of all rules by name; names have the number of their group if there are several."""
        if len(self._parts) == 1:
            return dict(self._parts[0].rule.memory)  # as in version 0.1, which had one group alone
        return {f"{k}.{name}": t for k, part in enumerate(self._parts) for name, t in part.rule.memory.items()}

    def keep_factors_on_device(self) -> None:
        """Makes the factors of updates tensors on the device of the parameters, as they are on a GPU from the start."""
        count = self._parts[-1].place.stop
        self._on_device = Upload((count,), self.parameters.dtype, self.parameters.device, UPDATES_AHEAD)
        self._factors = list(self._on_device.there.unbind())

    @property
    def refreshes(self) -> bool:
        """Tells whether the update that is prepared does more than most, by calls that a CUDA graph cannot hold."""
        return any(part.rule.refreshes(self.updates) for part in self._parts)

    def update(self, loss: Tensor, factor: float = 1.0) -> Tensor:
        """Descends along the gradient of the loss.

        Arguments:
            loss: The number to minimise, a tensor without axes, computed from the parameters.
            factor: Factor of the peak rates of all groups.

        Returns:
            Norm of the gradient before clipping, a tensor without axes.
        """
        self.prepare(factor)
        return self.descend(loss)

    def prepare(self, factor: float = 1.0) -> None:
        """Begins an update: computes all numbers that depend on the factor of the peak rates and on its number."""
        self.updates += 1
        factors: list[float] = []
        for part in self._parts:
            rate = factor * part.rate
            factors += 1 - rate * part.decay, *part.rule.factors(rate, self.updates)
        if self._on_device is None:
            self._factors = list[Factor](factors)
        else:
            self._on_device(torch.tensor(factors, dtype=self.parameters.dtype))

    def descend(self, loss: Tensor) -> Tensor:
        """Does the update that is prepared along the gradient of a loss, see `update`."""
        self.differentiate(loss)
        return self.apply()

    @torch.no_grad()
    def differentiate(self, loss: Tensor) -> None:
        """Makes ``gradient`` that of a loss."""
        self.gradient.zero_()  # between the parameters, too, where clipping a NaN leaves one
        if self._on_device is None:
            loss.backward()
        else:  # one kernel for all, where backward() has one for each, on streams that a graph may not wait for
            found = torch.autograd.grad(loss, self._trained, allow_unused=True, materialize_grads=True)
            torch._foreach_copy_(self._gradients, found)  # type: ignore[attr-defined]

    @torch.no_grad()
    def apply(self) -> Tensor:
        """Does the update that is prepared along ``gradient`` as it is, see `update`."""
        norm = torch.linalg.vector_norm(self.gradient)
        if self.clip_norm < math.inf:
            self.gradient.mul_((self.clip_norm / norm).clamp(max=1.0))  # norm = 0 gives inf, clamped
        side_by_side([functools.partial(self._apply, part) for part in self._parts], self.parameters.device)
        return norm

    def _apply(self, part: _Part) -> None:
        kept, *factors = self._factors[part.place]
        if part.decay:
            part.parameters.mul_(kept)
        part.rule.step(factors, part.rule.refreshes(self.updates))

    def state(self) -> OptimizerState:
        """Returns a copy of the parameters and of the optimiser's memory."""
        memory = {name: tensor.clone() for name, tensor in self.memory.items()}
        return OptimizerState(self.parameters.clone(), memory, self.updates)

    def restore(self, state: OptimizerState) -> None:
        """Restores a state, the module's parameters included.

        Raises:
            ValueError: If the state is that of another optimiser or module.
        """
        memory = self.memory
        expected, found = (
            {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            for tensors in ({"parameters": self.parameters, **memory}, {"parameters": state.parameters, **state.memory})
        )
        if expected != found:
            raise ValueError(
                f"state must have tensors of the shapes {expected}, got {found}; restore it with the optimizer that it "
                "is of"
            )
        self.load(state.parameters)
        for name, tensor in memory.items():
            tensor.copy_(state.memory[name])
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


def _rule(group: Group, values: Tensor, gradient: Tensor, beta1: float, beta2: float) -> Rule:
    """Returns the rule of a group, given its parts of the vectors of parameters and gradients, with shape (Q,)."""
    shapes = [parameter.shape for parameter in group.parameters]
    match group.algorithm:
        case "adam":
            return AdamRule(values, gradient, beta1, beta2)
        case "muon":
            return MuonRule(values, gradient, shapes)
        case "soap":
            return SoapRule(values, gradient, shapes)
    raise ValueError(f"algorithm must be adam, muon or soap, got {group.algorithm!r}")
