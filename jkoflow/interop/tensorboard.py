"""The course of a training in TensorBoard: a callback of `jkoflow.train` that writes curves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jkoflow.errors import UserError
from jkoflow.optional import require
from jkoflow.training.run_directory import HISTORY_FILE
from jkoflow.training.run_files import readable_records

SUFFIX = ".jkoflow"
"""End of the names of the files that are written, which tells them from those of other programs."""

CURVES = {
    "iteration": {
        **{name: f"train/{name}" for name in ("loss", "potential", "divergence", "movement", "grad_norm")},
        "learning_rate": "train/learning_rate",
        "num_steps": "train/runge_kutta_steps",
    },
    "validation": {"loss": "validation/loss", "nll": "validation/nll"},
    "block": {"val_nll": "blocks/validation_nll", "movement": "blocks/movement", "iterations": "blocks/iterations"},
    "round": {"val_nll": "rounds/validation_nll", "movement_spread": "rounds/movement_spread"},
}
"""Names of the curves, by the events and their fields that they are of; the horizontal axis is ``global_step``."""

SPEED, RESULTS = "train/iterations_per_second", "results"


class CurvesError(UserError, ValueError):
    """Raised if a directory holds the curves of another run; the message is one line and tells the fix."""


class TensorBoard:
    """Writes the events of a training into a directory that TensorBoard shows.

    The curves are losses and their terms, norm of the gradient, learning rate, Runge-Kutta steps and speed over the
    iterations of all blocks, validation losses and NLLs, and what each block and each round ends with. At the end come
    all numbers of metrics.json, as ``results/...``, and all along, as texts, settings and notes.

    A run that is resumed goes on in the same directory: what was written is replaced by the curves of its history up to
    where it goes on, so that nothing is missing or there twice.

    Arguments:
        directory: Where to write; one for each run. ``tensorboard --logdir`` takes it, or the directory it is in.

    Raises:
        jkoflow.optional.MissingExtraError: If tensorboard is missing.

    Example:
        >>> with TensorBoard("curves/first") as board:  # doctest: +SKIP
        ...     jkoflow.train(rows, run_dir="runs/first", callback=board)
    """

    def __init__(self, directory: str | Path) -> None:
        require("tensorboard", "writing curves for TensorBoard", "tensorboard")
        self.directory = Path(directory)
        self._writer: Any = None
        self._began = 0.0  # when the run would have begun without a break
        self._step = 0  # of the last record
        self._seconds = 0.0  # into the run, as of the last event that tells
        self._last: tuple[int, int, int, float] | None = None  # round, block, step and seconds of the last iteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check_free(self) -> None:
        """Refuses a directory with the curves of another run, and makes one that is not there.

        Raises:
            CurvesError: If it holds some, or is no directory.
            OSError: If it cannot be made.
        """
        if self.directory.exists() and not self.directory.is_dir():
            raise CurvesError(f"{self.directory} is a file, not a directory for curves; choose another")
        self.directory.mkdir(parents=True, exist_ok=True)
        if found := self._files():
            raise CurvesError(
                f"{self.directory} holds the curves of another run already, {found[0].name}; choose another directory, "
                "or move them away"
            )

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Writes an event of `jkoflow.train`.

        Raises:
            CurvesError: If a run begins and the directory holds the curves of another one.
            OSError: If the directory cannot be written.
        """
        kind = event["event"]
        if kind == "start":
            self._start(event)
        elif self._writer is None:  # news from before a run begins
            return
        elif kind == "note":
            self._writer.add_text("notes", event["text"], self._step, walltime=self._began + self._seconds)
        elif kind == "evaluation":
            self._write_results(event)
            self.close()
        elif kind in CURVES:
            self._write(event)
            if kind != "iteration":
                self._writer.flush()

    def close(self) -> None:
        """Ends the writing; does nothing the second time."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob(f"events.out.tfevents.*{SUFFIX}"))

    def _start(self, event: Mapping[str, Any]) -> None:
        if event["resumed"]:
            for path in self._files():
                path.unlink()
        else:
            self.check_free()
        summary = require("torch.utils.tensorboard", "writing curves for TensorBoard", "tensorboard")
        self._began = time.time() - event["seconds"]
        self._step, self._seconds, self._last = 0, 0.0, None
        # a TensorBoard that runs forgets what it has read of a run's former files
        purge = 0 if event["resumed"] else None
        self._writer = summary.SummaryWriter(str(self.directory), filename_suffix=SUFFIX, purge_step=purge)
        self._writer.add_text("settings", _listed(event["config"]), 0, walltime=self._began)
        if event["resumed"]:
            history = Path(event["run_dir"]) / HISTORY_FILE
            self._write_all(readable_records(history.read_bytes()))
            self._seconds = event["seconds"]
        self._writer.flush()

    def _write_all(self, records: Iterable[Mapping[str, Any]]) -> None:
        for record in records:
            if record["event"] in CURVES and "global_step" in record:  # which earlier versions have not counted
                self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        """Writes a record of the history."""
        kind, self._step = record["event"], record["global_step"]
        if kind == "iteration":
            self._seconds = record["seconds"]
            self._write_speed(record)
        for name, curve in CURVES[kind].items():
            self._add(curve, record.get(name))

    def _write_speed(self, record: Mapping[str, Any]) -> None:
        """Writes the speed since the record before, if that is of the same block: between two there is other work."""
        round_number, block, step, seconds = (record[name] for name in ("round", "block", "global_step", "seconds"))
        if self._last is not None and self._last[:2] == (round_number, block) and seconds > self._last[3]:
            self._add(SPEED, (step - self._last[2]) / (seconds - self._last[3]))
        self._last = (round_number, block, step, seconds)

    def _write_results(self, event: Mapping[str, Any]) -> None:
        self._step = event["global_step"]
        for name, value in event["metrics"].items():
            self._add(f"{RESULTS}/{name}", value)
        for block, movement in enumerate(event["metrics"]["movements"]):
            self._writer.add_scalar(f"{RESULTS}/movements", movement, block, walltime=time.time())

    def _add(self, curve: str, value: Any) -> None:
        """Adds a value to a curve if it is a number; None stands for one that is not finite."""
        if isinstance(value, int | float):
            self._writer.add_scalar(curve, value, self._step, walltime=self._began + self._seconds)


def _listed(settings: Mapping[str, Any]) -> str:
    """Returns settings as a table in Markdown."""
    return "\n".join(
        ["| setting | value |", "| --- | --- |", *(f"| {key} | {text} |" for key, text in settings.items())]
    )
