"""Which of the training rows a process holds, if several processes share them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Place:
    """The place of a process's rows among those of all processes, which are numbered one process after the other."""

    start: int
    """Number of the first of the rows."""
    stop: int
    """Number behind the last of them."""
    total: int
    """Number of the rows of all processes."""

    def holds(self, numbers: Tensor) -> Tensor:
        """Tells which of the rows with some numbers (n,) are the process's own, with shape (n,)."""
        return (numbers >= self.start) & (numbers < self.stop)

    def own(self, numbers: Tensor) -> Tensor:
        """Returns where among the process's own rows those of the rows with some numbers (n,) are that it holds."""
        return numbers[self.holds(numbers)] - self.start

    def chosen(self, numbers: Tensor) -> tuple[Tensor, Place]:
        """Returns `own` of the rows that alone are kept, whose numbers (n,) ascend, and the place of what is left."""
        start, stop = (int((numbers < end).sum()) for end in (self.start, self.stop))
        return self.own(numbers), Place(start, stop, len(numbers))
