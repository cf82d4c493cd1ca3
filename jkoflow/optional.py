"""The import of packages that only a part of jkoflow needs."""

from __future__ import annotations

import importlib
from types import ModuleType

from jkoflow.errors import UserError


class MissingExtraError(UserError, ImportError):
    """Raised if a package of an optional extra is missing; the message is one line and tells how to install it."""


def require(module: str, purpose: str, extra: str = "cli") -> ModuleType:
    """Imports an optional package.

    Arguments:
        module: Name of the module to import.
        purpose: The action that needs the module, such as ``"reading .csv files"``.
        extra: Name of jkoflow's extra that installs the package.

    Raises:
        MissingExtraError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f'{purpose} needs {package}; install it with: pip install "jkoflow[{extra}]"'
        ) from error
