"""The memory that training takes beyond what was there before."""

from __future__ import annotations

import gc
from pathlib import Path

from jkoflow.bench.memory import unsupported

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Begins to watch this process's resident memory: libraries and data are there by now and do not count."""

    def __init__(self) -> None:
        gc.collect()
        self._measured = unsupported() is None
        if self._measured:
            _RESET.write_text("5")  # the peak starts again at what is resident now
            self._before = _kib("VmRSS")

    def growth(self) -> float | None:
        """Returns the MiB by which the peak exceeds the beginning; None where the system does not tell."""
        return max(0, _kib("VmHWM") - self._before) / 1024 if self._measured else None


def _kib(key: str) -> int:
    (line,) = (line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1])
