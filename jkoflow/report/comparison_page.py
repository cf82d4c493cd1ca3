"""The page that shows two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from jkoflow.report import comparison, draws, page, probes
from jkoflow.report.column_views import ColumnView
from jkoflow.report.comparison import Paired
from jkoflow.report.results import Results
from jkoflow.report.table_sections import pairs

_MEASURES = (
    ("test_nll_data_units", "Test NLL, nats per row, the data's own units"),
    ("test_nll", "Test NLL, nats per row, the run's own scale"),
    ("test_nll_stderr", "Standard error of the test NLL"),
    ("val_nll", "Validation NLL, the run's own scale"),
    ("overfit_gap", "Learned by heart, nats"),
    ("eval_num_steps", "Runge-Kutta steps per block"),
    ("inversion_error_mean", "Inversion error, mean"),
    ("inversion_error_max", "Inversion error, largest"),
    ("mmd_median", "MMD² of test rows and samples, median bandwidth"),
    ("energy_distance", "Energy distance of test rows and samples"),
    ("blocks", "Blocks"),
    ("n_train", "Training rows"),
    ("n_test", "Test rows"),
    ("guard_events", "Guard events"),
    ("train_seconds", "Training time, seconds"),
)

Pair = tuple[Results, Results]


def render(first: Results, second: Results) -> str:
    """Returns the page of two runs as HTML; the same runs give the same bytes."""
    runs, names = (first, second), comparison.labels(first, second)
    found = comparison.paired(first, second)
    body = [
        page.section("The same test rows under both", _paired(found, names)),
        page.section("Data", _data(runs, names)),
        page.section("Settings that differ", _settings(runs, names)),
        page.section("Measures", _measures(runs, names)),
        page.section("Training", _curves(runs, names)),
        page.section("Data and samples", _samples(runs, names)),
    ]
    return page.whole(f"{names[0]} and {names[1]} · jkoflow report", _header(found, runs, names) + page.HINT, body)


def verdict(found: Paired, names: Sequence[str]) -> str:
    """Returns which run makes the common test rows more likely, if either can be said to."""
    size = abs(found.mean) / found.stderr if found.stderr > 0 else np.inf * abs(found.mean)
    told = f"{page.number(abs(found.mean), 4)} ± {page.number(found.stderr, 4)} nats a row"
    if found.mean == 0 and found.stderr == 0:
        return "Both make every common test row equally likely"
    if size < 2:
        return (
            f"Neither is better as far as {len(found.differences):,} common test rows can tell: they differ by {told}"
        )
    better = names[1] if found.mean > 0 else names[0]
    return f"{better} makes {len(found.differences):,} common test rows more likely, by {told}"


def _header(found: Paired | str, runs: Pair, names: Sequence[str]) -> str:
    said = f"Not compared row by row: {found}." if isinstance(found, str) else f"{verdict(found, names)}."
    tiles = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{page.number(run.metrics["test_nll_data_units"], 3)} <small>± '
        f"{page.number(run.metrics['test_nll_stderr'], 3)}</small></dd>"
        f'<dd class="note">test NLL, nats per row, own units; trained in {page.duration(run.metrics["train_seconds"])}'
        "</dd></div>"
        for run, name in zip(runs, names, strict=True)
    )
    return (
        f'<header><p class="eyebrow">jkoflow report, two runs</p><h1>{escape(names[0])} and {escape(names[1])}</h1>'
        f'<p>{escape(said)}</p><dl class="tiles">{tiles}</dl></header>'
    )


def _paired(found: Paired | str, names: Sequence[str]) -> str:
    if isinstance(found, str):
        return f"<p>{escape(f'Not compared row by row: {found}.')}</p>"
    from jkoflow.report import comparison_figures

    better = float(np.mean(found.differences > 0))
    out = f" {page.count(found.left_out, 'row')} without a finite density are left out." if found.left_out else ""
    drawing = page.figure(
        comparison_figures.differences_figure(found),
        f"Histogram of the differences of log_prob of the common test rows, {names[1]} less {names[0]}.",
        f"log_prob under {names[1]} less that under {names[0]}, row by row: to the right of 0 the second makes a row "
        f"more likely. Clipped to robust quantiles. Rows that both runs hold out were in the training of neither.{out}",
    )
    table = page.pair_table(
        [
            ("Common test rows", f"{len(found.differences):,}"),
            ("Mean difference of log_prob", f"{page.number(found.mean, 4)} nats, {names[1]} less {names[0]}"),
            ("Standard error, paired", f"{page.number(found.stderr, 4)} nats"),
            ("Rows more likely under the second", f"{100 * better:.1f} %"),
        ]
    )
    return f"<p>{escape(verdict(found, names))}.</p>" + table + drawing


def _data(runs: Pair, names: Sequence[str]) -> str:
    rows = []
    for what, values in (
        ("source", [str(run.config.get("data", "–")) for run in runs]),
        ("columns", [", ".join(run.names[:12]) + (" …" if len(run.names) > 12 else "") for run in runs]),
        ("given", [", ".join(run.given) or "–" for run in runs]),
        ("fingerprint", [str(run.metrics.get("fingerprint", "–"))[:12] for run in runs]),
    ):
        rows.append((what, *values))
    return f"<p>{escape(comparison.data_in_common(*runs))}</p>" + page.grid_table(("what", *names), rows)


def _settings(runs: Pair, names: Sequence[str]) -> str:
    differing, same = comparison.settings_that_differ(*runs)
    if not differing:
        return f"<p>None: all {same} settings are the same.</p>"
    note = f"<p>{page.count(same, 'setting')} more {'is' if same == 1 else 'are'} the same in both.</p>"
    return page.grid_table(("setting", *names), differing) + note


def _measures(runs: Pair, names: Sequence[str]) -> str:
    one, other = (comparison.scalars(run.metrics) for run in runs)
    head = ("measure", *names, "difference")
    apart = set() if comparison.is_same_data(*runs) else {"test_nll", "val_nll"}  # on scales of their own
    if set(runs[0].names) != set(runs[1].names):
        apart.add("test_nll_data_units")
    table = page.grid_table(
        head, [_line(key, label, one, other, apart) for key, label in _MEASURES if key in one or key in other]
    )
    rest = [key for key in dict.fromkeys((*one, *other)) if key not in dict(_MEASURES)]
    return table + page.details(
        "Further metrics", page.grid_table(head, [_line(key, key, one, other, apart) for key in rest])
    )


def _line(key: str, label: str, one: dict[str, float], other: dict[str, float], apart: set[str]) -> tuple[str, ...]:
    """Returns the row of a measure; those that are apart have no difference."""
    both = key in one and key in other and key not in apart
    cells = [page.significant(values[key]) if key in values else "–" for values in (one, other)]
    return (label, *cells, page.significant(other[key] - one[key]) if both else "–")


def _curves(runs: Pair, names: Sequence[str]) -> str:
    from jkoflow.report import comparison_figures

    curves = {name: comparison.validation_curve(run.history) for run, name in zip(runs, names, strict=True)}
    without = [name for name, (seconds, _, _) in curves.items() if len(seconds) == 0]
    note = f" No times are kept of {' and '.join(without)}." if without else ""
    if len(without) == 2:
        return "<p>Neither run has kept the times of its validations.</p>"
    return page.figure(
        comparison_figures.curves_figure(curves),
        f"Validation NLL of {names[0]} and {names[1]} over seconds of training.",
        "Validation NLL over the seconds of the training, each on the run's own validation rows and scale; lines end "
        f"with each block. The seconds are those of the machine that each ran on.{note}",
    )


def _samples(runs: Pair, names: Sequence[str]) -> str:
    if runs[0].table is None and runs[1].table is None and runs[0].flow.dim == runs[1].flow.dim <= 2:
        return "".join(_flow(run, name) for run, name in zip(runs, names, strict=True))
    why = _other_columns(*runs)
    if why:
        return f"<p>Samples are not drawn beside each other: {escape(why)}.</p>"
    views = _views(*runs)
    table = _distances(views, names)
    return (pairs(views[0], ("test data", *names)) if len(views[0]) > 1 else "") + table


def _flow(run: Results, name: str) -> str:
    """Returns the picture of a flow of one or two columns."""
    from jkoflow.report import figures

    if run.flow.dim == 2:
        drawing = figures.density_figure(run.flow, run.data, run.features, context=run.context)
        what = "Test data, samples and log-density (nats)"
    else:
        drawing = figures.curve_figure(run.flow, run.data, run.features[0], context=run.context)
        what = "Density over histograms of test data and samples, and quantiles on their way to the noise"
    return page.figure(drawing, f"{what} of the run {name}.", f"{name}: {what[0].lower()}{what[1:]}.")


def _other_columns(first: Results, second: Results) -> str:
    if first.names != second.names:
        return "the columns differ"
    if (first.table is None) != (second.table is None):
        return "one takes the columns for plain numbers"
    if first.table is not None and second.table is not None:
        kinds = [[type(codec) for codec in run.table.schema.codecs] for run in (first, second) if run.table is not None]
        other = [name for name, a, b in zip(first.names, *kinds, strict=True) if a is not b]
        return f"{other[0]} is taken for another kind of column" if other else ""
    return ""


def _views(first: Results, second: Results) -> tuple[list[ColumnView], list[ColumnView]]:
    """Returns views of data and of both runs' samples; and, beside the data, of the second's samples alone.

    The samples are drawn given common test rows, or if there are none given each run's own.
    """
    places = comparison.common_rows(first, second)
    if len(places[0]) < 50:
        count = min(len(next(iter(draws.held_out(run)[0].values()))) for run in (first, second))
        places = (np.arange(count),) * 2
    samples, data = [], {}
    for run, rows in zip((first, second), places, strict=True):
        rows = rows[: min(draws.affordable(run), probes.MAX_POINTS)]
        columns, given = draws.held_out(run)
        data = data or {name: values[rows] for name, values in columns.items()}
        samples.append(draws.draw(run, len(rows), {name: values[rows] for name, values in given.items()})[0])
    return draws.views_of(first, data, *samples), draws.views_of(first, data, samples[1])


def _distances(views: tuple[list[ColumnView], list[ColumnView]], names: Sequence[str]) -> str:
    rows = [
        (one.name, one.measure, f"{one.distance:.3f}", f"{other.distance:.3f}", f"{one.chance:.3f}")
        for one, other in zip(*views, strict=True)
    ]
    table = page.grid_table(("column", "distance", *names, "chance"), rows)
    note = (
        "<p>Distance of each column's samples from the test rows; chance alone exceeds the last number in one column "
        "of twenty.</p>"
    )
    return note + (page.details(page.count(len(rows), "column"), table) if len(rows) > probes.MAX_COLUMNS else table)
