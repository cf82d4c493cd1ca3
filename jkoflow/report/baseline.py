"""The baselines that every flow should beat: a Gaussian with the moments of the test rows, or independent columns."""

from __future__ import annotations

import math

import numpy as np
import torch

from jkoflow.report.results import Results


def gaussian_nll(run: Results) -> float | None:
    """Computes the NLL of a Gaussian with the moments of the test rows, in nats on standardised columns.

    For a conditional flow it is the Gaussian's NLL of the rows given their context. None if the moments are degenerate.
    """
    dim, count = run.flow.dim, run.flow.dim + run.flow.context_dim
    if len(run.data) <= 2 * count:
        return None
    z = run.flow.standardized(run.data.to(run.flow.standardize.mean))[0].double()
    context = None if run.context is None else run.context.double()
    if context is not None and run.flow.context_links is not None:
        context = run.flow.context_links(context)[0]
    joint = z if context is None else torch.cat([z, context], 1)
    covariance = torch.cov(joint.T).reshape(count, count)
    sign, log_det = torch.linalg.slogdet(covariance)
    # of the rows given their context: the determinant of the joint covariance over that of the context's
    context_sign, context_log_det = torch.linalg.slogdet(covariance[dim:, dim:])
    value = 0.5 * (float(log_det - context_log_det) + dim * (1 + math.log(2 * math.pi)))
    return value if float(sign) > 0 and float(context_sign) > 0 and math.isfinite(value) else None


def independent_nll(run: Results) -> float | None:
    """Computes the NLL of a table's test rows if all columns were independent, in nats in the columns' own units.

    Of each column it takes the shares of the states, and a Gaussian for the numbers in each column's own transform; it
    knows nothing of conditioning variables. None if a row is impossible or a number constant.
    """
    assert run.table is not None
    random, total = np.random.default_rng(0), 0.0
    for name, codec in zip(run.table.features, run.table.schema.codecs, strict=True):
        if codec is None:  # a function of the others, which says nothing new
            continue
        values = run.columns[name]
        coded = codec.encode(values, np.clip(random.random(len(values)), 1e-9, 1 - 1e-9))
        if (coded.states < 0).any():
            return None
        counts = np.bincount(coded.states)
        seen = counts[counts > 0]
        total -= float((seen * np.log(seen / len(values))).sum() + coded.log_weights.sum()) / len(values)
        if not codec.numeric:
            continue
        regular = coded.numbers[coded.states == 0]
        spread = float(regular.std()) if len(regular) > 1 else 0.0
        if spread == 0:
            return None
        z = np.where(coded.states == 0, (coded.numbers - regular.mean()) / spread, coded.numbers)
        scales = np.where(coded.states == 0, math.log(spread), 0.0)
        total += float((0.5 * z**2 + 0.5 * math.log(2 * math.pi) + scales).mean())
    return total if math.isfinite(total) else None
