"""The names that arguments and settings had in version 0.1, which are accepted for ever, and what came later."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PRESENT_NAMES = {"step_size": "jko_step", "step_size_growth": "jko_step_growth", "step_size_max": "jko_step_max"}
"""Present names of arguments by their former names, which sounded as if the JKO step h were the integrator's."""

LATER_SETTINGS = {"optimizer": "adam", "weight_decay": 0.0, "first_layer_scale": 1.0, "divide": 1}
"""Settings that came after version 0.1, with the values by which it trained; later runs name their optimizer."""


FORMER_AUTO = "auto-0.1"
"""The choice of the initial map by which version 0.1 trained, whose blocks fit behind no other map."""


def under_present_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments or settings under their present names.

    Raises:
        ValueError: If an argument or setting is given under both of its names.
    """
    present: dict[str, Any] = {}
    for name, value in values.items():
        today = PRESENT_NAMES.get(name, name)
        if today != name and today in values:
            raise ValueError(f"{today} must be given once, got it as {name} (its former name), too; leave {name} out")
        present[today] = value
    return present


def of_earlier_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all settings of a run of this version or an earlier one, under their present names.

    Settings that there were not then have the values by which that version trained, whatever the defaults are today.

    Example:
        >>> settings = of_earlier_run({"step_size": 0.5})
        >>> settings["jko_step"], settings["optimizer"], settings["initial_map"]
        (0.5, 'adam', 'auto-0.1')
        >>> of_earlier_run({"optimizer": "muon", "weight_decay": 0.2})["optimizer"]
        'muon'
    """
    present = under_present_names(values)
    if "optimizer" in present:
        return present
    if present.get("initial_map", "auto") == "auto":
        present["initial_map"] = FORMER_AUTO
    return {**LATER_SETTINGS, **present}


def accepts_former_names(function: Callable[P, T]) -> Callable[P, T]:
    """Lets a function be called with the former names of its arguments."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> T:
        for name in PRESENT_NAMES:
            if name in named:
                return function(*args, **under_present_names(named))
        return function(*args, **named)

    return call


def attribute(name: str) -> property:
    """Returns a property that reads and writes another attribute, for an attribute that has been renamed."""
    return property(
        lambda self: getattr(self, name),
        lambda self, value: setattr(self, name, value),
        doc=f"The former name of `{name}`.",
    )
