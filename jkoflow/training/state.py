"""The state of a run that is saved and read again: its progress and all that it needs to go on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from jkoflow.block import Block
from jkoflow.data import Dataset
from jkoflow.errors import UserError
from jkoflow.flow import JKOFlow
from jkoflow.former_names import of_earlier_run
from jkoflow.mapped import parts
from jkoflow.restore import restored
from jkoflow.training.chain import Chain
from jkoflow.training.config import TrainConfig
from jkoflow.training.optimizer import OptimizerState
from jkoflow.training.optimizer.flat import padded
from jkoflow.training.run_plan import FIRST_WIDTH

RELAX_AFTER = 100
"""Iterations that the guard waits after a change of the Runge-Kutta steps before it lowers them."""


class TrainingError(UserError, RuntimeError):
    """Raised if training cannot go on; the message tells why and what to change."""


class ConvergenceWarning(UserWarning):
    """Warns that the NLL of a trained flow still depends on the number of Runge-Kutta steps."""


class RunError(UserError, ValueError):
    """Raised if the run directory cannot be used as asked; the message is one line and tells the fix."""


@dataclass
class FitCounters:
    """The part of a fit's state that is not a tensor: counts, times and the best loss."""

    iteration: int = 0
    """Number of iterations done."""
    iterations: int = 0
    """Number of iterations planned; 0 before planning."""
    validate_every: int = 0
    """Iterations between two looks at the validation loss."""
    best_loss: float = math.inf
    """Smallest validation loss so far."""
    steps_changed: int = 0
    """Iteration at which the guard last changed the block's Runge-Kutta steps."""
    steps_lowered: bool = False
    """Whether the guard's last change of the Runge-Kutta steps was to fewer."""
    relax_after: int = RELAX_AFTER
    """Iterations to wait before steps are lowered again; more after fewer were exploited."""
    stopped: bool = False
    """Whether the guard ended the block."""
    started: float = 0.0
    """Seconds into the run at which the block began."""
    deadline: float = math.inf
    """Seconds into the run at which the block's iterations should end."""
    iteration_seconds: float = 0.0
    """Measured seconds of an iteration, guard and validation included, at the beginning."""
    row_step: float = 0.0
    """Measured seconds of one Runge-Kutta step of one row."""
    row_carry: float = 0.0
    """Measured seconds of one Runge-Kutta step of one row without the logdet."""
    kept_rows: int = 0
    """Number of training rows that are pushed on: all of them, unless a time budget is too short for that."""


@dataclass
class FitState:
    """The state of a fit at one moment: the block in training, its optimiser and its best parameters."""

    block: dict[str, Any]
    """Description of the block, as JSON values."""
    counters: FitCounters
    now: OptimizerState
    good: OptimizerState
    """The last parameters that passed the guard."""
    best: Tensor
    """The parameters with the smallest validation loss, with shape (P,)."""


@dataclass
class RunState:
    """The state of a run from which it can go on as if it had never been interrupted."""

    settings: dict[str, Any]
    """Names and values of the run's configuration."""
    fingerprint: str
    """Hash of the data."""
    elapsed: float
    """Seconds spent so far."""
    history_bytes: int
    """Length of the history when the state was saved."""
    history_digest: str
    """Digest of the history then; empty if an earlier version saved the state."""
    guard_events: int
    rounds: list[dict[str, Any]]
    """Records, in the history, of the rounds that have ended."""
    accepted: list[Block]
    """The blocks of the best flow of the rounds that have ended; none in the first round."""
    round_started: float
    """Seconds into the run at which the present round began."""
    summaries: list[dict[str, Any]]
    """Records, in the history, of the blocks that the present round has finished."""
    blocks: list[Block]
    """The blocks that the present round has finished."""
    fit: FitState | None
    """State of the fit in training; None between two fits."""
    planned_blocks: int | None = None
    """Largest number of blocks that the time budget is enough for; None before it is planned, or without a budget."""
    planned_finetune: float = 0.0
    """Share of the time budget for fine-tuning; 0 before it is planned, or without a budget."""
    planned_divide: int = 1
    """Number of blocks that every block is divided into before the fine-tuning; 1 before it is planned."""
    planned_width: int = FIRST_WIDTH
    """Planned width of the hidden layers."""
    planned_more_steps: int = 0
    """Planned number of Runge-Kutta steps beyond those that the scale of the first layer asks for."""
    planned_together: bool = False
    """Whether the plan trains all blocks together from the beginning."""
    planned_rate_share: float = 1.0
    """Planned share of the optimiser's own peak rates."""
    iterations_done: int = 0
    """Iterations of the blocks of all rounds that have ended; not counted by earlier versions."""
    treatments: dict[str, Any] | None = None
    """Description of `jkoflow.data.continuous.Treatments`; None for a run of version 0.1 or from a given flow."""

    def describe(self) -> dict[str, Any]:
        """Returns all of the state but the tensors, as JSON values."""
        description: dict[str, Any] = {
            "settings": self.settings,
            "fingerprint": self.fingerprint,
            "elapsed": self.elapsed,
            "history_bytes": self.history_bytes,
            "history_digest": self.history_digest,
            "guard_events": self.guard_events,
            "iterations_done": self.iterations_done,
            "planned_blocks": self.planned_blocks,
            "planned_finetune": self.planned_finetune,
            "planned_divide": self.planned_divide,
            "planned_width": self.planned_width,
            "planned_more_steps": self.planned_more_steps,
            "planned_together": self.planned_together,
            "planned_rate_share": self.planned_rate_share,
            "rounds": self.rounds,
            "accepted": [block.describe() for block in self.accepted],
            "round_started": self.round_started,
            "summaries": self.summaries,
            "blocks": [block.describe() for block in self.blocks],
            "fit": None,
            "treatments": self.treatments,
        }
        if self.fit is not None:
            counters = dataclasses.asdict(self.fit.counters)
            description["fit"] = {
                "block": self.fit.block,
                "counters": {k: None if v == math.inf else v for k, v in counters.items()},  # JSON has no inf
                "updates": [self.fit.now.updates, self.fit.good.updates],
            }
        return description

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the state by name."""
        named: dict[str, Tensor] = {}
        for chain, blocks in (("accepted", self.accepted), ("blocks", self.blocks)):
            for index, block in enumerate(blocks):
                named |= {f"{chain}.{index}.{name}": tensor for name, tensor in block.state_dict().items()}
        if self.fit is not None:
            named["fit.best"] = self.fit.best
            for moment, state in (("now", self.fit.now), ("good", self.fit.good)):
                named[f"fit.{moment}.parameters"] = state.parameters
                named |= {f"fit.{moment}.{name}": tensor for name, tensor in state.memory.items()}
        return named

    @classmethod
    def from_description(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Builds the state from what `describe` and `tensors` returned, in this version or an earlier one.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: If something is missing, superfluous or does not fit.
        """
        rest = {name: value for name, value in description.items() if name != "first_nll"}  # of version 0.1
        rest.setdefault("history_digest", "")  # nor had that
        _check_kinds(cls, rest)
        accepted = _load_blocks("accepted", rest.pop("accepted"), tensors)
        blocks = _load_blocks("blocks", rest.pop("blocks"), tensors)
        fit = None if (fit := rest.pop("fit")) is None else _fit_state(fit, tensors)
        return cls(**rest, accepted=accepted, blocks=blocks, fit=fit)


def check_same_data(saved: str, data: Dataset, start: JKOFlow | None, path: Path) -> None:
    """Refuses to go on with other data or another starting flow than a run began with.

    Arguments:
        saved: The `fingerprint` that the run has kept.
        data: The data to go on with.
        start: The flow to start from.
        path: The run's directory.

    Raises:
        RunError: If the data or the flow to start from have changed.
    """
    if saved != fingerprint(data, start):
        started = "" if start is None else " (or the flow to start from)"
        raise RunError(f"the data{started} have changed since the run in {path} began; resume with the same data")


def check_same_settings(saved: Mapping[str, Any], config: TrainConfig, path: Path) -> None:
    """Refuses to go on with other settings than a run began with.

    Arguments:
        saved: Names and values of the run's settings, under the names of this version or an earlier one.
        config: The settings to go on with.
        path: The run's directory.

    Raises:
        RunError: If a setting has changed; the message names all of them.
    """
    settings, saved = config.to_mapping(), of_earlier_run(saved)
    different = [
        f"{name} = {settings.get(name)} (was {saved.get(name)})"
        for name in sorted(settings.keys() | saved.keys())
        if settings.get(name) != saved.get(name)
    ]
    if different:
        raise RunError(f"the run in {path} has other settings: {', '.join(different)}; resume with its config.toml")


def fingerprint(data: Dataset, start: JKOFlow | None = None) -> str:
    """Returns a hash of the rows of all three parts, and of the flow that training starts from."""
    digest = hashlib.sha256()
    if start is not None:
        digest.update(json.dumps([block.describe() for block in start.stack]).encode())
        for links in (start.links, start.context_links):
            digest.update(b"" if links is None else json.dumps(links.describe()).encode())
        for tensor in start.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().data)
    digest.update(data.origin.encode())
    contexts = [c for c in (data.train_context, data.val_context, data.test_context) if c is not None]
    for rows in (data.train, data.val, data.test, *contexts):
        digest.update(f"{tuple(rows.shape)}".encode())
        for part in parts(rows):
            digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "int | None": (int, type(None)),
    "dict[str, Any]": (dict,),
    "dict[str, Any] | None": (dict, type(None)),
    "list[dict[str, Any]]": (list,),
}
"""What JSON has for the types of the state's fields."""


def _check_kinds(state: type, values: Mapping[str, Any]) -> None:
    """Refuses values of another type than the fields of a class have, and negative counts and times.

    Raises:
        ValueError: If there is one; the message names the field.
    """
    for field in dataclasses.fields(state):
        kinds = _KINDS.get(str(field.type))
        if kinds is None or field.name not in values:
            continue
        value = values[field.name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{field.name} must be {field.type}, got {value!r}")
        if isinstance(value, int | float) and field.name != "best_loss" and not value >= 0:
            raise ValueError(f"{field.name} must not be negative, got {value!r}")


def _load_blocks(chain: str, descriptions: list[dict[str, Any]], tensors: Mapping[str, Tensor]) -> list[Block]:
    blocks = []
    for index, description in enumerate(descriptions):
        prefix = f"{chain}.{index}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        blocks.append(restored(partial(_block_of, description), own))
    return blocks


def _block_of(description: dict[str, Any]) -> Block:
    return Block.from_description(description).float()


def _fit_state(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FitState:
    counters: dict[str, Any] = {k: math.inf if v is None else v for k, v in description["counters"].items()}
    if "steps_halved" in counters:  # of version 0.1
        counters["steps_lowered"] = counters.pop("steps_halved")
    if not counters:
        raise ValueError("fit.counters must have the counts of the fit, got none")
    _check_kinds(FitCounters, counters)
    states: list[OptimizerState] = []
    for moment, updates in zip(("now", "good"), description["updates"], strict=True):
        prefix = f"fit.{moment}."
        memory = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        states.append(OptimizerState(memory.pop("parameters"), memory, updates))
    now, good = states
    with torch.device("meta"):  # its tensors are those of the optimiser
        module = (Chain.from_description if "blocks" in description["block"] else _block_of)(description["block"])
    count = sum(padded(parameter.numel()) for parameter in module.parameters())
    for name, numbers in (("now", now.parameters), ("good", good.parameters), ("best", tensors["fit.best"])):
        if numbers.shape != (count,):
            raise ValueError(f"fit.{name} must hold {count} parameters, got the shape {tuple(numbers.shape)}")
        if name != "now" and not bool(numbers.isfinite().all()):  # the guard goes back from what has overflowed
            raise ValueError(f"fit.{name} must be finite, got NaN or inf")
    return FitState(description["block"], FitCounters(**counters), now, good, tensors["fit.best"])
