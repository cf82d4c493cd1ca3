"""The least likely of the rows that are scored, and the columns that make them so."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jkoflow.cli.rows import Rows
from jkoflow.data import Scored
from jkoflow.data.columns.codec import Array, missing
from jkoflow.data.seen import QUANTILES
from jkoflow.data.table import Column
from jkoflow.surprise import seen_of
from jkoflow.table_flow import Model

COLUMNS = 3
"""Columns that are named for each row."""

MOST_IDS = 3
"""Columns that the model does not use that are named for each row, the first of them."""

MOST_LEVELS = 5
"""Levels of a column that are named."""


def show_unlikely(
    model: Model, rows: Rows, scored: Scored, log_prob: Tensor, count: int, numbers: Array | None = None
) -> list[dict[str, Any]]:
    """Prints the least likely rows, each with the columns that contribute most to that.

    Arguments:
        model: The model, which holds what the training has seen.
        rows: The rows.
        scored: Where they come from, with columns that the model does not use.
        log_prob: Their log-densities, with shape (N,).
        count: How many rows to print, at most.
        numbers: Numbers (N,) of the rows in their source; None means 0, 1, ...

    Returns:
        What it prints: number, log-likelihood and other columns of each row, and the surprise of its columns in nats.
    """
    worst = least_likely(log_prob, count)
    if len(worst) == 0:
        return []
    told: list[dict[str, Any]] = []
    surprises = rows.surprise(worst).numpy()
    columns, known = list(rows.columns.items()), list(seen_of(model).values())
    every = dict(zip(scored.table.features, scored.table.parts["all"], strict=True))
    print(f"the least likely row{'s' if len(worst) > 1 else ''}, and the columns that make them so (in nats):")
    for row, found in zip(worst.tolist(), surprises, strict=True):
        others = {name: _shown(every[name], row) for name in scored.unused[:MOST_IDS]}
        ids = ", ".join(f"{name} {text}" for name, text in others.items())
        number = row if numbers is None else int(numbers[row])
        print(f"  row {number}{f' ({ids})' if ids else ''}: log-likelihood {float(log_prob[row]):.4g}")
        reasons: dict[str, float] = {}
        told.append({"row": number, "log_likelihood": float(log_prob[row]), "others": others, "surprise": reasons})
        for place in np.argsort(-found, kind="stable")[:COLUMNS].tolist():
            if found[place] > 0:
                name, values = columns[place]
                reasons[name] = float(found[place])
                print(f"    {name} = {_shown(values, row)}: {found[place]:.4g}, {_typical(known[place], values)}")
    return told


def least_likely(log_prob: Tensor, count: int) -> Array:
    """Returns the numbers of the least likely of rows (N,), the least likely first."""
    return torch.argsort(torch.nan_to_num(log_prob, nan=-np.inf), stable=True)[:count].numpy()


def _typical(seen: list[Any], values: Column) -> str:
    """Returns the text that tells what values are common in a column of the training rows."""
    if not _are_quantiles(seen, values):
        some = ", ".join(_text(value) for value in seen[:MOST_LEVELS])
        return f"one of {some}{', ...' if len(seen) > MOST_LEVELS else ''} in the training"
    # all but a sixteenth lie between the second and the last but one
    share = 1 - 2 / (QUANTILES - 1)
    return f"{share:.0%} of the training in {_text(seen[1])} .. {_text(seen[-2])}"


def _are_quantiles(seen: list[Any], values: Column) -> bool:
    is_text = any(value is None or isinstance(value, str) for value in seen) and values.dtype.kind != "M"
    return len(seen) == QUANTILES and not is_text


def _shown(values: Column, row: int) -> str:
    if missing(values[row : row + 1])[0]:
        return "missing"
    value = values[row]
    return _text(np.datetime_as_string(value) if values.dtype.kind == "M" else value)


def _text(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    text = str(value)
    return text.removesuffix("T00:00:00.000000").removesuffix(".000000")
