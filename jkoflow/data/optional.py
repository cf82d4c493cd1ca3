"""Imports the packages that only a part of jkoflow needs."""

from __future__ import annotations

import importlib
from types import ModuleType

from jkoflow.errors import UserError


class MissingExtraError(UserError, ImportError):
    """A package of an optional extra is not installed; the message is one line and tells how to install it."""


def require(module: str, purpose: str, extra: str = "cli") -> ModuleType:
    """Imports an optional package.

    Arguments:
        module: What to import.
        purpose: What needs it, such as ``"reading .csv files"``.
        extra: The extra of jkoflow that brings it.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f'{purpose} needs {package}; install it with: pip install "jkoflow[{extra}]"'
        ) from error
