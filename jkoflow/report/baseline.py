"""The baseline that every flow should beat: a Gaussian with the moments of the test rows."""

from __future__ import annotations

import math

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
