"""What keeps a training on few rows from learning their chance, and what tells that more rows would help.

A validation loss that is lower than another by chance is found sooner or later among dozens. So parameters count as
better than something simpler only if the validation rows gain from them by more than chance, row by row. Where rows are
many, chance is small, and the rule asks for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jkoflow.flow import JKOFlow
from jkoflow.gain import Gain, paired_gain
from jkoflow.metrics import ShareOut, by_itself, mean_and_stderr, row_nll
from jkoflow.training.objectives import JKO

KEYS = ("train_nll", "train_nll_stderr", "overfit_gap", "overfit_gap_stderr")
"""Metrics that `measured` returns."""


def beats_identity(objective: JKO, x: Tensor, y: Tensor, logdet: Tensor) -> bool:
    """Tells whether a block is clearly better than no block, by what validation rows gain from it.

    Arguments:
        objective: The objective of the block.
        x: Validation rows that enter the block, with shape (N, d).
        y: Their images, with shape (N, d).
        logdet: The logdets, with shape (N,).

    Returns:
        True if the mean loss is lower by more than `jkoflow.gain.CLEAR` standard errors of the rows' differences.
    """
    return paired_gain(objective.rows(x, x, logdet.new_zeros(len(x))), objective.rows(x, y, logdet)).is_clear


def measured(
    flow: JKOFlow,
    train: tuple[Tensor, Tensor | None],
    val: tuple[Tensor, Tensor | None],
    share_out: ShareOut = by_itself,
) -> dict[str, float]:
    """Measures how much more likely training rows are than validation rows, which more rows would make less.

    Arguments:
        flow: The flow; its calibrated steps are taken.
        train: Training rows in their own units, with shape (N, d), and their context, with shape (N, c) or None.
        val: Validation rows and their context, likewise.
        share_out: What computes the rows' likelihoods.

    Returns:
        ``train_nll`` in nats on standardised columns; ``overfit_gap``, the mean NLL of the validation rows less that of
        the training rows, in nats; and the standard errors of both. Rows without a finite density are left out.
    """
    (inside, inside_stderr), (outside, outside_stderr) = (
        mean_and_stderr(_finite_nll(flow, *part, share_out)) for part in (train, val)
    )
    values = (inside, inside_stderr, outside - inside, math.hypot(inside_stderr, outside_stderr))
    return dict(zip(KEYS, values, strict=True))


def _finite_nll(flow: JKOFlow, rows: Tensor, context: Tensor | None, share_out: ShareOut) -> Tensor:
    """Returns the finite NLLs of rows, in nats on standardised columns, as float64."""
    nll = row_nll(flow, rows, context=context, share_out=share_out) - flow.standardize.std.double().log().sum()
    if flow.links is not None:
        nll = nll + flow.links(rows)[1].double()
    return nll[torch.isfinite(nll)]


def told(metrics: Mapping[str, Any]) -> list[str]:
    """Returns what the metrics of a run say of the number of its rows, as sentences without a full stop.

    Arguments:
        metrics: The metrics of a run; those of earlier versions say nothing.
    """
    gap, stderr = metrics.get("overfit_gap"), metrics.get("overfit_gap_stderr")
    if gap is None or stderr is None or not math.isfinite(gap):
        return []
    sentences = []
    if metrics["blocks"] and not any(metrics["movements"]):
        sentences.append(
            f"no block is clearly better than none on {metrics['n_val']:,} validation rows, so that the flow is its "
            f"initial map alone ({metrics['initial_map']}); more rows may show more"
        )
    difference = f"{gap:.3f} ± {stderr:.3f} nats"
    if Gain(gap, stderr).is_clear:
        sentences.append(
            f"the training rows' NLL is {difference} lower than that of validation rows: some of it is learned by "
            f"heart, and more rows than {metrics['n_train']:,} would help"
        )
    return sentences


def in_short(metrics: Mapping[str, Any]) -> str:
    """Returns what the gap between training and validation rows says of the number of rows, in a few words."""
    clear = Gain(metrics["overfit_gap"], metrics["overfit_gap_stderr"]).is_clear
    return "more rows would help" if clear else "no more than chance: it does not say that more rows would help"
