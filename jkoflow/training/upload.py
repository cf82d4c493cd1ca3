"""Numbers that the CPU computes and a GPU reads later, which neither of them waits for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Upload:
    """A tensor on a device that the CPU fills again and again.

    A GPU copies from pinned memory when it comes to it, and until then nobody may write there. So there are several
    slots of it, each of which is written again when its copy is done: the CPU may be as many copies ahead.

    Arguments:
        shape: Shape of the tensor.
        dtype: Type of its numbers.
        device: Device of the tensor.
        slots: Copies that the CPU may be ahead, on a GPU.

    Attributes:
        there: The tensor, which stays where it is.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, slots: int) -> None:
        self.there = torch.empty(*shape, dtype=dtype, device=device)
        self._slots: list[tuple[Tensor, torch.cuda.Event]] = []
        self._turn = 0
        if device.type == "cuda":
            pinned = torch.empty(slots, *shape, dtype=dtype, pin_memory=True)
            self._slots = [(slot, torch.cuda.Event()) for slot in pinned]

    def __call__(self, numbers: Tensor) -> None:
        """Fills the tensor with numbers on the CPU, in its place among the work of the current stream."""
        if not self._slots:
            self.there.copy_(numbers)
            return
        slot, copied = self._slots[self._turn % len(self._slots)]
        self._turn += 1
        copied.synchronize()
        slot.copy_(numbers)
        self.there.copy_(slot, non_blocking=True)
        copied.record(torch.cuda.current_stream(self.there.device))
