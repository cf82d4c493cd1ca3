"""Locks on what is written, such as a run's directory: one process writes at a time."""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


class LockedError(Exception):
    """Raised if another process holds the lock; the message says which."""


@contextmanager
def locked(folder: Path, name: str = LOCK_FILE) -> Iterator[bool]:
    """Holds the lock of a name in a folder, which the system gives back when the process dies, however it does.

    It is one of the file system (flock), which holds between machines, too, where NFS has locks.

    Yields:
        Whether there is a lock: some file systems have none, and a folder that cannot be written needs none.

    Raises:
        LockedError: If another process, or another thread of this one, holds it.
    """
    handle = _take(folder / name)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            (folder / name).unlink(missing_ok=True)  # before it is given back: nobody else has it yet
            os.close(handle)


def _take(path: Path) -> int | None:
    if fcntl is None:
        return None
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = _is_current(handle, path)
        except BlockingIOError:
            holder = _holder(handle)
            os.close(handle)
            raise LockedError(holder) from None
        except OSError as error:
            os.close(handle)
            if error.errno in _UNSUPPORTED:
                return None
            raise
        if current:
            who = {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat("s")}
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(who).encode())
            return handle
        os.close(handle)  # of a process that has just ended, and taken its file away


def _is_current(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    try:
        who = json.loads(os.pread(handle, 4096, 0))
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written it yet
        return "another process"
