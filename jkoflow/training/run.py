"""The run directory: what a training run leaves on disk, and the state that it resumes from."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jkoflow import checkpoint
from jkoflow.block import Block
from jkoflow.data import Dataset, require
from jkoflow.flow import MODEL_FILE, JKOFlow
from jkoflow.metrics import spread_rows
from jkoflow.training.adam import AdamState
from jkoflow.training.config import TrainConfig
from jkoflow.training.fit import FitCounters

CONFIG_FILE = "config.toml"
STATE_FILE = "state.safetensors"
METRICS_FILE = "metrics.json"
HISTORY_FILE = "history.jsonl"
PREVIEW_FILE = "preview.npz"
ENVIRONMENT_FILE = "environment.json"
STATE_KIND = "training-state"
PREVIEW_ROWS = 5000


class RunError(ValueError):
    """The run directory cannot be used as asked; the message is one line and tells the fix."""


@dataclass
class FitState:
    """The block in training at one moment."""

    block: dict[str, Any]
    """The block's description."""
    counters: FitCounters
    now: AdamState
    good: AdamState
    """The last parameters that passed the guard."""
    best: Tensor
    """The parameters with the smallest validation loss, with shape (P,)."""


@dataclass
class RunState:
    """Everything that a run needs to go on as if it had never been interrupted."""

    settings: dict[str, Any]
    """The run's configuration."""
    fingerprint: str
    """Hash of the data."""
    elapsed: float
    """Seconds spent so far."""
    history_bytes: int
    """Length of the history when the state was saved."""
    guard_events: int
    first_nll: float
    """Validation NLL before the first block, in nats on standardised columns."""
    rounds: list[dict[str, Any]]
    """The history's records of the rounds that have ended."""
    accepted: list[Block]
    """The blocks of the best flow that those left; none in the first round."""
    round_started: float
    """Seconds into the run at which the present round began."""
    summaries: list[dict[str, Any]]
    """The history's records of the blocks that the present round has finished."""
    blocks: list[Block]
    """Those blocks."""
    fit: FitState | None
    """The block in training; None between blocks."""
    planned_blocks: int | None = None
    """Largest number of blocks that the time budget was found to be enough for; None before that, or without one."""
    planned_finetune: float = 0.0
    """Share of the time budget that was found best to fine-tune in; 0 before that, or without one."""

    def check_matches(self, config: TrainConfig, data: Dataset, start: JKOFlow | None, path: Path) -> None:
        """Makes sure that the run goes on with what it began with.

        Raises:
            RunError: If the data, the flow to start from or a setting has changed.
        """
        if self.fingerprint != fingerprint(data, start):
            started = "" if start is None else " (or the flow to start from)"
            raise RunError(f"the data{started} have changed since the run in {path} began; resume with the same data")
        settings = config.to_mapping()
        different = [
            f"{name} = {settings.get(name)} (was {self.settings.get(name)})"
            for name in sorted(settings.keys() | self.settings.keys())
            if settings.get(name) != self.settings.get(name)
        ]
        if different:
            raise RunError(f"the run in {path} has other settings: {', '.join(different)}; resume with its config.toml")


class RunDirectory:
    """A directory that holds one training run.

    Arguments:
        path: The directory; `create` makes it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._history: io.BufferedWriter | None = None

    def holds_run(self) -> bool:
        """Whether a training run has been started here."""
        return any((self.path / name).exists() for name in (CONFIG_FILE, STATE_FILE, MODEL_FILE, METRICS_FILE))

    def is_finished(self) -> bool:
        """Whether the run here has ended and left its model."""
        there = all((self.path / name).exists() for name in (MODEL_FILE, METRICS_FILE))
        return there and not (self.path / STATE_FILE).exists()

    def create(
        self,
        config: TrainConfig,
        source: str,
        environment: Mapping[str, Any],
        context_columns: Sequence[str] = (),
    ) -> None:
        """Makes the directory and writes what is known before training.

        Raises:
            RunError: If there is a run already.
            MissingExtraError: If tomli-w is missing.
            OSError: If the directory cannot be written.
        """
        toml = config_toml(config, source, context_columns)
        if self.holds_run():
            raise RunError(f"{self.path} already holds a run; resume it, or choose or clear the directory")
        self.path.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(self.path / CONFIG_FILE, toml)
        self.reopen(0, environment)

    def reopen(self, length: int, environment: Mapping[str, Any]) -> None:
        """Gets ready to write: cuts the history back to a length in bytes, off what a killed run wrote after its save.

        Raises:
            RunError: If the history is shorter than that.
        """
        path = self.path / HISTORY_FILE
        found = path.stat().st_size if path.exists() else 0
        if found < length:
            raise RunError(
                f"{path} has {found} bytes, fewer than the {length} of the saved state; it was changed from outside: "
                "train into a new directory"
            )
        self._history = path.open("ab")
        self._history.truncate(length)
        if length == 0:  # a run that goes on keeps the environment that it began in
            self._write_json(ENVIRONMENT_FILE, environment)

    def record(self, event: Mapping[str, Any]) -> None:
        """Adds one line to the history."""
        assert self._history is not None
        self._history.write(json.dumps(finite(event)).encode() + b"\n")

    def flush(self) -> int:
        """Puts the history on the disk; returns its length in bytes."""
        assert self._history is not None
        self._history.flush()
        os.fsync(self._history.fileno())
        return self._history.tell()

    def close(self) -> None:
        """Closes the history."""
        if self._history is not None:
            self._history.close()
            self._history = None

    def save_state(self, state: RunState) -> None:
        """Writes the state, atomically."""
        tensors = dict(_named_tensors(state))
        description = {
            "settings": state.settings,
            "fingerprint": state.fingerprint,
            "elapsed": state.elapsed,
            "history_bytes": state.history_bytes,
            "guard_events": state.guard_events,
            "first_nll": state.first_nll,
            "planned_blocks": state.planned_blocks,
            "planned_finetune": state.planned_finetune,
            "rounds": state.rounds,
            "accepted": [block.describe() for block in state.accepted],
            "round_started": state.round_started,
            "summaries": state.summaries,
            "blocks": [block.describe() for block in state.blocks],
            "fit": None,
        }
        if state.fit is not None:
            description["fit"] = {
                "block": state.fit.block,
                # JSON has no inf
                "counters": {
                    k: None if v == math.inf else v for k, v in dataclasses.asdict(state.fit.counters).items()
                },
                "updates": [state.fit.now.updates, state.fit.good.updates],
            }
        checkpoint.save(self.path / STATE_FILE, STATE_KIND, tensors, description)

    def load_state(self) -> RunState | None:
        """Reads the state; None if the run was killed before it saved one.

        Raises:
            CheckpointError: If the file is damaged or of another version.
        """
        path = self.path / STATE_FILE
        if not path.exists():
            return None
        tensors, description = checkpoint.load(path, STATE_KIND)
        try:
            accepted = _load_blocks("accepted", description.pop("accepted"), tensors)
            blocks = _load_blocks("blocks", description.pop("blocks"), tensors)
            fit = None if (fit := description.pop("fit")) is None else _fit_state(fit, tensors)
            return RunState(**description, accepted=accepted, blocks=blocks, fit=fit)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise checkpoint.CheckpointError(f"{path} does not describe a training state: {error}") from error

    def finish(self, flow: JKOFlow, metrics: Mapping[str, Any], data: Dataset) -> None:
        """Writes the results, then removes the state: a run without state has ended."""
        flow.save(self.path / MODEL_FILE)
        preview = io.BytesIO()
        arrays: dict[str, Any] = {
            "data": spread_rows(data.test, PREVIEW_ROWS).numpy(),
            "features": np.array(data.features),
        }
        if data.test_context is not None:
            arrays["context"] = spread_rows(data.test_context, PREVIEW_ROWS).numpy()
            arrays["context_features"] = np.array(data.context_features)
        np.savez(preview, **arrays)
        checkpoint.write_atomically(self.path / PREVIEW_FILE, preview.getvalue())
        self._write_json(METRICS_FILE, metrics)
        self.flush()
        self.close()
        (self.path / STATE_FILE).unlink(missing_ok=True)

    def metrics(self) -> dict[str, Any]:
        """The metrics of a finished run.

        Raises:
            CheckpointError: If they are missing or damaged.
        """
        path = self.path / METRICS_FILE
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise checkpoint.CheckpointError(f"{path} is missing or damaged: {error}; train the run again") from error
        if not isinstance(metrics, dict):
            raise checkpoint.CheckpointError(f"{path} is damaged: it holds no JSON object; train the run again")
        return metrics

    def add_metrics(self, more: Mapping[str, Any]) -> None:
        """Adds to the metrics of a finished run.

        Raises:
            CheckpointError: If they are missing or damaged.
        """
        self._write_json(METRICS_FILE, {**self.metrics(), **more})

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        checkpoint.write_atomically(self.path / name, json.dumps(finite(content), indent=2).encode() + b"\n")


def config_toml(config: TrainConfig, source: str, context_columns: Sequence[str] = ()) -> bytes:
    """The text of config.toml: every setting, where the data came from and which of their columns are context.

    Raises:
        MissingExtraError: If tomli-w is missing.
    """
    tomli_w = require("tomli_w", "a run directory")
    data: dict[str, Any] = {"data": source}
    if context_columns:
        data["context_columns"] = list(context_columns)
    return tomli_w.dumps({**data, **config.to_mapping()}).encode()


def fingerprint(data: Dataset, start: JKOFlow | None = None) -> str:
    """A hash of the rows of all three parts, and of the flow that training starts from."""
    digest = hashlib.sha256()
    if start is not None:
        digest.update(json.dumps([block.describe() for block in start.stack]).encode())
        for tensor in start.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().data)
    contexts = [c for c in (data.train_context, data.val_context, data.test_context) if c is not None]
    for rows in (data.train, data.val, data.test, *contexts):
        digest.update(f"{tuple(rows.shape)}".encode())
        digest.update(rows.contiguous().numpy().data)
    return digest.hexdigest()


def finite(value: Any) -> Any:
    """The value as JSON can hold it: NaN and inf become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _load_blocks(chain: str, descriptions: list[dict[str, Any]], tensors: Mapping[str, Tensor]) -> list[Block]:
    blocks = [Block.from_description(description) for description in descriptions]
    for index, block in enumerate(blocks):
        block.load_state_dict({name: tensors[f"{chain}.{index}.{name}"] for name in block.state_dict()})
    return blocks


def _named_tensors(state: RunState) -> Iterator[tuple[str, Tensor]]:
    for chain, blocks in (("accepted", state.accepted), ("blocks", state.blocks)):
        for index, block in enumerate(blocks):
            for name, tensor in block.state_dict().items():
                yield f"{chain}.{index}.{name}", tensor
    if state.fit is not None:
        yield "fit.best", state.fit.best
        for moment, adam in (("now", state.fit.now), ("good", state.fit.good)):
            for part in ("parameters", "mean", "square"):
                yield f"fit.{moment}.{part}", getattr(adam, part)


def _fit_state(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FitState:
    counters: dict[str, Any] = {k: math.inf if v is None else v for k, v in description["counters"].items()}
    now, good = (
        AdamState(
            tensors[f"fit.{moment}.parameters"], tensors[f"fit.{moment}.mean"], tensors[f"fit.{moment}.square"], updates
        )
        for moment, updates in zip(("now", "good"), description["updates"], strict=True)
    )
    return FitState(description["block"], FitCounters(**counters), now, good, tensors["fit.best"])
