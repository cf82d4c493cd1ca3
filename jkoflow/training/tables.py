"""The training of a flow of a table: the masses of its states first, then a flow of its numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jkoflow import metrics
from jkoflow.data.columns.codec import Array
from jkoflow.data.columns.prepare import TableData
from jkoflow.data.seen import seen_columns
from jkoflow.data.table import PARTS, Table
from jkoflow.flow import JKOFlow
from jkoflow.masses import Masses
from jkoflow.table_flow import TableFlow
from jkoflow.training import overfit
from jkoflow.training.config import TrainConfig
from jkoflow.training.plan import Budget
from jkoflow.training.world import World

MASSES_SHARE = 0.2
"""Share of a time budget after which no more networks are trained for masses."""

BUDGET_ROWS, FEWEST_ROWS, PACE_ROWS = 2000, 200, 50
"""Largest and smallest number of test rows whose masses are integrated if there is a time budget, and the number of
those by which the time of one is measured."""


def fit_masses(data: TableData, config: TrainConfig, world: World, tell: Callable[[str], None]) -> Masses | None:
    """Fits the masses of the training rows' states; returns None if no column has several states."""
    if not data.schema.discrete:
        return None
    train, val, _ = (torch.from_numpy(data.states[part]) for part in PARTS)
    given = {part: torch.from_numpy(data.conditions[part]).float() for part in PARTS}
    has_context = given["train"].shape[1] > 0
    short: list[bool] = []

    def affordable() -> bool:
        enough = config.time_budget is None or world.elapsed() < MASSES_SHARE * config.time_budget
        short.append(not enough)
        return enough

    masses = Masses.fit(
        train,
        data.schema.levels,
        given["train"] if has_context else None,
        val,
        given["val"] if has_context else None,
        seed=config.seed,
        affordable=affordable,
    )
    if any(short):
        tell(
            f"the time budget lets the masses of {sum(short)} of {len(short)} discrete columns have tables alone; "
            "raise time_budget to let them learn more"
        )
    return masses


def settings_for(data: TableData, config: TrainConfig) -> TrainConfig:
    """Returns the settings for the flow of the numbers: the least there are if the masses are all there is."""
    if data.schema.numeric:
        return config
    return dataclasses.replace(
        config,
        max_blocks=1,
        iterations_per_block=1,
        time_budget=None,
        finetune=0.0,
        reparam_rounds=0,
        refine=1,
        batch_size=min(config.batch_size, len(data.numbers.train)),
    )


def completed(
    data: TableData, masses: Masses | None, budget: Budget | None, tell: Callable[[str], None]
) -> Callable[[JKOFlow, dict[str, Any]], tuple[TableFlow, dict[str, Any], dict[str, Array]]]:
    """Returns the function that makes the flow of a table, its results and its test columns of a flow of numbers."""

    def complete(flow: JKOFlow, results: dict[str, Any]) -> tuple[TableFlow, dict[str, Any], dict[str, Array]]:
        if not data.schema.numeric:  # the flow is of noise
            results = {name: value for name, value in results.items() if name not in overfit.KEYS}
        model = TableFlow(data.schema, flow, None if masses is None else masses.cpu(), data.frames, data.dtype)
        model = model.to(flow.standardize.mean.device).requires_grad_(False).eval()
        test = {name: data.columns["test"][name] for name in (*model.features, *model.context_features)}
        return model, {**results, **_measured(model, data, results, budget, tell)}, test

    return complete


def _measured(
    model: TableFlow, data: TableData, results: dict[str, Any], budget: Budget | None, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the metrics of the table itself, on its test rows and in its own units."""
    columns = data.columns["test"]
    count = len(next(iter(columns.values())))
    names = (*model.features, *model.context_features)

    def some(most: int) -> tuple[NDArray[np.int64], dict[str, Array]]:
        """Returns the numbers of at most so many test rows, spread evenly, and these rows."""
        chosen = np.linspace(0, count - 1, min(count, most)).astype(int)
        return chosen, {name: columns[name][chosen] for name in names}

    limit = results["n_test"]
    if budget is not None and model.schema.noisy:
        paced, began = some(PACE_ROWS)[1], budget.left()
        model.log_prob(Table({"all": list(paced.values())}, names))
        seconds = (began - budget.left()) / min(count, PACE_ROWS)
        affordable = int(max(budget.left_with_slack(), 0.0) / max(seconds, 1e-9))
        limit = min(limit, BUDGET_ROWS, max(affordable, FEWEST_ROWS))
    rows, chosen = some(limit)
    if len(rows) < results["n_test"]:
        tell(f"the masses of {len(rows)} of {count} test rows are integrated; raise time_budget, or score them all")
    nll = -model.log_prob(Table({"all": list(chosen.values())}, names)).numpy()
    weights = model.schema.encode(chosen, np.full((len(rows), len(model.features)), 0.5)).log_weights
    scale = float(weights.mean()) + results["test_nll"] - results["test_nll_data_units"]
    mean, stderr = float(nll.mean()), float(nll.std(ddof=1)) / math.sqrt(len(nll)) if len(nll) > 1 else math.nan
    width = len(model.features)
    return {
        "test_nll": mean + (scale if model.schema.numeric else 0.0),
        "test_nll_data_units": mean,
        "test_nll_stderr": stderr,
        "test_bits_per_dim": metrics.bits_per_dim(mean, width),
        "test_bits_per_dim_stderr": metrics.bits_per_dim(stderr, width),
        "n_train": len(data.states["train"]),
        "n_test": len(rows),
        "seen": seen_columns(data.schema, data.columns["train"]),
        "columns": [
            {
                "name": plan.name,
                "kind": plan.kind,
                "reason": plan.reason,
                "treatment": plan.treatment,
                "measure": "given" if plan.name in model.context_features else _measure(model, plan.name),
            }
            for plan in data.plans
        ],
    }


def _measure(model: TableFlow, name: str) -> str:
    codec = model.schema.codecs[model.features.index(name)]
    return "function of others" if codec is None else codec.measure
