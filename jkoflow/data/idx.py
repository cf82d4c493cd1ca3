"""Readers of pictures in IDX files, the format of MNIST and Fashion-MNIST, packed with gzip or not."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.checks import DataError
from jkoflow.data.readers.damage import one_line
from jkoflow.data.readers.packed import check_unpacked

FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
"""Names of the files with the pictures; the files of labels beside them are not used."""

VAL_SHARE = 0.1
"""Share of the training pictures, the last ones, that is for validation."""

Pictures = NDArray[np.uint8]


class PictureSet(NamedTuple):
    """Grey pictures in three parts, each with shape (N, height, width)."""

    train: Pictures
    val: Pictures
    test: Pictures


def read_pictures(directory: str | Path) -> PictureSet:
    """Reads a directory with the IDX files of MNIST or Fashion-MNIST.

    Arguments:
        directory: Holds ``train-images-idx3-ubyte`` and ``t10k-images-idx3-ubyte``, or both with ``.gz`` at the end.

    Returns:
        Pictures of 0 (black) to 255; the last tenth of the training file is for validation.

    Raises:
        DataError: If a file is missing or damaged, or the pictures differ in size.
    """
    directory = Path(directory)
    train, test = (read_idx(_find(directory, name)) for name in FILES.values())
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{directory}: training and test pictures differ in size, {train.shape[1:]} and {test.shape[1:]}"
        )
    held_out = int(VAL_SHARE * len(train))
    if held_out == 0 or len(test) == 0:
        raise DataError(f"{directory} has {len(train)} training and {len(test)} test pictures; it takes 10 and 1")
    return PictureSet(train[: len(train) - held_out], train[len(train) - held_out :], test)


def read_idx(path: Path) -> Pictures:
    """Reads one IDX file of pictures, packed if its name ends in ``.gz``, with shape (N, height, width).

    Raises:
        DataError: If the file is damaged or does not hold pictures.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(16)
            if head[:4] != b"\x00\x00\x08\x03" or len(head) < 16:  # unsigned bytes, three dimensions
                raise DataError(f"{path} is not an IDX file of grey pictures; it must begin with the bytes 00 00 08 03")
            shape: tuple[Any, ...] = struct.unpack(">3I", head[4:])
            size = shape[0] * shape[1] * shape[2]
            check_unpacked(size, path.stat().st_size, str(path))
            content = file.read(size)
            more = len(file.read(1))  # a file that unpacks to much more than it announces is not unpacked
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cannot be read: {one_line(error)}") from error
    if len(content) + more != size:
        held = f"more than {size}" if more else str(len(content))
        raise DataError(
            f"{path} is damaged: it announces {shape[0]} pictures of {shape[1]} x {shape[2]} and holds {held} bytes of "
            "them; fetch it again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _find(directory: Path, name: str) -> Path:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(
        f"{directory} lacks {name} (or {name}.gz); Fashion-MNIST is in Debian's package dataset-fashion-mnist, under "
        "/usr/share/datasets/fashion-mnist, and on github.com/zalandoresearch/fashion-mnist"
    )
