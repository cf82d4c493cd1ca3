"""The result that every method returns: a trained flow and the course of its training."""

from __future__ import annotations

from typing import Any, NamedTuple

from fixed_budget.model import Model


class Point(NamedTuple):
    """One validation, with its time and its number of batches."""

    seconds: float
    batches: int
    nll: float | None


class Trained(NamedTuple):
    """A trained flow and the course of its training."""

    model: Model
    batches: int
    seconds: float
    """Seconds of training and validation."""
    val_nll: float
    """Validation NLL of the parameters that the model has now."""
    curve: list[Point]
    events: list[str]
    """Interventions of the guard and failures of the solver, one line each."""
    extra: dict[str, Any]
    """Further entries of the record."""
    memory: float | None
    """Peak memory of training in MiB beyond the memory in use before."""
