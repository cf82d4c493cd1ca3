"""Checkpoints: tensors and their JSON description in one safetensors file, versioned and written atomically."""

from __future__ import annotations

import json
import math
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from jkoflow.errors import UserError

FORMAT_VERSION = 1

MODELS = ("flow", "table-flow")
"""Kinds of content that are models."""


class CheckpointError(UserError, ValueError):
    """Raised if a file is missing, damaged, of another kind or of an unknown version."""


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
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "description": description,
        "crc32": _crc32(tensors),
    }
    payload = safetensors.torch.save(tensors, metadata={"jkoflow": json.dumps(header)})
    write_atomically(path, payload)


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
            header = json.loads(metadata["jkoflow"]) if "jkoflow" in metadata else None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged or not a jkoflow file: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is a safetensors file but was not written by jkoflow")
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this jkoflow reads {FORMAT_VERSION}; "
            "load it with the jkoflow release that wrote it, or upgrade jkoflow"
        )
    if header.get("kind") != kind:
        hint = "; read it with jkoflow.load" if kind in MODELS and header.get("kind") in MODELS else ""
        raise CheckpointError(f"{path} holds a {header.get('kind')}, expected a {kind}{hint}")
    if not isinstance(header.get("description"), dict):
        raise CheckpointError(f"{path} is damaged: it has no description")
    if header.get("crc32") != _crc32(tensors):
        raise CheckpointError(f"{path} is damaged: its numbers do not match their checksum; use another copy")
    return tensors, header["description"]


def kind_of(path: str | Path) -> str | None:
    """Returns the kind of a checkpoint's content, or None if the file is none, which `load` tells why."""
    try:
        with safetensors.safe_open(Path(path), framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {}).get("jkoflow", "{}"))
    except (OSError, safetensors.SafetensorError, ValueError, RecursionError):
        return None
    kind = header.get("kind") if isinstance(header, dict) else None
    return kind if isinstance(kind, str) else None


def finite(value: Any) -> Any:
    """Returns the value as JSON can hold it: NaN and inf become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _crc32(tensors: Mapping[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(
            tensors[name].flatten().view(torch.uint8).numpy().data, zlib.crc32(name.encode(), checksum)
        )
    return checksum


def write_atomically(path: str | Path, payload: bytes) -> None:
    """Writes a file atomically: a temporary file beside it is flushed to disk, then renamed over it.

    A link stays and its target is written; an existing file keeps its mode.
    """
    path = Path(path).resolve()
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
