"""Tensors that lie in scratch files: rows that are more than memory holds.

To PyTorch such a tensor is as any other, and what is not read takes no memory. What has been read does, until it is
released: the functions here go through rows part by part and release each. Rows in memory go through them unchanged.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from jkoflow.errors import UserError

PART_BYTES = 1 << 24
"""Bytes of a mapped tensor that are read one after the other before they are released."""

MOST_INT32 = 2**31 - 1


class ScratchError(UserError, OSError):
    """Raised if there is no room for scratch files; the message is one line and tells the fix."""


class ScratchFile(mmap.mmap):
    """The memory map of a file without a name, whose room on the disk is free again once the map is, or the process.

    Arguments:
        size: Size in bytes, which is reserved at once: a full disk is an error here and not a signal later on.
        directory: Where the file lies.
    """

    directory: Path
    descriptor: int
    """Of the file, to read single rows by: the system maps as much as 2 MB around each that is read from the map."""

    def __new__(cls, size: int, directory: Path) -> Self:
        """Makes the file."""
        with tempfile.TemporaryFile(dir=directory) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise ScratchError(f"no room for {size:,} bytes of scratch in {directory}: {error.strerror}") from error
            made = super().__new__(cls, file.fileno(), size)
            made.directory, made.descriptor = directory, os.dup(file.fileno())
        weakref.finalize(made, os.close, made.descriptor)
        return made


MMAP_THRESHOLD = -3
"""glibc's number for the size from which a block of memory is the system's own: M_MMAP_THRESHOLD."""

KEPT_BYTES = 1 << 20
"""That size."""

_FILES: weakref.WeakValueDictionary[int, ScratchFile] = weakref.WeakValueDictionary()
"""The maps in use by their address."""


def return_freed_memory() -> None:
    """Lets freed blocks of a megabyte or more go back to the system at once, from now on in this process.

    The C library keeps blocks of up to 32 MB for itself when it has seen one freed, which adds up to more than the rows
    that are in memory at once. Other libraries than glibc have no such setting, and nothing happens.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(MMAP_THRESHOLD, KEPT_BYTES)


def empty(shape: Sequence[int], dtype: torch.dtype, directory: Path) -> Tensor:
    """Returns a tensor of zeros in a scratch file of its own, which goes with the tensor.

    Example:
        >>> is_mapped(empty((1000, 2), torch.float32, Path(tempfile.gettempdir())))
        True
    """
    count = torch.Size(shape).numel()
    file = ScratchFile(count * dtype.itemsize, directory)
    flat = torch.frombuffer(file, dtype=dtype, count=count)
    _FILES[flat.data_ptr()] = file
    return flat.view(*shape)


def _file_of(rows: Tensor) -> ScratchFile | None:
    return _FILES.get(rows.untyped_storage().data_ptr()) if _FILES and rows.device.type == "cpu" else None


def is_mapped(rows: Tensor) -> bool:
    """Tells whether a tensor, or the one that it is a view of, lies in a scratch file."""
    return _file_of(rows) is not None


def directory_of(rows: Tensor) -> Path | None:
    """Returns the directory of the scratch file that a tensor lies in; None for a tensor in memory."""
    file = _file_of(rows)
    return None if file is None else file.directory


def empty_beside(rows: Tensor, count: int, dtype: torch.dtype | None = None) -> Tensor:
    """Returns an empty tensor with ``count`` rows of the size of the given ones, in a scratch file if these are.

    Arguments:
        rows: Rows, with shape (N, ...).
        count: Number of rows.
        dtype: Another type of one number for each row, with shape (count,).
    """
    shape = (count, *rows.shape[1:]) if dtype is None else (count,)
    file, dtype = _file_of(rows), dtype or rows.dtype
    if file is None or count == 0:
        return torch.empty(shape, dtype=dtype, device=rows.device)
    return empty(shape, dtype, file.directory)


def release(rows: Tensor) -> None:
    """Gives back the memory of what has been read or written; the numbers stay in the file."""
    file = _file_of(rows)
    if file is not None:
        file.madvise(mmap.MADV_DONTNEED)


def parts(rows: Tensor, size: int | None = None) -> Iterator[Tensor]:
    """Yields rows (N, ...) in parts, and releases those that have been gone through.

    Arguments:
        rows: The rows, in a scratch file or in memory.
        size: Rows of a part; None means all, or as many as `PART_BYTES` are in a scratch file.
    """
    row_bytes = max(rows[:1].numel() * rows.element_size(), 1)
    mapped = is_mapped(rows)
    if size is None:
        size = max(PART_BYTES // row_bytes, 1) if mapped else max(len(rows), 1)
    held = 0
    for start in range(0, max(len(rows), 1), size):
        part = rows[start : start + size]
        yield part
        held += len(part) * row_bytes
        if mapped and held >= PART_BYTES:
            release(rows)
            held = 0
    release(rows)


def gather(rows: Tensor, places: Tensor) -> Tensor:
    """Returns the rows of contiguous ones (N, ...) at some places (n,), in memory.

    Example:
        >>> gather(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 0])).tolist()
        [[3.0], [1.0]]
    """
    file = _file_of(rows)
    if file is None:
        return rows[places]
    found = torch.empty(len(places), *rows.shape[1:], dtype=rows.dtype)
    size, begin = rows[:1].numel() * rows.element_size(), rows.storage_offset() * rows.element_size()
    room = found.view(-1).view(torch.uint8).numpy().data
    for number, place in enumerate(places.tolist()):
        os.preadv(file.descriptor, [room[number * size : (number + 1) * size]], begin + place * size)
    return found


def select(rows: Tensor, chosen: Tensor) -> Tensor:
    """Returns the rows that a mask (N,) chooses, in a scratch file if the rows lie in one."""
    if not is_mapped(rows):
        return rows[chosen.to(rows.device)]
    found, start = empty_beside(rows, int(torch.count_nonzero(chosen))), 0
    size = max(PART_BYTES // max(rows[:1].numel() * rows.element_size(), 1), 1)
    for part, mask in zip(parts(rows, size), chosen.split(size), strict=True):
        kept = part[mask]
        found[start : start + len(kept)] = kept
        start += len(kept)
        release(found)
    return found


def permutation(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a random order of the numbers of rows (N, ...): what `torch.randperm` returns, beside the rows.

    In a scratch file the numbers are int32 where these are enough, and the same.
    """
    if not is_mapped(rows):
        return torch.randperm(len(rows), generator=generator)
    order = empty_beside(rows, len(rows), torch.int32 if len(rows) <= MOST_INT32 else torch.int64)
    torch.randperm(len(rows), generator=generator, out=order, dtype=order.dtype)
    release(order)
    return order


def scratch_directory(path: str | Path | None) -> Path:
    """Returns the first directory that exists among a path and those above it; that of temporary files if None."""
    if path is None:
        return Path(tempfile.gettempdir())
    return next(place for place in (Path(path), *Path(path).absolute().parents) if place.is_dir())


def check_room(size: int, directory: Path) -> None:
    """Refuses scratch files of ``size`` bytes in a directory whose disk has less than that.

    Raises:
        ScratchError: If it has.
    """
    free = shutil.disk_usage(directory).free
    if size > free:
        raise ScratchError(
            f"rows larger than memory need {size / 1e9:,.1f} GB of scratch files in {directory}, where "
            f"{free / 1e9:,.1f} GB are free; free some, or choose a run directory on another disk"
        )
