"""What torch.compile is told about functions, without importing the compiler, which takes seconds and 130 MB."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
T = TypeVar("T")


def constant_result(function: Callable[P, T]) -> Callable[P, T]:
    """Marks a function whose result does not change in a process: `torch.compiler.assume_constant_result`."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # what that function sets
    return function


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """Marks a function that is run as it is, with whatever it calls: `torch.compiler.disable`."""
    disabled: list[Callable[P, T]] = []

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if "torch._dynamo" not in sys.modules:  # nobody compiles
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(cast("Callable[P, T]", torch.compiler.disable(function)))
        return disabled[0](*args, **kwargs)

    return run
