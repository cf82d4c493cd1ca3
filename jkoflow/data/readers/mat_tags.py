"""A look at the tags of a .mat file of version 5, since scipy crashes over damaged ones instead of raising an error."""

from __future__ import annotations

import os
import struct
import zlib
from typing import BinaryIO

from jkoflow.data.checks import DataError
from jkoflow.data.readers.packed import check_unpacked

HEADER = 128
"""Number of bytes before the first variable."""

MATRIX, PACKED = 14, 15
"""Types of an array, which holds other elements, and of one that is packed."""

VALUES = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18}
"""Types of elements that hold values: integers, floats and text."""

FLAT = {4, *range(6, 16)}
"""Classes of arrays of text and of numbers, which hold no other arrays."""

COMPLEX = 0x800
"""Flag of complex numbers."""

DEEPEST = 20
"""Largest depth of arrays within arrays."""


def check_tags(file: BinaryIO) -> bool:
    """Refuses a file with elements of unknown types, that reach beyond their end, or whose checksum is wrong.

    Files of version 4 have no tags.

    Returns:
        Whether all variables are packed and so have checksums, without which cell arrays are not safe to read.
    """
    start = file.read(HEADER)
    if 0 in start[:4]:
        return False
    order = {b"IM": "<", b"MI": ">"}.get(start[126:128])
    if order is None or not _are_sound(file, os.fstat(file.fileno()).st_size, order, 0):
        raise DataError("is damaged or not a .mat file: its elements do not fit")
    file.seek(HEADER)
    while tag := file.read(8):
        kind, size = struct.unpack(f"{order}2I", tag)
        if kind != PACKED:
            return False
        file.seek(size, os.SEEK_CUR)
    return True


def _are_sound(file: BinaryIO, end: int, order: str, depth: int) -> bool:
    """Tells whether the elements from here to the end are of known types and fit."""
    flags = file.read(16) if depth else b""
    file.seek(-len(flags), os.SEEK_CUR)
    word = struct.unpack(f"{order}4I", flags)[2] if len(flags) == 16 else 0
    is_flat = word & 0xFF in FLAT
    held = 0
    if depth > DEEPEST:
        return False
    while file.tell() < end:
        tag = file.read(8)
        if len(tag) < 8:
            return False
        held += 1
        kind, size = struct.unpack(f"{order}2I", tag)
        if kind >> 16:  # a small element: size, type and values in these eight bytes
            if kind & 0xFFFF not in VALUES or kind >> 16 > 4:
                return False
            continue
        stop = file.tell() + size + (-size % 8 if kind != PACKED else 0)
        if stop > end:
            return False
        if kind == PACKED:
            sound = depth == 0 and _has_checksum(file, size)
        else:
            nested = kind == MATRIX and not is_flat
            sound = _are_sound(file, stop, order, depth + 1) if nested else kind in VALUES and depth > 0
        if not sound:
            return False
        file.seek(stop)
    parts = 5 if word & COMPLEX else 4  # flags, shape, name, real and imaginary part
    return file.tell() == end and (held == parts or not is_flat)


def _has_checksum(file: BinaryIO, size: int) -> bool:
    """Tells whether a packed element unpacks to what its checksum says."""
    unpacking, packed, unpacked = zlib.decompressobj(), file.read(size), 0
    while not unpacking.eof:
        piece = unpacking.decompress(packed, 1 << 20)
        unpacked += len(piece)
        check_unpacked(unpacked, size, "a variable")
        if not piece and not unpacking.unconsumed_tail:
            return False
        packed = unpacking.unconsumed_tail
    return True
