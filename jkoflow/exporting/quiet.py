"""What PyTorch tells about its own code during an export, which nobody but its authors can put right."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    (r"`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning),
    (r"`torch.jit.script(_method)?` is deprecated", DeprecationWarning),
)
"""Warnings of calls that PyTorch makes itself."""

LOGGERS = (
    "torch._export.serde.serialize",  # an empty list is saved as one of tensors
    "torch.onnx._internal.exporter._registration",  # torchvision is not installed
    "onnx_ir._convenience",  # an empty attribute is one of integers
)
"""Loggers whose warnings are about what does not matter here."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps these to themselves, and nothing else."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text, kind in WARNINGS:
                warnings.filterwarnings("ignore", text, kind)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
