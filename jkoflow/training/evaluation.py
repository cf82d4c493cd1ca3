"""The evaluation of a finished flow: its calibration and the figures that are reported of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jkoflow import metrics, two_sample
from jkoflow.data import Dataset
from jkoflow.data.seen import quantiles_of_columns
from jkoflow.discrete import NotContractiveError
from jkoflow.flow import JKOFlow
from jkoflow.left_out import RowNames
from jkoflow.mapped import select
from jkoflow.metrics import ShareOut, by_itself
from jkoflow.ops.grid import Fixed, Grid
from jkoflow.training import overfit
from jkoflow.training.plan import FEWEST_ROWS, Budget, EvaluationRows, evaluation_work, plan_evaluation

INVERSION_ROWS = 10_000
"""Largest number of test rows that the inversion error is measured on."""

CALIBRATION_SHARE = 0.3
"""Share of the time left that the first two grids of the calibration may take; fewer validation rows are taken then."""

OVERFIT_ROWS = 2000
"""Largest number of training rows, and of validation rows, whose NLLs are compared."""

TWO_SAMPLE_ROWS = 1000
"""Largest number of test rows, and of samples, between which distances are computed."""

EXACT_ROWS = 500
"""Largest number of test rows that the exact inverse's error is measured on."""


def evaluate(
    flow: JKOFlow,
    data: Dataset,
    val_rows: int,
    budget: Budget | None = None,
    tell: Callable[[str], None] = lambda text: None,
    doubt: Callable[[str], None] | None = None,
    share_out: ShareOut = by_itself,
) -> dict[str, Any]:
    """Calibrates a flow on validation rows and measures it on the test rows.

    Arguments:
        flow: The flow; its ``eval_num_steps`` is set to the number at which the NLLs of the validation and of the test
            rows stand still.
        data: The data; rows go to the flow's device.
        val_rows: Validation rows to calibrate on, at most.
        budget: A limit of time: the grid is refined, and rows are evaluated, as far as there is time for them.
        tell: Function that is called with one line of text for each thing that there was no time for.
        doubt: Function that is called with one line of text if the NLL is not step-converged; ``tell`` if None.
        share_out: What computes likelihoods and distances of rows.

    Returns:
        NLLs in nats (``test_nll`` and ``val_nll`` on standardised columns), step-converged unless
        ``test_nll_converged`` is False, and the inversion error in standardised units, that of the exact inverse too
        (inf if the steps are too coarse for it). Distances between test rows and as many samples, on standardised
        columns and joined with the context of a conditional flow, come with what chance alone exceeds in one case of
        twenty; they are missing if there are too few test rows. Rows without a finite density are left out of
        everything, with a `jkoflow.data.DataWarning`; ``rows_left_out`` counts them by the part of the data. ``seen``
        holds the `jkoflow.data.seen.quantiles` of all columns of the training rows, those of the context last.
        ``overfit_gap`` is what `jkoflow.training.overfit.measured` finds.
    """
    device = flow.standardize.mean.device
    pace = Pace(flow, data, val_rows, budget, share_out)
    val, val_context = spread(data.val, data.val_context, pace.rows.val, device)
    if len(val) < min(val_rows, len(data.val)):
        tell(f"the time budget lets {len(val)} validation rows be calibrated on; raise time_budget to take more")
    val_names = _names("validation rows", len(data.val), len(val))
    calibration = metrics.calibrate(
        flow, val, context=val_context, affordable=pace.can_calibrate_on, names=val_names, share_out=share_out
    )
    rows = pace.plan_the_rest(calibration.num_steps)
    if rows.test < len(data.test):
        tell(
            f"the time budget lets {rows.test} of {len(data.test)} test rows be scored; raise time_budget to score more"
        )
    test, test_context = spread(data.test, data.test_context, rows.test, device)
    test_names = _names("test rows", len(data.test), len(test))
    nll = metrics.step_converged_nll(
        flow, test, context=test_context, affordable=pace.can_score_on, names=test_names, share_out=share_out
    )
    flow.eval_num_steps = max(nll.num_steps, calibration.num_steps)
    for result, names in sorted(
        ((nll, test_names), (calibration, val_names)), key=lambda pair: not pair[0].out_of_time
    ):
        if not result.converged and math.isfinite(result.nll):  # a warning has told if there is no row to take
            (doubt or tell)(_not_converged(flow.eval_num_steps, result, names))
            break
    if nll.left_out:
        finite = torch.isfinite(metrics.row_nll(flow, test, nll.num_steps, test_context, share_out))
        test, test_context = select(test, finite), None if test_context is None else select(test_context, finite)
    inversion, exact = _inversion_errors(flow, test, test_context, rows, share_out)
    few = pace.rows_to_compare(max(nll.num_steps, calibration.num_steps))
    train_part, val_part = spread(data.train, data.train_context, few, device), spread(val, val_context, few, device)
    results = {
        "test_nll": nll.nll - metrics.mean_log_scale(flow, test),
        "test_nll_data_units": nll.nll,
        "test_nll_stderr": nll.stderr,
        "test_bits_per_dim": metrics.bits_per_dim(nll.nll, data.dim),
        "test_bits_per_dim_stderr": metrics.bits_per_dim(nll.stderr, data.dim),
        "test_nll_converged": nll.converged and calibration.converged,
        "val_nll": calibration.nll - metrics.mean_log_scale(flow, val),
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
        "n_val": data.val.shape[0],
        "n_test": len(test),
        "rows_left_out": {"val": calibration.left_out, "test": nll.left_out},
        "seen": _seen(data),
        **overfit.measured(flow, train_part, val_part, share_out),
    }
    compared, context = spread(test, test_context, 2 * rows.samples, device)
    if len(compared) < 4:
        return results
    return results | two_sample_distances(*compared_samples(flow, compared, context, rows.samples))


def _seen(data: Dataset) -> dict[str, list[float]]:
    tables = [(data.features, data.train)]
    if data.train_context is not None:
        tables.append((data.context_features, data.train_context))
    return {
        name: values
        for names, rows in tables
        for name, values in zip(names, quantiles_of_columns(rows.detach().cpu()), strict=True)
    }


def _inversion_errors(
    flow: JKOFlow, test: Tensor, context: Tensor | None, rows: EvaluationRows, share_out: ShareOut
) -> tuple[metrics.InversionError, metrics.InversionError]:
    """Returns the errors of the inverse and of the exact inverse on test rows (N, d); infinite without rows."""
    nowhere = metrics.InversionError(math.inf, math.inf, math.nan)
    if len(test) == 0:
        return nowhere, nowhere
    device = test.device
    inverted, conditions = spread(test, context, rows.inversion, device)
    inversion = metrics.inversion_error(flow, inverted, context=conditions, share_out=share_out)
    try:
        inverted, conditions = spread(test, context, rows.exact, device)
        return inversion, metrics.inversion_error(flow, inverted, exact=True, context=conditions)
    except NotContractiveError:
        return inversion, nowhere


def _names(name: str, count: int, taken: int) -> RowNames:
    """Returns the name of rows and the numbers of those that `spread` takes."""
    return RowNames(name, metrics.spread_numbers(count, taken).tolist())


def _not_converged(num_steps: int | None, nll: metrics.ConvergedNLL, names: RowNames) -> str:
    """Returns the text that tells that an NLL still moves at a number of steps, why, and what to do."""
    fix = "train with guard = true, more num_steps or a smaller learning_rate"
    if nll.out_of_time:
        fix = "raise time_budget, or pass log_prob more num_steps"
    elif nll.decisive is not None:
        row = f"row {names.number(nll.decisive)} of the {names.name} (counting from 0)"
        fix = f"{row} alone makes most of the change: drop it if it is far outside the data, else {fix}"
    time = ", and there was no time for more" if nll.out_of_time else ""
    return f"the NLL still moves at {num_steps} Runge-Kutta steps per block{time}: do not trust it; {fix}"


def wanted_rows(data: Dataset, val_rows: int) -> EvaluationRows:
    """Returns the numbers of rows that the parts of an evaluation look at when time is not short."""
    available = len(data.test)
    parts = (available, INVERSION_ROWS, EXACT_ROWS, TWO_SAMPLE_ROWS)
    return EvaluationRows(min(val_rows, len(data.val)), *(min(rows, available) for rows in parts))


class Pace:
    """Decides what an evaluation has time for, by how fast it has gone so far.

    Arguments:
        flow: The flow.
        data: The data.
        val_rows: Validation rows to calibrate on, at most.
        budget: The limit of time; there is time for everything if None.
        share_out: What computes likelihoods of rows.
    """

    def __init__(
        self,
        flow: JKOFlow,
        data: Dataset,
        val_rows: int,
        budget: Budget | None,
        share_out: ShareOut = by_itself,
    ) -> None:
        self.rows = wanted_rows(data, val_rows)
        """Numbers of rows that the parts of the evaluation look at."""
        self._budget = budget
        if budget is None:
            return
        grid = metrics.training_grid(flow)
        few, context = spread(data.val, data.val_context, FEWEST_ROWS, flow.standardize.mean.device)
        began = budget.left()
        metrics.row_nll(flow, few, grid, context, share_out)
        self._row_step = (began - budget.left()) / (len(few) * grid.cost)
        # the first two grids of the calibration are taken in any case
        certain = self._row_step * self.rows.val * (grid.cost + grid.refined().cost)
        share = CALIBRATION_SHARE * max(budget.left_with_slack(), 0.0) / max(certain, 1e-12)
        if share < 1:
            self.rows = self.rows._replace(val=min(self.rows.val, max(int(share * self.rows.val), FEWEST_ROWS)))

    def can_calibrate_on(self, grid: Grid) -> bool:
        """Tells whether there is time to calibrate on a finer grid and to do the least that follows on that grid."""
        if self._budget is None:
            return True
        least = self.rows.scaled(0.0).calibrated()
        work = self.rows.val * grid.cost + evaluation_work(grid, least)
        return self._row_step * work <= self._budget.left_with_slack()

    def plan_the_rest(self, num_steps: int) -> EvaluationRows:
        """Returns the numbers of rows that there is time for after a calibration that has ended at ``num_steps``."""
        if self._budget is not None:
            left = self._budget.left()
            slack = self._budget.left_with_slack() - left
            self.rows = plan_evaluation(self.rows, Fixed(num_steps), left, slack, self._row_step)
        return self.rows

    def rows_to_compare(self, num_steps: int) -> int:
        """Returns how many training rows, and as many validation rows, half the time left is enough to score."""
        if self._budget is None:
            return OVERFIT_ROWS
        seconds_of_two = 2 * self._row_step * Fixed(num_steps).cost
        affordable = 0.5 * max(self._budget.left_with_slack(), 0.0) / max(seconds_of_two, 1e-12)
        return int(min(OVERFIT_ROWS, max(FEWEST_ROWS, affordable)))

    def can_score_on(self, grid: Grid) -> bool:
        """Tells whether there is time to score the test rows on a finer grid and to do the rest of the evaluation."""
        if self._budget is None:
            return True
        rest = self.rows.scaled(0.0)._replace(val=0, test=0)
        work = self.rows.test * grid.cost + evaluation_work(grid, rest)
        return self._row_step * work <= self._budget.left_with_slack()


def two_sample_distances(real: Tensor, drawn: Tensor) -> dict[str, float]:
    """Returns MMDs and the energy distance between two samples (n, d), by name, with standard errors and thresholds.

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
    """Returns rows of the data and equally many samples of the flow to compare, at most ``limit`` of each.

    Arguments:
        flow: The flow.
        rows: Data in their own units, with shape (N, d).
        context: Conditioning variables of the rows, with shape (N, c). Samples are drawn under the context of every
            second row, and the other rows stand for the data: no context is used for both.
        limit: Largest number of rows.
        seed: Seed of the samples.

    Returns:
        Rows and samples on standardised columns, with shape (n, d), or (n, d + c) with the context beside them.
    """
    generator = torch.Generator().manual_seed(seed)
    generator = generator if rows.device.type == "cpu" else torch.Generator(rows.device).manual_seed(seed)
    if context is None:
        real = metrics.spread_rows(rows, limit)
        drawn = flow.rsample(len(real), generator=generator)
        return flow.standardized(real)[0], flow.standardized(drawn)[0]
    count = min(len(rows) // 2, limit)
    real, drawn_context = metrics.spread_rows(rows[::2], count), metrics.spread_rows(context[1::2], count)
    drawn = flow.rsample(count, drawn_context, generator=generator)
    contexts = (metrics.spread_rows(context[::2], count), drawn_context)
    real_context, drawn_context = (flow.standardized_context(c, count) for c in contexts)
    assert real_context is not None
    assert drawn_context is not None
    return (
        torch.cat([flow.standardized(real)[0], real_context], 1),
        torch.cat([flow.standardized(drawn)[0], drawn_context], 1),
    )


def spread(rows: Tensor, context: Tensor | None, limit: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Returns at most ``limit`` evenly spread rows and their context, on a device."""
    conditions = None if context is None else metrics.spread_rows(context, limit).to(device)
    return metrics.spread_rows(rows, limit).to(device), conditions
