"""The run directory: everything that a training run leaves on disk, written and read here."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jkoflow import checkpoint
from jkoflow.data import Dataset, require
from jkoflow.flow import MODEL_FILE, JKOFlow
from jkoflow.metrics import spread_rows
from jkoflow.training.config import TrainConfig
from jkoflow.training.state import RunError, RunState

CONFIG_FILE = "config.toml"
STATE_FILE = "state.safetensors"
METRICS_FILE = "metrics.json"
HISTORY_FILE = "history.jsonl"
PREVIEW_FILE = "preview.npz"
ENVIRONMENT_FILE = "environment.json"
STATE_KIND = "training-state"
PREVIEW_ROWS = 5000


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
        checkpoint.save(self.path / STATE_FILE, STATE_KIND, state.tensors(), state.describe())

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
            return RunState.from_description(description, tensors)
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


def finite(value: Any) -> Any:
    """The value as JSON can hold it: NaN and inf become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
