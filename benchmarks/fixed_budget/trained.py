"""What every method hands over: a trained flow and how it got there."""

from __future__ import annotations

from typing import Any, NamedTuple

from fixed_budget.model import Model


class Point(NamedTuple):
    """One look at the validation rows."""

    seconds: float
    batches: int
    nll: float | None


class Trained(NamedTuple):
    """A trained flow and how it got there."""

    model: Model
    batches: int
    seconds: float
    """Training and validation."""
    val_nll: float
    """Of the parameters that the model has now."""
    curve: list[Point]
    events: list[str]
    """What the guard or a solver that gave up led to."""
    extra: dict[str, Any]
    """What else belongs into the record."""
    memory: float | None
    """Peak memory of training in MiB beyond what was there before."""
