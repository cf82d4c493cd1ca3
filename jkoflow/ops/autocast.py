"""Densities are computed in the precision that they are asked for in, whatever autocast is for the code around them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_DEVICES = ("cpu", "cuda")


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that computes the same where ``torch.autocast`` is on as where it is off.

    In products of fewer bits a velocity and its divergence would belong to different functions, and samples to another
    density than theirs. For products of fewer bits there is ``precision`` of `jkoflow.integrate`.
    """

    @functools.wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> R:
        if not any(torch.is_autocast_enabled(device) for device in _DEVICES):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return exact
