"""The figures that a finished flow is reported with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jkoflow import metrics
from jkoflow.data import Dataset
from jkoflow.discrete import NotContractiveError
from jkoflow.flow import JKOFlow

INVERSION_ROWS = 10_000
"""Test rows of the inversion error."""

EXACT_ROWS = 1000
"""Test rows of the exact inverse's error."""


def evaluate(flow: JKOFlow, data: Dataset, val_rows: int) -> dict[str, Any]:
    """Calibrates a flow on validation rows and measures it on the test rows.

    Arguments:
        flow: The flow; its ``eval_num_steps`` is set to the number at which the NLL of both parts stands still.
        data: The data; rows go to the flow's device.
        val_rows: Validation rows to calibrate on, at most.

    Returns:
        NLLs in nats (``test_nll`` and ``val_nll`` on standardised columns), step-converged unless
        ``test_nll_converged`` is False, and the inversion error in standardised units, that of the exact inverse too
        (inf if the steps are too coarse for it).
    """
    device = flow.standardize.mean.device
    val, val_context = _spread(data.val, data.val_context, val_rows, device)
    test, test_context = _spread(data.test, data.test_context, len(data.test), device)
    calibration = metrics.calibrate(flow, val, context=val_context)
    nll = metrics.step_converged_nll(flow, test, context=test_context)
    flow.eval_num_steps = max(nll.num_steps, calibration.num_steps)
    rows, context = _spread(test, test_context, INVERSION_ROWS, device)
    inversion = metrics.inversion_error(flow, rows, context=context)
    try:
        rows, context = _spread(test, test_context, EXACT_ROWS, device)
        exact = metrics.inversion_error(flow, rows, exact=True, context=context)
    except NotContractiveError:
        exact = metrics.InversionError(math.inf, math.inf)
    log_scale = float(flow.standardize.std.double().log().sum())
    return {
        "test_nll": nll.nll - log_scale,
        "test_nll_data_units": nll.nll,
        "test_nll_stderr": nll.stderr,
        "test_nll_converged": nll.converged and calibration.converged,
        "val_nll": calibration.nll - log_scale,
        "eval_num_steps": flow.eval_num_steps,
        "inversion_error_mean": inversion.mean,
        "inversion_error_max": inversion.maximum,
        "inversion_error_exact_mean": exact.mean,
        "inversion_error_exact_max": exact.maximum,
        "blocks": len(flow.blocks),
        "dim": data.dim,
        "context_dim": data.context_dim,
        "n_train": data.train.shape[0],
    }


def _spread(rows: Tensor, context: Tensor | None, limit: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """At most ``limit`` rows with their context, evenly spread, on a device."""
    conditions = None if context is None else metrics.spread_rows(context, limit).to(device)
    return metrics.spread_rows(rows, limit).to(device), conditions
