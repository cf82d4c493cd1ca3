"""What an optimiser knows at one moment."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class OptimizerState(NamedTuple):
    """Parameters and the optimiser's memory at one moment."""

    parameters: Tensor
    """All parameters as one vector, with shape (P,)."""
    memory: dict[str, Tensor]
    """What the optimiser has gathered from the gradients so far, by name."""
    updates: int
    """Number of updates so far."""

    def to(self, device: torch.device) -> OptimizerState:
        """Returns the state with its tensors on a device."""
        memory = {name: tensor.to(device) for name, tensor in self.memory.items()}
        return OptimizerState(self.parameters.to(device), memory, self.updates)
