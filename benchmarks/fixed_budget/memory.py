"""The memory that training takes beyond the memory in use before."""

from __future__ import annotations

import gc
from pathlib import Path

from jkoflow.bench.memory import unsupported

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """The peak of this process's resident memory from now on, without the memory that libraries and data take."""

    def __init__(self) -> None:
        gc.collect()
        self._measured = unsupported() is None
        if self._measured:
            _RESET.write_text("5")  # the peak starts again at what is resident now
            self._before = _kib("VmRSS")

    def growth(self) -> float | None:
        """Returns the MiB by which the peak exceeds the beginning; None if the system does not tell it."""
        return max(0, _kib("VmHWM") - self._before) / 1024 if self._measured else None


def _kib(key: str) -> int:
    (line,) = (line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1])
