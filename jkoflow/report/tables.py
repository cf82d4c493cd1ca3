"""The tables of a report as HTML: results, blocks, rounds, guard events, published figures, environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.columns.codec import missing
from jkoflow.report import page, probes
from jkoflow.report.baseline import gaussian_nll, independent_nll
from jkoflow.report.results import Results
from jkoflow.training import overfit
from jkoflow.two_sample import FIXED_BANDWIDTH

_CONVERGED = {
    True: "Runge-Kutta steps per block; twice as many move the NLL by less than 0.001 nats",
    False: "Runge-Kutta steps per block; the NLL has NOT converged, do not rely on it",
}

_ACTIONS = {
    "raised": "went back to the last good parameters, took more steps",
    "doubled": "went back to the last good parameters, doubled the steps",
    "lowered": "took fewer steps: they are enough again",
    "halved": "halved the steps: half as many are enough again",
    "damped": "halved the velocity that the block was warm-started with",
    "reset": "started the block afresh",
    "stopped": "ended the block with its best parameters",
}

_LEVELS = 6
"""Levels of a column that are named."""

_DISTANCES = {
    "mmd_median": "MMD², median bandwidth",
    "mmd_fixed": f"MMD², bandwidth {FIXED_BANDWIDTH:g}",
    "energy_distance": "Energy distance",
}


def results(run: Results) -> str:
    """Returns the table of everything that was measured."""
    m = run.metrics
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    rows: list[tuple[str, str, str]] = [
        (
            "Test NLL",
            f"{page.number(m['test_nll'], 4)} ± {page.number(m['test_nll_stderr'], 4)}",
            f"nats per row, {scale(run)}",
        )
    ]
    if run.has_numbers:
        rows.append(("Test NLL", page.number(m["test_nll_data_units"], 4), "nats per row, the data's own units"))
    rows += [
        *_bits(m),
        *_baseline(run),
        *(_of_the_flow(m) if run.has_numbers else []),
        ("Parameters", f"{parameters:,}", ""),
        ("Training rows", f"{m['n_train']:,}", page.count(len(run.names), "column")),
        *([("Test rows", f"{m['n_test']:,}", "scored")] if "n_test" in m else []),
        *_left_out(m),
        ("Training time", page.duration(m["train_seconds"]), ""),
        ("Seed", str(m["seed"]), ""),
    ]
    return page.grid_table(("", "value", "unit"), rows)


def scale(run: Results) -> str:
    """Returns what the NLL that a run is judged by is measured in."""
    if run.table is None:
        return "standardised columns"
    if not run.has_numbers:
        return "masses of the columns"
    return ("masses and " if run.table.schema.discrete else "") + "numbers on the flow's scale"


def columns(run: Results) -> str:
    """Returns the table of the columns' kinds: why they were taken for them, and what was done."""
    head = ("column", "kind", "why", "what was done", "log-density is a", "test rows")
    rows = [
        (c["name"], c["kind"], c["reason"], c["treatment"], c["measure"], _range(_values(run, c["name"])))
        for c in run.metrics["columns"]
    ]
    return page.grid_table(head, rows)


def _values(run: Results, name: str) -> NDArray[Any]:
    """Returns the values of a column in the test rows, with shape (n,)."""
    if run.table is not None:
        return run.columns[name]
    if name in run.features:
        return run.data[:, run.features.index(name)].numpy()
    assert run.context is not None
    return run.context[:, run.context_features.index(name)].numpy()


def _range(values: NDArray[Any]) -> str:
    """Returns the text of the least and the largest of values, or of the first levels."""
    seen = values[~missing(values)]
    if len(seen) == 0:
        return "none"
    if seen.dtype.kind == "M":
        return f"{_moment(seen.min())} to {_moment(seen.max())}"
    if seen.dtype.kind in "fiu":
        low, high = (
            page.number(float(v)) if v % 1 else f"{int(v):,}".replace("-", "−") for v in (seen.min(), seen.max())
        )
        return f"{low} to {high}"
    levels = sorted({str(value).lower() if isinstance(value, bool) else str(value) for value in seen.tolist()})
    more = f" and {len(levels) - _LEVELS} more" if len(levels) > _LEVELS else ""
    return ", ".join(levels[:_LEVELS]) + more


def _moment(value: np.datetime64) -> str:
    return str(value.astype("datetime64[s]")).removesuffix("T00:00:00").replace("T", " ")


def _baseline(run: Results) -> list[tuple[str, str, str]]:
    if run.table is not None:
        value = independent_nll(run)
        parts = "shares of states, and a Gaussian for every number," if run.has_numbers else "shares of states"
        what = f"nats per row, the data's own units; {parts} of these test rows"
        return [] if value is None else [("Independent columns for comparison", page.number(value, 4), what)]
    value = gaussian_nll(run)
    what = "nats per row, standardised; mean and covariance of these test rows"
    given = " and their context" if run.context_features else ""
    return [] if value is None else [("Gaussian for comparison", page.number(value, 4), what + given)]


def _of_the_flow(m: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the rows about the blocks."""
    return [
        (
            "Evaluated with",
            page.number(m["eval_num_steps"]),
            _CONVERGED[bool(m.get("test_nll_converged", True))],
        ),
        (
            "Inversion error, mean",
            page.number(m["inversion_error_mean"]),
            "distance between x and inverse(forward(x)), standardised",
        ),
        ("Inversion error, largest", page.number(m["inversion_error_max"]), "same"),
        *_exact_inversion(m),
        *_distances(m),
        ("Total movement", page.number(sum(m["movements"])), "standardised units, summed over the blocks"),
        ("Blocks", page.number(m["blocks"]), ""),
        *_overfit(m),
        ("Guard events", page.number(m["guard_events"]), "times the integrator guard stepped in"),
    ]


def _left_out(m: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the rows about data that were left out; none if all were taken."""
    names = {"train": "Training", "val": "Validation", "test": "Test"}
    return [
        (
            f"{names[part]} rows left out",
            f"{count:,}",
            "too far outside the training data, or the blocks overflow there",
        )
        for part, count in m.get("rows_left_out", {}).items()
        if count
    ]


def _bits(m: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if "test_bits_per_dim" not in m:
        return []
    value, error = (page.number(m[name], 4) for name in ("test_bits_per_dim", "test_bits_per_dim_stderr"))
    return [("Test NLL", f"{value} ± {error}", "bits per column, the data's own units")]


def _distances(m: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the rows of distances between test rows and samples; none for runs of versions without them."""
    return [
        (
            label,
            f"{page.number(m[name])} ± {page.number(m[f'{name}_stderr'])}",
            f"{m['two_sample_rows']:,} test rows against samples; chance alone exceeds "
            f"{page.number(m[f'{name}_threshold'])} in one case of twenty",
        )
        for name, label in _DISTANCES.items()
        if name in m
    ]


def _overfit(m: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the row of the gap between training and validation rows; none for runs of versions without it."""
    gap, stderr = m.get("overfit_gap"), m.get("overfit_gap_stderr")
    if gap is None or stderr is None:
        return []
    what = f"nats by which validation rows are less likely than training rows; {overfit.in_short(m)}"
    return [("Learned by heart", f"{page.number(gap, 3)} ± {page.number(stderr, 3)}", what)]


def _exact_inversion(m: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the rows of the exact inverse's error; none for runs of versions that did not measure it."""
    if "inversion_error_exact_mean" not in m:
        return []
    mean, largest = m["inversion_error_exact_mean"], m["inversion_error_exact_max"]
    if mean is None:
        return [("Exact inverse", "none", "a Runge-Kutta step is too coarse to be inverted")]
    return [("Inversion error, exact inverse", page.number(mean), f"mean; {page.number(largest)} at most")]


def published(run: Results) -> str:
    """Returns the table of an experiment's NLL beside the published ones, and a note on whether they are comparable."""
    m = run.metrics
    error = page.number(m["reproduced_nll_stderr"], 3)
    rows = [("this run", f"{page.number(m['reproduced_nll'], 3)} ± {error}", "step-converged, test rows")]
    rows += [(figure["model"], page.number(figure["nll"], 2), figure["source"]) for figure in m["published"]]
    verdict = "The figures compare" if m["paper_nll_comparable"] else "The figures do not compare one to one"
    note = f"<p>{escape(verdict)}: {escape(m['paper_remark'])}.</p>"
    return page.grid_table(("model", f"test NLL, {m['paper_nll_units']}", "source"), rows) + note


def blocks(run: Results) -> str:
    """Returns the table of the flow's blocks, and of the rounds in which all of them were trained together."""
    kept = [record["round"] for record in run.metrics.get("rounds", []) if record["kept"]]
    together = probes.fine_tuning_rounds(run.history)
    # the rounds that the flow is from: the last one that trained block by block, and the one after it if there was one
    number = next((number for number in reversed(kept) if number not in together), 0)
    ends = {r["block"]: r for r in run.history if r["event"] == "block" and probes.place_of(r)[0] == number}
    tuned = [r for r in run.history if r["event"] == "block" and probes.place_of(r)[0] in together & set(kept)]
    head = ("block", "step size h", "steps", "iterations", "movement", "validation NLL (nats)", "time")
    rows = [
        _block_row(k + 1, block.jko_step, block.num_steps, movement, ends.get(k, {}))
        for k, (block, movement) in enumerate(zip(run.flow.stack, run.metrics["movements"], strict=True))
    ]
    rows += [_block_row("all, together", math.inf, r.get("num_steps"), r.get("movement"), r) for r in tuned]
    return page.grid_table(head, rows)


def _block_row(
    name: int | str, jko_step: float, steps: int | None, movement: float | None, end: Mapping[str, Any]
) -> tuple[object, ...]:
    """Returns the row of a block, from the flow and from the record of the block's training if there is one."""
    return (
        name,
        "∞ (free)" if math.isinf(jko_step) else page.number(jko_step),
        page.number(steps),
        page.number(end.get("iterations")),
        page.number(movement),
        page.number(end.get("val_nll"), 3),
        page.duration(end["seconds"]) if "seconds" in end else "–",
    )


def guard_events(run: Results) -> str:
    """Returns the table of the moments at which the integrator guard stepped in."""
    together = probes.fine_tuning_rounds(run.history)
    head = ("round", "block", "iteration", "NLL gap (nats)", "round-trip error", "steps now", "action")
    keys = ("iteration", "nll_difference", "round_trip", "num_steps")
    rows = [
        (
            probes.place_of(r)[0] + 1,
            "all" if probes.place_of(r)[0] in together else probes.place_of(r)[1] + 1,
            *(page.number(r.get(key)) for key in keys),
            _action(r),
        )
        for r in probes.guard_records(run.history)
    ]
    return page.grid_table(head, rows)


def _action(record: Mapping[str, Any]) -> str:
    action = str(record.get("action", "–"))
    return _ACTIONS.get(action, action)


def rounds(run: Results) -> str:
    """Returns the table of the rounds of training."""
    head = ("round", "kind", "blocks", "spread of movements", "validation NLL (nats)", "result", "time")
    rows = [
        (
            record["round"] + 1,
            record["kind"],
            record["blocks"],
            page.number(record["movement_spread"]),
            page.number(record["val_nll"], 4),
            "kept" if record["kept"] else "undone",
            page.duration(record["seconds"]),
        )
        for record in run.metrics["rounds"]
    ]
    return page.grid_table(head, rows)


def environment(run: Results) -> str:
    """Returns the table of the software and the machine that the run began in."""
    rows = page.flat(run.environment)
    # A kernel that can be used has no reason why not.
    return page.pair_table(
        (k, "available" if k in ("kernels.cpu", "kernels.cuda") and v == "–" else v) for k, v in rows
    )
