"""The figures that a finished flow is reported with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jkoflow import metrics, two_sample
from jkoflow.data import Dataset
from jkoflow.discrete import NotContractiveError
from jkoflow.flow import JKOFlow

INVERSION_ROWS = 10_000
"""Test rows of the inversion error."""

TWO_SAMPLE_ROWS = 1000
"""Test rows, and samples, of the distances between the two."""

EXACT_ROWS = 500
"""Test rows of the exact inverse's error."""


def evaluate(flow: JKOFlow, data: Dataset, val_rows: int, test_rows: int | None = None) -> dict[str, Any]:
    """Calibrates a flow on validation rows and measures it on the test rows.

    Arguments:
        flow: The flow; its ``eval_num_steps`` is set to the number at which the NLL of both parts stands still.
        data: The data; rows go to the flow's device.
        val_rows: Validation rows to calibrate on, at most.
        test_rows: Test rows to score, at most; None means all.

    Returns:
        NLLs in nats (``test_nll`` and ``val_nll`` on standardised columns), step-converged unless
        ``test_nll_converged`` is False, and the inversion error in standardised units, that of the exact inverse too
        (inf if the steps are too coarse for it). Distances between test rows and as many samples, on standardised
        columns and joined with the context of a conditional flow, come with what chance alone exceeds in one case of
        twenty; they are missing if there are too few test rows.
    """
    device = flow.standardize.mean.device
    val, val_context = spread(data.val, data.val_context, val_rows, device)
    test, test_context = spread(data.test, data.test_context, test_rows or len(data.test), device)
    calibration = metrics.calibrate(flow, val, context=val_context)
    nll = metrics.step_converged_nll(flow, test, context=test_context)
    flow.eval_num_steps = max(nll.num_steps, calibration.num_steps)
    rows, context = spread(test, test_context, INVERSION_ROWS, device)
    inversion = metrics.inversion_error(flow, rows, context=context)
    try:
        rows, context = spread(test, test_context, EXACT_ROWS, device)
        exact = metrics.inversion_error(flow, rows, exact=True, context=context)
    except NotContractiveError:
        exact = metrics.InversionError(math.inf, math.inf, math.nan)
    log_scale = float(flow.standardize.std.double().log().sum())
    results = {
        "test_nll": nll.nll - log_scale,
        "test_nll_data_units": nll.nll,
        "test_nll_stderr": nll.stderr,
        "test_bits_per_dim": metrics.bits_per_dim(nll.nll, data.dim),
        "test_bits_per_dim_stderr": metrics.bits_per_dim(nll.stderr, data.dim),
        "test_nll_converged": nll.converged and calibration.converged,
        "val_nll": calibration.nll - log_scale,
        "eval_num_steps": flow.eval_num_steps,
        "inversion_error_mean": inversion.mean,
        "inversion_error_max": inversion.maximum,
        "inversion_error_stderr": inversion.stderr,
        "inversion_error_exact_mean": exact.mean,
        "inversion_error_exact_max": exact.maximum,
        "inversion_error_exact_stderr": exact.stderr,
        "blocks": len(flow.blocks),
        "dim": data.dim,
        "context_dim": data.context_dim,
        "n_train": data.train.shape[0],
        "n_test": len(test),
    }
    rows, context = spread(test, test_context, 2 * TWO_SAMPLE_ROWS, device)
    return results | (two_sample_distances(*compared_samples(flow, rows, context)) if len(rows) >= 4 else {})


def two_sample_distances(real: Tensor, drawn: Tensor) -> dict[str, float]:
    """MMDs and energy distance between two samples (n, d), by name, with standard errors and thresholds.

    Samples that are not finite are infinitely far. Where most rows are equal there is no MMD with median bandwidth.
    """
    names = ["mmd_median", "mmd_fixed", "energy_distance"]
    if not bool(torch.isfinite(drawn).all()):
        results = dict.fromkeys(names, two_sample.Discrepancy(math.inf, math.nan, math.nan))
    else:
        results = {
            "mmd_fixed": two_sample.mmd(real, drawn, two_sample.FIXED_BANDWIDTH),
            "energy_distance": two_sample.energy_distance(real, drawn),
        }
        if (bandwidth := two_sample.median_distance(real, drawn)) > 0:
            results["mmd_median"] = two_sample.mmd(real, drawn, bandwidth)
    found: dict[str, float] = {"two_sample_rows": len(real)}
    for name in names:
        if name in results:
            value, error, threshold = results[name]
            found |= {name: value, f"{name}_stderr": error, f"{name}_threshold": threshold}
    return found


@torch.no_grad()
def compared_samples(
    flow: JKOFlow, rows: Tensor, context: Tensor | None, limit: int = TWO_SAMPLE_ROWS, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Rows of the data and samples of the flow to compare, as many of each and at most ``limit``.

    Arguments:
        flow: The flow.
        rows: Data in their own units, with shape (N, d).
        context: Their conditioning variables, with shape (N, c). Samples are drawn under those of every other row, the
            rows between these stand for the data: both then have contexts of their own.
        limit: Largest number of rows.
        seed: Seed of the samples.

    Returns:
        Both on standardised columns, with shape (n, d), or (n, d + c) with the context beside them.
    """
    generator = torch.Generator().manual_seed(seed)
    generator = generator if rows.device.type == "cpu" else torch.Generator(rows.device).manual_seed(seed)
    if context is None:
        real = metrics.spread_rows(rows, limit)
        drawn = flow.sample(len(real), generator=generator)
        return flow.standardize(real)[0], flow.standardize(drawn)[0]
    count = min(len(rows) // 2, limit)
    real, drawn_context = metrics.spread_rows(rows[::2], count), metrics.spread_rows(context[1::2], count)
    drawn = flow.sample(count, drawn_context, generator=generator)
    contexts = (metrics.spread_rows(context[::2], count), drawn_context)
    real_context, drawn_context = (flow.standardized_context(c, count) for c in contexts)
    assert real_context is not None
    assert drawn_context is not None
    return (
        torch.cat([flow.standardize(real)[0], real_context], 1),
        torch.cat([flow.standardize(drawn)[0], drawn_context], 1),
    )


def spread(rows: Tensor, context: Tensor | None, limit: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """At most ``limit`` rows with their context, evenly spread, on a device."""
    conditions = None if context is None else metrics.spread_rows(context, limit).to(device)
    return metrics.spread_rows(rows, limit).to(device), conditions
