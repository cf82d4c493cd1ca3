"""A finished run as read back from its directory, every part checked."""

from __future__ import annotations

import io
import json
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from jkoflow.checkpoint import CheckpointError
from jkoflow.flow import MODEL_FILE, JKOFlow
from jkoflow.training.run_directory import CONFIG_FILE, ENVIRONMENT_FILE, HISTORY_FILE, METRICS_FILE, PREVIEW_FILE

T = TypeVar("T")

COUNTS = ("eval_num_steps", "blocks", "guard_events", "dim", "n_train", "seed")
MEASURES = (
    "test_nll",
    "test_nll_data_units",
    "test_nll_stderr",
    "inversion_error_mean",
    "inversion_error_max",
    "train_seconds",
)


@dataclass(frozen=True)
class Results:
    """What a finished run left in its directory."""

    path: Path
    flow: JKOFlow
    metrics: dict[str, Any]
    """Whole numbers under `COUNTS`, numbers (None where a figure was not finite) under `MEASURES`."""
    history: list[dict[str, Any]]
    config: dict[str, Any]
    environment: dict[str, Any]
    data: Tensor
    """Test rows in their own units, with shape (n, d)."""
    features: tuple[str, ...]
    context: Tensor | None
    """Conditioning variables of these rows, with shape (n, c); None for an unconditional flow."""
    context_features: tuple[str, ...]


def read_results(run_dir: str | Path) -> Results:
    """Reads a finished run.

    Arguments:
        run_dir: The directory of the run.

    Returns:
        Its parts, checked against each other.

    Raises:
        CheckpointError: If a file of the run is missing or damaged, or two of them disagree.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such run directory; train one with: jkoflow train DATA --out {path}")
    metrics = _parse(path / METRICS_FILE, _metrics)
    flow = _parse(path / MODEL_FILE, lambda file: JKOFlow.load(file).requires_grad_(False))
    data, features, context, context_features = _parse(path / PREVIEW_FILE, _preview)
    results = Results(
        path=path,
        flow=flow,
        metrics=metrics,
        history=_parse(path / HISTORY_FILE, _history),
        config=_parse(path / CONFIG_FILE, lambda file: tomllib.loads(file.read_text(encoding="utf-8"))),
        environment=_parse(path / ENVIRONMENT_FILE, _json_object),
        data=data,
        features=features,
        context=context,
        context_features=context_features,
    )
    for name, what, found, expected in (
        (METRICS_FILE, "columns", metrics["dim"], flow.dim),
        (PREVIEW_FILE, "columns", data.shape[1], flow.dim),
        (PREVIEW_FILE, "context columns", len(context_features), flow.context_dim),
        (METRICS_FILE, "movements", len(metrics["movements"]), len(flow.blocks)),
    ):
        if found != expected:
            of = "blocks" if what == "movements" else what
            raise CheckpointError(
                f"{path / name} has {found} {what}, but {MODEL_FILE} beside it has {expected} {of}: the files are of "
                "different runs; restore them, or train the run again"
            )
    return results


def _parse(path: Path, parser: Callable[[Path], T]) -> T:
    """Reads a file of the run; whatever is wrong with it becomes an error that names the file and the fix."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file, the run has not ended; resume it with: "
            f"jkoflow train DATA --out {path.parent} --resume"
        )
    try:
        return parser(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; if it cannot be restored, train the run again") from error
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged: {error}; restore it, or train the run again") from error


def _json_object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got a {type(value).__name__}")
    return value


def _metrics(path: Path) -> dict[str, Any]:
    metrics = _json_object(path)
    missing = [name for name in (*COUNTS, *MEASURES, "movements") if name not in metrics]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    for names, kind, what in ((COUNTS, int, "a whole number"), (MEASURES, (int, float, type(None)), "a number")):
        for name in names:
            if not isinstance(metrics[name], kind):
                raise ValueError(f"{name} must be {what}, got {metrics[name]!r}")
    moved = metrics["movements"]
    if not isinstance(moved, list) or not all(isinstance(value, (int, float)) for value in moved):
        raise ValueError(f"movements must be a list of numbers, got {moved!r}")
    rounds = metrics.get("rounds", [])
    keys = {"round", "kind", "blocks", "step_sizes", "movements", "movement_spread", "val_nll", "kept", "seconds"}
    if not isinstance(rounds, list) or not all(isinstance(r, dict) and r.keys() >= keys for r in rounds):
        raise ValueError(f"rounds must be a list of records with {', '.join(sorted(keys))}, got {rounds!r}")
    return metrics


# Fields without which a record of the history cannot be placed.
_PLACE = {
    "iteration": ("block", "iteration"),
    "validation": ("block", "iteration"),
    "guard": ("block", "iteration"),
    "block": ("block",),
}


def _history(path: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON ({error})") from error
        if not isinstance(record, dict) or "event" not in record:
            raise ValueError(f"line {number} is not a record of an event")
        for name in _PLACE.get(record["event"], ()):
            if not isinstance(record.get(name), int):
                raise ValueError(f"line {number} must have a whole number {name}, got {record.get(name)!r}")
        records.append(record)
    if not records:
        raise ValueError("it is empty")
    return records


def _preview(path: Path) -> tuple[Tensor, tuple[str, ...], Tensor | None, tuple[str, ...]]:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        data, features = np.asarray(file["data"], dtype=np.float32), tuple(str(name) for name in file["features"])
        context, names = None, ()
        if "context" in file:
            context = np.asarray(file["context"], dtype=np.float32)
            names = tuple(str(name) for name in file["context_features"])
    if data.ndim != 2 or data.shape[0] < 2 or len(features) != data.shape[1]:
        raise ValueError(
            f"expected data of shape (n, d), n at least 2, and d features, got {data.shape} and {len(features)}"
        )
    if context is not None and context.shape != (data.shape[0], len(names)):
        raise ValueError(f"expected context of shape {(data.shape[0], len(names))}, got {context.shape}")
    if not np.isfinite(data).all() or (context is not None and not np.isfinite(context).all()):
        raise ValueError("its data hold NaN or inf")
    return torch.from_numpy(data), features, None if context is None else torch.from_numpy(context), names
