"""Packed files, unpacked as a stream, and limits for files that announce or unpack to more than memory holds."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jkoflow.data.checks import DataError
from jkoflow.optional import require

RATIO = 100
"""Largest number of times that a packed file may grow if it grows beyond `HARMLESS`; numbers grow less than tenfold."""

HARMLESS = 1 << 28
"""Number of bytes that any file may unpack to."""

LONGEST_LINE = 1 << 26
"""Largest number of bytes of a line."""


def free_memory() -> int:
    """Returns the number of bytes of memory that are free or can be freed."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_announced(size: int, what: str = "it") -> None:
    """Refuses a file that announces more bytes than memory holds, before any of them is read."""
    memory = free_memory()
    if size > memory:
        raise DataError(
            f"{what} announces {_gigabytes(size)} of numbers and {_gigabytes(memory)} of memory are free; "
            "give fewer rows, or float32"
        )


def check_unpacked(unpacked: int, packed: int, what: str = "it") -> None:
    """Refuses what unpacks to more than `RATIO` times its size, or to more than memory holds."""
    if unpacked > HARMLESS and unpacked > RATIO * packed:
        raise DataError(
            f"{what} unpacks to more than {RATIO} times its {packed:,} bytes, as numbers never do; "
            "if it is what you mean, unpack it yourself"
        )
    check_announced(unpacked, what)


def open_packed(path: Path, packing: str) -> io.BufferedReader:
    """Opens a file for reading the bytes that were packed.

    Arguments:
        path: The file.
        packing: A key of `PACKINGS`, or empty if the file is not packed.

    Raises:
        DataError: While reading, if the content has lines longer than `LONGEST_LINE` or is refused by `check_unpacked`.
    """
    raw = PACKINGS[packing](path) if packing else path.open("rb")
    return io.BufferedReader(_Watched(raw, path.stat().st_size if packing else None), 1 << 18)


class _Watched(io.RawIOBase):
    """Bytes of another stream, watched for their number and the length of their lines."""

    def __init__(self, raw: Any, packed: int | None) -> None:
        self._raw = raw
        self._packed = packed
        self._unpacked = 0
        self._line = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._raw.read(len(buffer))
        buffer[: len(piece)] = piece
        before = self._unpacked
        self._unpacked += len(piece)
        if self._packed is not None and before // HARMLESS != self._unpacked // HARMLESS:
            check_unpacked(self._unpacked, self._packed)
        end = max(piece.rfind(b"\n"), piece.rfind(b"\r"))
        self._line = self._line + len(piece) if end < 0 else len(piece) - end
        if self._line > LONGEST_LINE:
            raise DataError(f"is damaged: it has a line of more than {LONGEST_LINE:,} bytes")
        return len(piece)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _open_zstandard(path: Path) -> Any:
    pyarrow = require("pyarrow", "reading .zst files")
    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


PACKINGS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstandard,
}
"""What opens packed files, by suffix."""


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
