"""The lines of a text file: its packing, its encoding and its comments."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from jkoflow.data.checks import DataError
from jkoflow.data.readers.damage import one_line, reading
from jkoflow.data.readers.packed import open_packed

SAMPLE = 1 << 18
"""Number of bytes, and of characters, at the start of a file from which its layout is read."""

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x19\x1b]")


def encoding_of(path: Path, packing: str) -> str:
    """Returns the encoding that the start of a file shows: by its mark, or by its zeros; UTF-8 without either."""
    with reading("text"), open_packed(path, packing) as file:
        start = file.read(4096)
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    half = len(start) // 2
    zeros = start[0 : 2 * half : 2].count(0), start[1 : 2 * half : 2].count(0)
    if half and max(zeros) > 0.5 * half and min(zeros) == 0:  # ASCII in two bytes each
        return "utf-16-be" if zeros[0] else "utf-16-le"
    return "utf-8"


class EncodingError(DataError):
    """Raised if a file is not in the encoding that was taken for its own."""


class Lines(io.TextIOBase):
    """The lines of a text file, from which the first ones can be looked at and taken before a parser reads the rest.

    Attributes:
        first: The lines at the start of the file that have not been taken, without their ends.
    """

    def __init__(self, path: Path, packing: str, encoding: str) -> None:
        with reading("text"):
            self._text: IO[str] = io.TextIOWrapper(open_packed(path, packing), encoding, newline=None)
        self._comments: tuple[str, ...] = ()
        self.comments_left_out = 0
        try:
            self.first = [line.rstrip("\n") for line in self._more(SAMPLE)]
        except BaseException:
            self._text.close()
            raise

    def leave_out(self, comments: Sequence[str]) -> None:
        """Leaves out every later line that starts with one of the marks."""
        self._comments = tuple(comments)

    def readable(self) -> bool:
        """Returns true, as a parser asks."""
        return True

    def read(self, size: int | None = -1) -> str:
        """Returns whole lines, of about ``size`` characters; an empty text at the end."""
        while True:
            lines = [f"{line}\n" for line in self.first] or self._more(size or -1)
            self.first = []
            kept = [line for line in lines if not line.startswith(self._comments)] if self._comments else lines
            self.comments_left_out += len(lines) - len(kept)
            if kept or not lines:
                return "".join(kept)

    def close(self) -> None:
        """Closes the file."""
        self._text.close()
        super().close()

    def _more(self, size: int) -> list[str]:
        with reading("text"):
            try:
                lines = self._text.readlines(size)
            except UnicodeDecodeError as error:
                raise EncodingError(f"is damaged or not a text file: {one_line(error)}") from error
        if _CONTROL.search("".join(lines)):
            raise DataError("is damaged or not a text file: it holds control characters")
        return lines
