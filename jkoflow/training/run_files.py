"""Turns the contents of a run's files into values and checks them; `jkoflow.training.run_directory` names the files.

Every function raises ValueError or TypeError if the content is not what a run writes.
"""

from __future__ import annotations

import contextlib
import io
import json
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.data.columns.options import NAMES, TableOptions
from jkoflow.former_names import of_earlier_run
from jkoflow.training.config import TrainConfig
from jkoflow.training.shapes import check_metrics, check_record

COUNTS = ("eval_num_steps", "blocks", "guard_events", "dim", "n_train", "seed")
"""Metrics of every run that are whole numbers."""
MEASURES = (
    "test_nll",
    "test_nll_data_units",
    "test_nll_stderr",
    "inversion_error_mean",
    "inversion_error_max",
    "train_seconds",
)
"""Metrics of every run that are numbers, or None if a number was not finite."""

# Fields without which a record of the history cannot be placed.
_PLACE = {
    "iteration": ("block", "iteration"),
    "validation": ("block", "iteration"),
    "guard": ("block", "iteration"),
    "block": ("block",),
}


class RunSettings(NamedTuple):
    """The data source, what was said about the data, and the configuration that a run was started with."""

    source: str
    """Source of the data: a built-in name or a path."""
    options: TableOptions
    """What was said about the table."""
    config: TrainConfig


class Preview(NamedTuple):
    """Some of a run's test rows, in their own units, for its report."""

    data: Tensor
    """The rows, with shape (n, d)."""
    features: tuple[str, ...]
    """Names of the d columns of the rows."""
    context: Tensor | None
    """Conditioning variables of these rows, with shape (n, c); None for an unconditional flow."""
    context_features: tuple[str, ...]
    """Names of the c conditioning variables."""
    columns: dict[str, NDArray[Any]] | None = None
    """Columns and conditioning variables of a table by name, each with shape (m,), as the user has them; None for the
    run of a flow, whose rows are in the user's units."""


def parse_table(content: bytes) -> dict[str, Any]:
    """Reads the table of config.toml, under the names of the version that wrote it."""
    return tomllib.loads(content.decode())


def parse_settings(table: dict[str, Any]) -> RunSettings:
    """Takes the settings out of the table of config.toml, under their present names or the names of version 0.1."""
    values = dict(table)
    source = values.pop("data", None)
    if not isinstance(source, str):
        raise ValueError("it does not name the data")
    options = TableOptions.from_mapping({name: values.pop(name) for name in NAMES if name in values})
    return RunSettings(source, options, TrainConfig.from_mapping(of_earlier_run(values)))


def parse_object(content: bytes) -> dict[str, Any]:
    """Reads a JSON object."""
    value = json.loads(content.decode())
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got a {type(value).__name__}")
    return value


def parse_metrics(content: bytes) -> dict[str, Any]:
    """Reads metrics.json: whole numbers under `COUNTS`, numbers or None under `MEASURES`, and all other metrics."""
    metrics = parse_object(content)
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
    check_metrics(metrics)
    return metrics


def parse_history(content: bytes) -> list[dict[str, Any]]:
    """Reads the records of history.jsonl, each with its event and, if it has one, its place in the run."""
    records = [_record(number, line) for number, line in enumerate(content.decode().splitlines(), 1)]
    if not records:
        raise ValueError("it is empty")
    return records


def readable_records(content: bytes) -> list[dict[str, Any]]:
    """Returns those records of a history that can be read."""
    records = []
    for number, line in enumerate(content.splitlines(), 1):
        with contextlib.suppress(ValueError, RecursionError):
            records.append(_record(number, line.decode()))
    return records


def _record(number: int, line: str) -> dict[str, Any]:
    """Reads one line of a history."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise ValueError(f"line {number} is not a record of an event")
    for name in _PLACE.get(record["event"], ()):
        if not isinstance(record.get(name), int):
            raise ValueError(f"line {number} must have a whole number {name}, got {record.get(name)!r}")
    try:
        check_record(record)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    return record


def parse_preview(content: bytes) -> Preview:
    """Reads the test rows and column names of preview.npz, and a table's columns where it has them."""
    arrays = _arrays(content)
    missing = {"data", "features", *(["context_features"] if "context" in arrays else [])} - arrays.keys()
    if missing:
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    data, features = np.asarray(arrays["data"], dtype=np.float32), _names(arrays["features"])
    if data.ndim != 2 or data.shape[0] < 1 or len(features) != data.shape[1]:
        raise ValueError(
            f"expected data of shape (n, d), n at least 1, and d features, got {data.shape} and {len(features)}"
        )
    context, context_features = None, ()
    if "context" in arrays:
        context = np.asarray(arrays["context"], dtype=np.float32)
        context_features = _names(arrays["context_features"])
        if context.shape != (data.shape[0], len(context_features)):
            raise ValueError(f"expected context of shape {(data.shape[0], len(context_features))}, got {context.shape}")
        context = torch.from_numpy(context)
    data = torch.from_numpy(data)
    if not data.isfinite().all() or (context is not None and not context.isfinite().all()):
        raise ValueError("its data hold NaN or inf")
    return Preview(data, features, context, context_features, _parse_columns(arrays) if "columns" in arrays else None)


def column_arrays(columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Returns columns (n,) of any type as arrays that need no pickle: text and what is missing in it as JSON."""
    arrays = {"columns": np.array(list(columns))}
    for place, values in enumerate(columns.values()):
        is_text = values.dtype.kind == "O"
        arrays[f"column{place}"] = np.array([json.dumps(value) for value in values.tolist()]) if is_text else values
    return arrays


def _parse_columns(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    names, columns = _names(arrays["columns"]), {}
    for place, name in enumerate(names):
        values = arrays.get(f"column{place}")
        if values is None or values.ndim != 1 or values.dtype.kind not in "fiubMU":
            raise ValueError(f"it has no column of the name {name!r}")
        if values.dtype.kind == "U":
            parsed = [json.loads(text) for text in values.tolist()]
            values = np.empty(len(parsed), dtype=object)
            values[:] = parsed
        columns[name] = values
    if len({len(values) for values in columns.values()}) > 1:
        raise ValueError(f"its columns must have as many rows, got {[len(values) for values in columns.values()]}")
    return columns


def _names(array: NDArray[Any]) -> tuple[str, ...]:
    if array.ndim != 1:
        raise ValueError(f"expected a list of names, got an array of shape {array.shape}")
    return tuple(str(name) for name in array)


def _arrays(content: bytes) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # zip, zlib and numpy each have their own for what they stumble on in a damaged archive
        raise ValueError(str(error)) from error
