"""The environment of a run: versions, machine, kernels, and whether a device can be used."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jkoflow._version import __version__
from jkoflow.errors import UserError
from jkoflow.ops import native


class DeviceError(UserError, ValueError):
    """Raised if PyTorch cannot use a device here; the message is one line and tells why."""


def usable_device(device: str | torch.device) -> torch.device:
    """Returns a device that PyTorch can use here.

    Arguments:
        device: Name of the device, such as ``"cpu"`` or ``"cuda:1"``, or the device itself.

    Raises:
        DeviceError: If PyTorch cannot use it here.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(
            f"device must be one that PyTorch can use here, got {str(device)!r}: {reason}; choose another, such as cpu"
        ) from error
    return found


def describe() -> dict[str, Any]:
    """Describes the software and the machine, as a run records it and ``doctor`` prints it.

    Returns:
        Versions, platform, processor, threads, what the compiled kernels can do here (``"kernels"``: see
        `jkoflow.ops.native.capabilities`) and the state of CUDA; everything as JSON can hold it. It names neither
        the machine nor its user.

    Example:
        >>> describe()["jkoflow"] == jkoflow.__version__
        True
    """
    return {
        "jkoflow": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpus": available_cpus(),
        "threads": torch.get_num_threads(),
        "kernels": native.capabilities(),
        "cuda": cuda_status(),
    }


def cpu_model() -> str:
    """Returns the processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "cpu model"):
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def available_cpus() -> int:
    """Counts the processors that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cuda_status() -> str:
    """Says what PyTorch can do with CUDA here: the devices, or why there are none."""
    if torch.version.cuda is None:
        return "no CUDA device: this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return f"no CUDA device: PyTorch for CUDA {torch.version.cuda} finds no driver or no GPU"
    names = ", ".join(_device_name(index) for index in range(torch.cuda.device_count()))
    return f"{names} (PyTorch for CUDA {torch.version.cuda})"


def _device_name(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})"
