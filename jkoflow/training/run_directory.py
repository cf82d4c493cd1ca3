"""Writes and reads the files of a training run, whose names are defined here alone."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jkoflow import checkpoint
from jkoflow.checkpoint import CheckpointError
from jkoflow.data import Dataset
from jkoflow.flow import MODEL_FILE
from jkoflow.metrics import spread_numbers, spread_rows
from jkoflow.restore import described
from jkoflow.table_flow import Model, load
from jkoflow.training import run_files, run_lock, toml
from jkoflow.training.config import TrainConfig
from jkoflow.training.progress import Progress
from jkoflow.training.run_files import Preview, RunSettings
from jkoflow.training.state import RunError, RunState

T = TypeVar("T")

CONFIG_FILE = "config.toml"
STATE_FILE = "state.safetensors"
METRICS_FILE = "metrics.json"
HISTORY_FILE = "history.jsonl"
PREVIEW_FILE = "preview.npz"
ENVIRONMENT_FILE = "environment.json"
REPORT_FILE = "report.html"
FILES = (
    CONFIG_FILE, STATE_FILE, MODEL_FILE, METRICS_FILE, HISTORY_FILE, PREVIEW_FILE, ENVIRONMENT_FILE, REPORT_FILE
)  # fmt: skip
"""Names of all files of a run, its report included."""
STATE_KIND = "training-state"
PREVIEW_ROWS = 5000
"""Largest number of test rows that a run keeps for its report."""


class RunDirectory:
    """A directory that holds one training run.

    Every method that reads a file raises `jkoflow.checkpoint.CheckpointError` if the file is missing or damaged. The
    message is one line that names the file and the fix.

    Arguments:
        path: The directory, which `create` makes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._history: io.BufferedWriter | None = None
        self._digest = hashlib.sha256()

    def holds_run(self) -> bool:
        """Tells whether a training run has been started in this directory."""
        return any((self.path / name).exists() for name in (CONFIG_FILE, STATE_FILE, MODEL_FILE, METRICS_FILE))

    def is_finished(self) -> bool:
        """Tells whether the run in this directory has ended and left its model."""
        there = all((self.path / name).exists() for name in (MODEL_FILE, METRICS_FILE))
        return there and not (self.path / STATE_FILE).exists()

    def check_free(self, resume: str, another: str) -> None:
        """Refuses a directory with files that a new run would overwrite.

        Arguments:
            resume: How to go on with a run, for the message.
            another: How to choose another directory, for the message.

        Raises:
            RunError: If the directory holds a run, or other files with names of a run's.
        """
        there = [name for name in FILES if (self.path / name).exists()]
        if not there:
            return
        try:
            self.settings()
        except CheckpointError:  # of somebody else, or what is left of a run
            what = "it" if len(there) == 1 else "them"
            raise RunError(
                f"{self.path} holds {', '.join(there)}, a run would overwrite {what}; {another}, or move {what} away"
            ) from None
        raise RunError(f"{self.path} already holds a run; {resume}, or {another}")

    @contextmanager
    def locked(self, progress: Progress) -> Iterator[None]:
        """Keeps all other processes from writing into the directory, which is made if it is not there.

        What a killed process left half written is taken away.

        Raises:
            RunError: If another process writes into it already.
            OSError: If the directory cannot be made.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with run_lock.locked(self.path) as is_locked:
                if not is_locked:
                    progress.message(f"{self.path} cannot be locked: let no other process write into it")
                for name in FILES:
                    for left in self.path.glob(f".{name}.*{checkpoint.UNFINISHED}"):
                        left.unlink(missing_ok=True)
                yield
        except run_lock.LockedError as error:
            raise RunError(f"{self.path} is in use by {error}; wait for its end, or choose another directory") from None

    def create(
        self,
        config: TrainConfig,
        source: str,
        environment: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Makes the directory and writes the configuration and the environment, which are known before training.

        Raises:
            RunError: If the directory holds a run already, or files that a run would overwrite.
            OSError: If the directory cannot be written.
        """
        self.check_free("resume it", "choose another directory")
        self.path.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(self.path / CONFIG_FILE, config_toml(config, source, about))
        self._write_json(ENVIRONMENT_FILE, environment)
        self._open_history(b"")

    def reopen(
        self,
        state: RunState | None,
        config: TrainConfig,
        source: str,
        environment: Mapping[str, Any],
        about: Mapping[str, Any] | None,
        progress: Progress,
    ) -> None:
        """Opens a killed run for writing, with its history as it was when the state was saved.

        What of its files is damaged costs no training: it is mended as far as can be, and told. A damaged history is
        kept beside a new one with the records that can be read.

        Arguments:
            state: The state to go on from; None to start from the beginning.
            config: The run's settings.
            source: Source of the data.
            environment: Description of the environment, for a run that starts from the beginning.
            about: What was said about the data.
            progress: Receives the news.
        """
        path = self.path / HISTORY_FILE
        kept = path.read_bytes()[: state.history_bytes] if path.is_file() and state is not None else b""
        if state is not None and not _is_history(kept, state):
            beside = _free(path.with_name(f"{HISTORY_FILE}.damaged"))
            if path.exists():
                path.rename(beside)
            records = run_files.readable_records(kept)
            kept = b"".join(json.dumps(record).encode() + b"\n" for record in records)
            progress.message(
                f"{path} was damaged: {len(records)} of its records go on; what there was is kept as {beside.name}"
            )
        for name, read, content in (
            (CONFIG_FILE, self.settings, lambda: config_toml(config, source, about)),
            (ENVIRONMENT_FILE, self.environment, lambda: _json(environment)),
        ):
            try:
                read()
            except CheckpointError as error:
                checkpoint.write_atomically(self.path / name, content())
                progress.message(f"{str(error).partition(';')[0]}; it is written anew")
        if state is None:  # a run that goes on keeps the environment that it began in
            self._write_json(ENVIRONMENT_FILE, environment)
        self._open_history(kept)

    def _open_history(self, kept: bytes) -> None:
        path = self.path / HISTORY_FILE
        if not path.is_file() or path.read_bytes()[: len(kept)] != kept:
            checkpoint.write_atomically(path, kept)
        self._digest = hashlib.sha256(kept)
        self._history = path.open("ab")
        self._history.truncate(len(kept))

    def record(self, event: Mapping[str, Any]) -> None:
        """Adds one line to the history."""
        assert self._history is not None
        line = json.dumps(checkpoint.finite(event)).encode() + b"\n"
        self._history.write(line)
        self._digest.update(line)

    def flush(self) -> tuple[int, str]:
        """Flushes the history to the disk; returns its length in bytes and its digest."""
        assert self._history is not None
        self._history.flush()
        os.fsync(self._history.fileno())
        return self._history.tell(), self._digest.hexdigest()

    def close(self) -> None:
        """Closes the history."""
        if self._history is not None:
            self._history.close()
            self._history = None

    def save_state(self, state: RunState) -> None:
        """Writes the state of the run, atomically."""
        checkpoint.save(self.path / STATE_FILE, STATE_KIND, state.tensors(), state.describe())

    def load_state(self) -> RunState | None:
        """Reads the state of the run; returns None if the run was killed before it saved one.

        Raises:
            CheckpointError: If the file is damaged or of another version.
        """
        path = self.path / STATE_FILE
        if not path.exists():
            return None
        tensors, description = checkpoint.load(path, STATE_KIND)
        with described(path, "a training state"):
            return RunState.from_description(description, tensors)

    def finish(
        self,
        model: Model,
        metrics: Mapping[str, Any],
        data: Dataset,
        columns: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Writes the results, then removes the state: a run without state has ended.

        Arguments:
            model: The trained model.
            metrics: Its results.
            data: What the flow was trained on.
            columns: The test rows of a table, as the user has them: columns and conditioning variables by name; None
                for the model of a `Dataset`.
        """
        model.save(self.path / MODEL_FILE)
        preview = io.BytesIO()
        arrays: dict[str, Any] = {
            "data": spread_rows(data.test, PREVIEW_ROWS).numpy(),
            "features": np.array(data.features),
        }
        if data.test_context is not None:
            arrays["context"] = spread_rows(data.test_context, PREVIEW_ROWS).numpy()
            arrays["context_features"] = np.array(data.context_features)
        if columns is not None:
            arrays |= run_files.column_arrays({name: _spread(values) for name, values in columns.items()})
        np.savez(preview, **arrays)
        checkpoint.write_atomically(self.path / PREVIEW_FILE, preview.getvalue())
        self._write_json(METRICS_FILE, metrics)
        self.flush()
        self.close()
        (self.path / STATE_FILE).unlink(missing_ok=True)

    def add_metrics(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """Adds metrics to those of a finished run; returns all of them, as they are read back."""
        metrics = {**self.metrics(), **checkpoint.finite(more)}
        self._write_json(METRICS_FILE, metrics)
        return metrics

    def table(self) -> dict[str, Any]:
        """Reads the table of config.toml, under the names of the version that wrote it."""
        return self._read(CONFIG_FILE, run_files.parse_table)

    def settings(self) -> RunSettings:
        """Reads the data source, the context columns and the configuration that the run was started with."""
        path = self.path / CONFIG_FILE
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; restore it, or start a new run")
        table = self.table()
        try:
            return run_files.parse_settings(table)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {error}; start a new run") from error

    def metrics(self) -> dict[str, Any]:
        """Reads the metrics of a finished run: at least those under `run_files.COUNTS` and `run_files.MEASURES`."""
        return self._read(METRICS_FILE, run_files.parse_metrics)

    def history(self) -> list[dict[str, Any]]:
        """Reads the records of the history, the oldest first."""
        return self._read(HISTORY_FILE, run_files.parse_history)

    def preview(self) -> Preview:
        """Reads the test rows that a finished run keeps, and the names of their columns."""
        return self._read(PREVIEW_FILE, run_files.parse_preview)

    def environment(self) -> dict[str, Any]:
        """Reads the description of the environment in which the run began (`jkoflow.environment.describe`)."""
        return self._read(ENVIRONMENT_FILE, run_files.parse_object)

    def model(self) -> Model:
        """Reads the trained model, on the CPU."""
        path = self._existing(MODEL_FILE)
        try:
            return load(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; if it cannot be restored, train the run again") from error

    def _existing(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file() and self.is_finished():
            raise CheckpointError(f"{path}: no such file, though the run has ended; restore it, or train the run again")
        if not path.is_file() and not self.holds_run():
            again = shlex.quote(str(self.path))
            raise CheckpointError(f"{self.path} holds no run; train one with: jkoflow train DATA --out {again}")
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file, the run has not ended; resume it with: "
                f"jkoflow train DATA --out {self.path} --resume"
            )
        return path

    def _read(self, name: str, parse: Callable[[bytes], T]) -> T:
        path = self._existing(name)
        try:
            return parse(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; make it readable") from error
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {error}; restore it, or train the run again") from error

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        checkpoint.write_atomically(self.path / name, _json(content))


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(checkpoint.finite(content), indent=2).encode() + b"\n"


def _is_history(content: bytes, state: RunState) -> bool:
    """Tells whether a history is what it was when a state was saved; version 0.1 kept no digest, but a length."""
    if len(content) != state.history_bytes:
        return False
    if state.history_digest:
        return hashlib.sha256(content).hexdigest() == state.history_digest
    return len(run_files.readable_records(content)) == len(content.splitlines())


def _free(path: Path) -> Path:
    """Returns a path, or the same with a number behind it, at which there is nothing yet."""
    numbered = (path.with_name(f"{path.name}{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([path], numbered) if not place.exists())


def _spread(values: NDArray[Any]) -> NDArray[Any]:
    """Returns as many of values (n,), from evenly spaced rows, as a run keeps for its report."""
    return values[spread_numbers(len(values), PREVIEW_ROWS).numpy()]


def config_toml(config: TrainConfig, source: str, about: Mapping[str, Any] | None = None) -> bytes:
    """Returns the text of config.toml: the source of the data, what was said about them and every setting."""
    return toml.dumps({"data": source, **(about or {}), **config.to_mapping()}).encode()
