"""The comparison of rows with samples, for the command score."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jkoflow.cli import console
from jkoflow.cli.rows import Rows
from jkoflow.data import DataError
from jkoflow.data.columns.codec import Array
from jkoflow.data.table import Table
from jkoflow.metrics import spread_numbers
from jkoflow.table_flow import Model, TableFlow
from jkoflow.training.evaluation import TWO_SAMPLE_ROWS, compared_samples, two_sample_distances
from jkoflow.two_sample import classifier_accuracy

FEWEST = 20
"""Smallest number of rows that can be compared."""


def show_comparison(model: Model, rows: Rows, finite: Tensor) -> dict[str, Any]:
    """Prints how well a classifier and distances tell samples from those of the rows that have a finite density.

    Arguments:
        model: The model.
        rows: The rows.
        finite: Which of them have a finite density, with shape (N,).

    Returns:
        The figures by name.

    Raises:
        DataError: If these are too few.
    """
    count = int(finite.sum())
    if count < FEWEST:
        raise DataError(f"--two-sample needs at least {FEWEST} rows, got {count}; leave it out, or give more rows")
    if isinstance(model, TableFlow):
        real, drawn = _coded_samples(model, {name: values[finite.numpy()] for name, values in rows.columns.items()})
    else:
        assert rows.tensors is not None
        x, context = rows.tensors
        real, drawn = compared_samples(model, x[finite], None if context is None else context[finite])
    measured = two_sample_distances(real, drawn)
    for name, text in console.distances(measured).items():
        print(f"{name}: {text}")
    accuracy = classifier_accuracy(real, drawn)
    print(f"classifier accuracy: {accuracy.value:.3f} ± {accuracy.stderr:.3f} (0.5 if it cannot tell them apart)")
    return {**measured, "classifier_accuracy": accuracy.value, "classifier_accuracy_stderr": accuracy.stderr}


def _coded_samples(model: TableFlow, columns: dict[str, Array]) -> tuple[Tensor, Tensor]:
    """Returns rows of the data and as many samples, as the numbers and indicators that the models take.

    As in `compared_samples`, no conditions are used for both.
    """
    schema, generator = model.schema, torch.Generator().manual_seed(0)
    count = len(next(iter(columns.values())))
    given = bool(schema.context_features)
    real = spread_numbers((count + given) // (1 + given), TWO_SAMPLE_ROWS).numpy() * (1 + given)
    real = real[: count // (1 + given)]
    under = {name: columns[name][real + 1] for name in schema.context_features}
    table = Table({"all": list(under.values())}, tuple(under)) if given else None
    drawn = model.sample_columns(len(real), table, generator=generator)
    taken = {name: values[real] for name, values in columns.items()}
    return _coded(model, taken), _coded(model, {**drawn, **under})


def _coded(model: TableFlow, columns: dict[str, Array]) -> Tensor:
    schema, random = model.schema, np.random.default_rng(0)
    count = len(next(iter(columns.values())))
    coded = schema.encode(columns, random.random((count, len(schema.features))).clip(1e-9, 1 - 1e-9))
    parts = [coded.numbers, schema.indicators(coded.states)]
    if schema.context_features:
        parts.append(schema.conditions(columns))
    return torch.from_numpy(np.concatenate(parts, 1)).float()
