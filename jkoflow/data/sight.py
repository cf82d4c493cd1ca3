"""The rows of a mapped tensor that are looked at where all would have to be sorted."""

from __future__ import annotations

import torch
from torch import Tensor

from jkoflow.mapped import gather, is_mapped, parts

MOST_VALUES = 1 << 21
"""Largest number of values that are looked at; up to it, and in memory, all are."""


def in_sight(rows: Tensor) -> Tensor:
    """Returns the rows that links, quantiles and values far out are found from, in memory.

    Arguments:
        rows: Rows, with shape (N, d).

    Returns:
        All rows if they lie in memory or are few. Else evenly spread ones, and behind them those with the least and
        with the largest value of each column, of which there are 2 d.
    """
    if not is_mapped(rows):
        return rows
    most = max(MOST_VALUES // rows.shape[1], 1)
    if len(rows) <= most:
        return gather(rows, torch.arange(len(rows)))
    spread = torch.linspace(0, len(rows) - 1, most, dtype=torch.float64).long()
    return torch.cat([gather(rows, spread), gather(rows, _extremes(rows))])


def _extremes(rows: Tensor) -> Tensor:
    """Returns the numbers of the rows with the least and with the largest value of each column, with shape (2 d,)."""
    ends, places, start = [], [], 0
    for part in parts(rows):
        low, high = part.min(0), part.max(0)
        ends.append(torch.stack([low.values, -high.values]))
        places.append(start + torch.stack([low.indices, high.indices]))
        start += len(part)
    least = torch.stack(ends).argmin(0, keepdim=True)
    return torch.stack(places).gather(0, least).flatten()
