"""Checkpoints: tensors and their JSON description in one safetensors file, versioned and written atomically.

Every byte that decides a number stands under a digest: the description, and name, type, shape and numbers of a tensor.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from jkoflow.callers import warn_caller
from jkoflow.errors import UserError

FORMAT_VERSION = 2

MODELS = ("flow", "table-flow")
"""Kinds of content that are models."""

FIX = "give a whole file that jkoflow has saved"
"""What to do about a file that cannot be read as one."""

UNFINISHED = ".tmp"
"""End of the names of files that are being written."""


class CheckpointError(UserError, ValueError):
    """Raised if a file is missing, damaged, of another kind or of an unknown version."""


class OldFormatWarning(UserWarning):
    """Tells that a file is of version 0.1, whose checksum covers its numbers and not its description."""


def save(path: str | Path, kind: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Writes a checkpoint; a crash at any moment leaves the old file or the new one, never a part.

    Arguments:
        path: The file to write.
        kind: Kind of the content, such as ``"flow"``; `load` refuses another kind.
        tensors: Named tensors.
        description: Anything JSON can hold (numbers keep their full precision).

    Raises:
        OSError: If the file cannot be written.
    """
    write_atomically(path, packed(kind, tensors, description))


def packed(kind: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> bytes:
    """Returns the bytes of the file that `save` writes; arguments likewise."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = json.dumps({"format_version": FORMAT_VERSION, "kind": kind, "description": description})
    return safetensors.torch.save(tensors, metadata={"jkoflow": signed(header, tensors)})


def load(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint that `save` wrote.

    Returns:
        The tensors (on the CPU) and the description.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind or of an unknown version.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path, or train and save a flow first")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            # copied, since the library's own tensors lie in the file as it is on the disk
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a jkoflow file: {error}; {FIX}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; make it readable") from error
    return _checked(path, kind, metadata, tensors)


def unpacked(payload: bytes, kind: str, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the bytes that `packed` returned, as `load` reads a file; errors call them by the name of their source."""
    try:
        tensors = safetensors.torch.load(payload)  # which checks the header that is read next
        header = _parsed(payload[8 : 8 + int.from_bytes(payload[:8], "little")].decode())
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{source} is damaged or not a jkoflow file: {error}; {FIX}") from error
    return _checked(source, kind, header.get("__metadata__", {}), tensors)


def _checked(
    path: str | Path, kind: str, metadata: Mapping[str, str], tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns tensors and their description if these are what was saved, and of the expected kind and version."""
    try:
        header = _parsed(metadata["jkoflow"]) if "jkoflow" in metadata else None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged or not a jkoflow file: {error}; {FIX}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is a safetensors file but was not written by jkoflow; {FIX}")
    version = header.get("format_version")
    if version not in (1, FORMAT_VERSION):
        raise CheckpointError(
            f"{path} has format version {version}, this jkoflow reads 1 and {FORMAT_VERSION}; "
            "load it with the jkoflow release that wrote it, or upgrade jkoflow"
        )
    if header.get("kind") != kind:
        hint = "; read it with jkoflow.load" if kind in MODELS and header.get("kind") in MODELS else ""
        raise CheckpointError(f"{path} holds a {header.get('kind')}, expected a {kind}{hint}")
    if not isinstance(header.get("description"), dict):
        raise CheckpointError(f"{path} is damaged: it has no description")
    whole = _crc32(tensors) == header.get("crc32") if version == 1 else _is_whole(metadata["jkoflow"], tensors)
    if not whole:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum; use another copy")
    if version == 1:
        warn_caller(
            f"{path} was written by version 0.1, whose checksum covers its numbers but not its description; what is "
            "saved now is covered as a whole",
            OldFormatWarning,
        )
    return tensors, header["description"]


def kind_of(path: str | Path) -> str | None:
    """Returns the kind of a checkpoint's content, or None if the file is none, which `load` tells why."""
    try:
        with safetensors.safe_open(Path(path), framework="pt", device="cpu") as file:
            header = _parsed((file.metadata() or {}).get("jkoflow", "{}"))
    except (OSError, safetensors.SafetensorError, ValueError):
        return None
    kind = header.get("kind") if isinstance(header, dict) else None
    return kind if isinstance(kind, str) else None


def _parsed(text: str) -> Any:
    """Reads JSON as `save` writes it.

    Raises:
        ValueError: If it is something else: damaged, nested too deeply, or with a name twice in one object.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands in its description twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError("its description is nested too deeply") from None


def signed(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Returns a JSON object with the digest of its text and of tensors as its last member.

    All is one text, since the library puts several in any order, and equal models are equal files.
    """
    return f'{header[:-1]}, "sha256": "{_digest(header, tensors)}"}}'


def _is_whole(text: str, tensors: Mapping[str, Tensor]) -> bool:
    header, _, _ = text.rpartition(', "sha256": ')
    return bool(header) and signed(f"{header}}}", tensors) == text


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _crc32(tensors: Mapping[str, Tensor]) -> int:
    """Returns the checksum of files of version 0.1."""
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(_bytes(tensors[name]), zlib.crc32(name.encode(), checksum))
    return checksum


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.flatten().view(torch.uint8).numpy().data


def finite(value: Any) -> Any:
    """Returns the value as JSON can hold it: NaN and inf become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_atomically(path: str | Path, payload: bytes) -> None:
    """Writes a file atomically, see `written_aside`."""
    with written_aside(path) as file:
        file.write(payload)


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file to be written atomically: a temporary file beside it is flushed to disk, then renamed over it.

    A link stays and its target is written; an existing file keeps its mode. An error within leaves what was there.

    Yields:
        The temporary file, to be written piece by piece.
    """
    path = Path(path).resolve()
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def flush_folder(path: Path) -> None:
    """Flushes the names in a folder to the disk, so that a power cut undoes no rename that has been reported."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:  # a folder that can be written and not read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that cannot
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
