"""The world of several processes: what each of them holds and computes, and how all of them decide alike.

All processes run the same program and hold the same parameters. What they exchange: in every iteration one vector, the
sums of their gradients with a few numbers behind; the images of validation and test rows, which each computes for a
part of the rows; and the time of the first process, wherever time decides. So all of them see the same numbers, and do
the same next.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from jkoflow.errors import UserError
from jkoflow.metrics import RowsCall
from jkoflow.training.interruption import SIGNALS
from jkoflow.training.world import Clock, World

T = TypeVar("T")

LOCAL_RANK = "LOCAL_RANK"
"""Variable of the environment in which torchrun gives a process its number on its machine."""

READ_EVERY = 10
"""Updates between two looks, on a GPU, at what is told with the gradients: every look waits for the device."""


_PLACE_IN_SOURCE = re.compile(r"^\[\S*:\d+\] ")


class LostProcessError(UserError, RuntimeError):
    """Raised in all other processes of a training if one has ended before its end.

    Arguments:
        error: The error of the connection.
    """

    def __init__(self, error: BaseException) -> None:
        sentence = _PLACE_IN_SOURCE.sub("", str(error).splitlines()[0]).partition(". ")[0]
        self.reason = (
            f"another process of this training has ended, or cannot be reached ({sentence}); what was saved is whole"
        )
        super().__init__(f"{self.reason}: start all processes again, as many as you like, with resume")


class DriftError(UserError, RuntimeError):
    """Raised if processes that must hold the same numbers do not; the message tells which."""


class Ranks(World):
    """The processes of PyTorch's default process group, each of which makes all calls of a world at the same point.

    Arguments:
        clock: A function that returns the time in seconds, of which that of the first process counts; the machine's
            clock if None.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # groups of its own: what the program sends in its group does not get between, and they can be ended alone
        self._group: Any = dist.new_group(backend="gloo")
        self._device_group: Any = None
        self._updates = 0
        self._told: tuple[float, int | None] = (0.0, None)  # time and signal as of the last update

    def device(self, name: str) -> torch.device:
        """Returns the device with a name; the GPU of this process, by its number on its machine, for ``"cuda"``."""
        if name == "cuda" and LOCAL_RANK in os.environ:
            name = f"cuda:{os.environ[LOCAL_RANK]}"
        return super().device(name)

    # ---- Time

    def elapsed(self) -> float:
        """Returns the seconds into the run by the clock of the first process."""
        seconds = torch.tensor([super().elapsed()], dtype=torch.float64)
        with _lost():
            dist.broadcast(seconds, 0, group=self._group)
        return seconds.item()

    def recent(self) -> float:
        """Returns the seconds into the run that were told with the last update."""
        return self._told[0]

    # ---- Agreement

    def signal(self) -> int | None:
        """Returns the number of the signal that has come to any process."""
        return _came(self.sums(self._counts()))

    def recent_signal(self) -> int | None:
        """Returns the number of the signal that was told with the last update."""
        return self._told[1]

    def first(self, call: Callable[[], T]) -> T:
        """Returns what a call returns that the first process alone makes, or raises what it raises."""
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = call()
            except Exception as error:  # raised below, everywhere
                outcome[1] = error
        with _lost():
            dist.broadcast_object_list(outcome, 0, group=self._group)
        value, error = outcome
        if error is not None:
            raise error
        return value

    def together(self, call: Callable[[], T]) -> T:
        """Returns what a call returns that all processes make; if it fails in any of them, it fails in all.

        Raises:
            UserError: If it has failed elsewhere; the message tells why.
        """
        value, own = None, None
        try:
            value = call()
        except Exception as error:
            own = error
        errors: list[Any] = [None] * self.size
        with _lost():
            dist.all_gather_object(errors, None if own is None else str(own), group=self._group)
        if own is not None:
            raise own
        failed = [rank for rank, error in enumerate(errors) if error is not None]
        if failed:
            raise UserError(f"{errors[failed[0]]} (in process {failed[0]})")
        return value  # type: ignore[return-value]

    def check_same(self, digest: Callable[[], str], text: str) -> None:
        """Refuses to go on if a digest differs between processes; the text says of what it is, and the fix.

        Raises:
            DriftError: If it does.
        """
        found: list[Any] = [None] * self.size
        with _lost():
            dist.all_gather_object(found, digest(), group=self._group)
        others = [rank for rank, other in enumerate(found) if other != found[0]]
        if others:
            raise DriftError(f"{text} (process {others[0]} differs from process 0)")

    def check_memory(self, limit: str | None) -> None:
        """Refuses a limit of memory: every process reads all rows before it takes its share.

        Raises:
            UserError: If there is one.
        """
        if limit is not None:
            raise UserError(
                f"memory = {limit!r} bounds one process, and there are {self.size}; leave it out, or train in one"
            )

    def _counts(self) -> list[float]:
        return [float(self._asked() == number) for number in SIGNALS]

    # ---- Updates

    def update(self, gradient_and_tail: Tensor) -> None:
        """Adds up the gradients of all processes in their place, and the numbers behind them.

        Time and signals go with these, so that an update takes no other exchange.

        Arguments:
            gradient_and_tail: The gradient of this process and the numbers behind it, with shape (P + TAIL,); the last
                three are overwritten.
        """
        told = [super().elapsed() if self.leads else 0.0, *self._counts()]
        tail = gradient_and_tail[-len(told) :]
        tail.copy_(torch.tensor(told))
        with _lost():
            dist.all_reduce(gradient_and_tail, group=self._group_for(gradient_and_tail))
        if not tail.is_cuda or self._updates % READ_EVERY == 0:
            seconds, *counts = tail.tolist()
            self._told = (seconds, _came(counts))
        self._updates += 1

    # ---- Rows

    def part(self, count: int) -> slice:
        """Returns which of so many rows this process holds, or computes."""
        return self._part(count, self.rank)

    def _part(self, count: int, rank: int) -> slice:
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    def share_out(self, call: RowsCall, rows: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """Returns tensors that a call computes row by row, each process for a part of the rows.

        Too few rows to have some for everybody are computed by everybody.
        """
        if len(rows) < self.size:
            return call(rows, context)
        part = self.part(len(rows))
        results = call(rows[part], None if context is None else context[part])
        counts = [part.stop - part.start for part in (self._part(len(rows), rank) for rank in range(self.size))]
        flat = self._gathered(torch.cat([result.reshape(len(result), -1) for result in results], 1), counts)
        columns = flat.split([result[0].numel() for result in results], 1)
        return tuple(
            found.reshape(-1, *result.shape[1:]).to(result.dtype).contiguous()
            for found, result in zip(columns, results, strict=True)
        )

    def gathered(self, part: Tensor) -> Tensor:
        """Returns the rows of all processes, one process after the other, given those of this one."""
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        with _lost():
            dist.all_gather(sizes, torch.tensor([len(part)]), group=self._group)
        return self._gathered(part, [int(size) for size in sizes])

    def _gathered(self, part: Tensor, counts: Sequence[int]) -> Tensor:
        """Returns the same, given the numbers of rows of all processes."""
        padded = part.new_zeros(max(counts), *part.shape[1:], device="cpu")
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in counts]
        with _lost():
            dist.all_gather(parts, padded, group=self._group)
        return torch.cat([found[:count] for found, count in zip(parts, counts, strict=True)]).to(part.device)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Returns the sums of numbers over all processes."""
        total = torch.tensor(list(values), dtype=torch.float64)
        with _lost():
            dist.all_reduce(total, group=self._group)
        return total.tolist()

    # ---- Ends

    def meet(self) -> None:
        """Waits until all processes are here."""
        self.sums([0.0])

    def close(self) -> None:
        """Ends what connects the processes, so that none waits for one that has failed."""
        groups = [group for group in (self._device_group, self._group) if group is not None]
        self._device_group = self._group = None
        while groups:
            dist.destroy_process_group(groups.pop())  # whose connections last as long as anything refers to it

    def _group_for(self, tensor: Tensor) -> Any:
        """Returns the group that adds up a tensor where it is."""
        if not tensor.is_cuda:
            return self._group
        if self._device_group is None:
            self._device_group = dist.new_group(backend="nccl")
        return self._device_group


def _came(counts: Sequence[float]) -> int | None:
    """Returns the first of the signals that any process counts."""
    return next((number for number, count in zip(SIGNALS, counts, strict=True) if count > 0), None)


@contextmanager
def _lost() -> Iterator[None]:
    """Tells of a lost process what is an error of the connection."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(error) from error


def is_group() -> bool:
    """Tells whether this process is one of several in PyTorch's default process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
