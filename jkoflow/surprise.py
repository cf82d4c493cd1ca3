"""Which columns make a row unlikely: by how much its density would rise if one of them alone were likely."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jkoflow.data import DataError, as_table
from jkoflow.data.columns.codec import Array, Codec, Floats
from jkoflow.data.columns.impossible import impossible_values
from jkoflow.data.columns.numbers import Constant, Date, Mixed, days
from jkoflow.data.seen import outside, special
from jkoflow.data.table import Table
from jkoflow.flow import JKOFlow
from jkoflow.inputs import Rows, in_order, take_context, take_points
from jkoflow.metrics import CHUNK
from jkoflow.table_flow import Model, TableFlow

Replace = Callable[[Array], Floats]
"""Function of values (K,) of a column that returns the log-densities (n, K) of rows with these in their place."""


def surprise(model: Model, rows: Any, context: Any = None) -> Tensor:
    r"""Returns by how much each column lowers the log-density of its row, given the rest of the row.

    .. math:: s_j = \max_v \log p(v, x_{-j}) - \log p(x_j, x_{-j})

    This is the conditional surprise of the column's value, relative to the likeliest of the values v that the training
    has seen: its 33 quantiles, or all levels and counts. The units of a column do not matter, since both densities are
    in the same. A Gaussian's column gives half the square of its distance from its conditional mean, in conditional
    deviations. Columns that depend on each other share a surprise, so that the numbers do not add up to anything.

    A column that has both a density and repeated or missing values is compared in two steps: the mass of the state that
    the value is in with that of the likeliest state, and the density of a number with that of the likeliest number. The
    mass of all numbers together is the integral of the density over the quantiles.

    It takes some 33 times as long per column as the densities do.

    Arguments:
        model: A trained model.
        rows: Rows with shape (N, d), as for the model's ``log_prob``.
        context: Conditioning variables, likewise; they are given, and get no surprise.

    Returns:
        Surprises of the model's columns in nats, at least 0, float64, with shape (N, d). A row with density zero has
        inf in each column that alone is at fault and 0 in others; if no column alone is, then inf in all that are
        outside of what the training has seen, or else in all.

    Raises:
        jkoflow.data.DataError: If the rows do not fit the model, or it does not hold what the training has seen, such
            as one of an earlier version.

    Example:
        >>> config = jkoflow.TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=5, batch_size=100)
        >>> flow = jkoflow.train(torch.randn(500, 2), config)
        >>> surprise(flow, [[0.0, 9.0]])[0].argmax()
        tensor(1)
    """
    if not seen_of(model):
        raise DataError("the model does not hold what values the training has seen; train it again with this version")
    if isinstance(model, TableFlow):
        return _of_table(model, rows, context)
    return _of_flow(model, rows, context)


def seen_of(model: Model) -> dict[str, list[Any]]:
    """Returns what values the training has seen of every column, by name; empty if the model does not hold them."""
    seen = (model.metrics or {}).get("seen", {})
    if isinstance(model, TableFlow):
        complete = set(seen) == {*model.features, *model.context_features}
    else:
        complete = len(seen) == model.dim + model.context_dim
    return seen if complete else {}


@torch.no_grad()
def _of_flow(flow: JKOFlow, rows: Rows, context: Rows | None) -> Tensor:
    like = flow.standardize.mean
    x, leading = take_points(in_order(rows, flow.features, "rows"), flow.dim, "rows", like, True)
    given = take_context(in_order(context, flow.context_features, "context"), leading, flow.context_dim, like, True)
    base = _log_prob(flow, x, given)
    gains, beyond = np.zeros((len(x), flow.dim)), np.zeros((len(x), flow.dim), dtype=bool)
    for place, seen in enumerate(list(seen_of(flow).values())[: flow.dim]):
        values = torch.tensor(sorted(set(seen))).to(like)
        count = len(values)
        best = []
        for begin in range(0, len(x), max(1, CHUNK // count)):
            part = slice(begin, begin + max(1, CHUNK // count))
            replaced = x[part].repeat_interleave(count, 0)
            replaced[:, place] = values.repeat(len(x[part]))
            conditions = None if given is None else given[part].repeat_interleave(count, 0)
            best.append(_log_prob(flow, replaced, conditions).reshape(-1, count).max(1))
        gains[:, place] = _gain(np.concatenate([*best, np.zeros(0)]), base)
        beyond[:, place] = outside(x[:, place].double().cpu().numpy(), seen)
    return torch.from_numpy(_blamed(gains, base, beyond))


def _log_prob(flow: JKOFlow, x: Tensor, context: Tensor | None) -> Floats:
    found = flow.log_prob(x, context).double().cpu().numpy()
    return np.where(np.isnan(found), -math.inf, found)


def _of_table(model: TableFlow, rows: Any, context: Any) -> Tensor:
    names = (*model.features, *(model.context_features if context is None else ()))
    columns = model.columns_of(rows if isinstance(rows, Table) else as_table(rows), names)
    if context is not None:
        table = context if isinstance(context, Table) else as_table(context)
        columns |= model.columns_of(table, model.context_features, "context")
    base, seen = _table_log_prob(model, columns), seen_of(model)
    wrong = impossible_values(model.schema, columns)
    gains, beyond = np.zeros((len(base), len(model.features))), np.zeros((len(base), len(model.features)), dtype=bool)
    finite = np.flatnonzero(np.isfinite(base))
    for place, (name, codec) in enumerate(zip(model.features, model.schema.codecs, strict=True)):
        beyond[:, place] = outside(columns[name], seen[name], codec)
        if name in wrong:
            gains[wrong[name].rows, place] = math.inf
        if codec is None or isinstance(codec, Constant):
            continue
        values = _candidates(seen[name])
        size = max(1, CHUNK // (len(values) + codec.states))
        for begin in range(0, len(finite), size):
            part = finite[begin : begin + size]

            def replace(values: Array, part: Array = part, name: str = name) -> Floats:
                return _replaced(model, columns, part, name, values)

            gains[part, place] = _column_gain(codec, columns[name][part], values, base[part], replace)
    return torch.from_numpy(_blamed(gains, base, beyond))


def _table_log_prob(model: TableFlow, columns: Mapping[str, Array]) -> Floats:
    found = model.log_prob(Table({"all": list(columns.values())}, tuple(columns))).numpy()
    return np.where(np.isnan(found), -math.inf, found)


def _replaced(model: TableFlow, columns: Mapping[str, Array], rows: Array, name: str, values: Array) -> Floats:
    """Returns log-densities (n, K) of rows with each of values (K,) in a column; columns that depend on it follow."""
    changed = {other: np.repeat(column[rows], len(values)) for other, column in columns.items()}
    changed[name] = np.tile(values, len(rows))
    for other, dependence in model.schema.dependences.items():
        if name in dependence.sources:
            changed[other] = dependence.value(changed)
    return _table_log_prob(model, changed).reshape(len(rows), len(values))


def _candidates(seen: list[Any]) -> Array:
    """Returns the different values that were seen; dates as such."""
    different = list(dict.fromkeys(seen))
    if any(isinstance(value, str) or value is None for value in different):
        return np.array(different, dtype=object)
    return np.array(different)


def _column_gain(codec: Codec, own: Array, seen: Array, base: Floats, replace: Replace) -> Floats:
    """Returns the surprises (n,) of the values that rows have in a column, of finite log-density base (n,)."""
    if isinstance(codec, Date):
        seen = seen.astype("datetime64[us]")
    inner = codec.base if isinstance(codec, Date) else codec
    if not isinstance(inner, Mixed):
        return _gain(replace(seen).max(1), base)
    repeated = replace(codec.decode(np.arange(1, codec.states), np.zeros(codec.states - 1))).max(1)
    if len(seen) == 0:
        return _gain(repeated, base)
    numbers = replace(seen)
    together = np.logaddexp.reduce(numbers + np.log(_widths(inner, seen)), axis=1)
    likeliest = np.maximum(repeated, together)
    is_number = ~special(own, codec)
    return np.where(is_number, _gain(likeliest, together) + _gain(numbers.max(1), base), _gain(likeliest, base))


def _widths(codec: Mixed, values: Array) -> Floats:
    """Returns the weights (K,) by which densities, or masses of a lattice, at K values add up to an integral."""
    exact = days(values) if values.dtype.kind == "M" else values.astype(np.float64)
    unit = float(getattr(codec.base, "step", 0.0)) or 1.0
    if len(exact) == 1:
        return np.ones(1)
    gaps = np.diff(exact) / unit
    return (np.append(gaps, 0.0) + np.append(0.0, gaps)) / 2


def _gain(best: Floats, base: Floats) -> Floats:
    """Returns how far best is above base, at least 0; 0 where both are -inf."""
    with np.errstate(invalid="ignore"):
        return np.maximum(np.nan_to_num(best - base, nan=0.0, posinf=math.inf), 0.0)


def _blamed(gains: Floats, base: Floats, beyond: Array) -> Floats:
    """Blames rows of density zero that no column alone is to blame for on those outside the range, or else on all."""
    unexplained = np.isneginf(base) & ~np.isposinf(gains).any(1)
    anywhere = beyond[unexplained].any(1, keepdims=True)
    gains[unexplained] = np.where(beyond[unexplained] | ~anywhere, math.inf, 0.0)
    return gains
