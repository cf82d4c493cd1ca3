"""The sections of a report that show a table's columns, each by its kind and in the user's units."""

from __future__ import annotations

import torch

from jkoflow.report import page, probes
from jkoflow.report.column_views import ColumnView, column_views, table_samples
from jkoflow.report.results import Results


def table_pictures(run: Results) -> list[str]:
    """Returns the sections that show the flow of a table."""
    assert run.table is not None
    noise = _noise(run) if run.has_numbers else []  # a flow that carries rows to NaN is refused here
    drawn = table_samples(run.table, run.columns)
    views = column_views(run.table, run.columns, drawn)
    counts = len(next(iter(run.columns.values()))), len(next(iter(drawn.values())))
    sections = []
    if views:
        sections.append(page.section("Data and samples, column by column", _columns(views, counts, run.given)))
    if len(views) > 1:
        sections.append(page.section("Data and samples, pair by pair", _pairs(views)))
    return [*sections, *noise]


def _columns(views: list[ColumnView], counts: tuple[int, int], given: tuple[str, ...]) -> str:
    from jkoflow.report import table_figures

    shown = min(len(views), probes.MAX_COLUMNS)
    which = "All columns" if shown == len(views) else f"The {shown} columns of {len(views)} that fit worst"
    parts = [f"{which}: {counts[0]:,} test rows and {counts[1]:,} samples, in the columns' own units."]
    if given:
        parts.append(f"Each sample is drawn given {', '.join(given)} of a test row.")
    forms = {view.form for view in views}
    if "levels" in forms or "counts" in forms:
        parts.append("Bars are shares of the rows.")
    if "numbers" in forms:
        parts.append("Histograms are clipped to robust quantiles of the data.")
    if any(view.labels for view in views if view.form == "numbers"):
        parts.append(
            "Bars beside a histogram are the shares of repeated and of missing values; the histogram is that of the "
            "others alone."
        )
    if forms != {"levels"}:
        parts.append("KS is the largest gap between the two cumulative distributions.")
    if "levels" in forms:
        parts.append("TV is the total variation, half the sum of the differences between shares.")
    parts.append("Chance alone exceeds the second number in one column of twenty.")
    return page.figure(
        table_figures.columns_figure(views),
        "Bars and histograms of test data and of samples, one panel per column.",
        " ".join(parts),
    )


def _pairs(views: list[ColumnView]) -> str:
    from jkoflow.report import table_pairs

    return page.figure(
        table_pairs.pairs_figure(views),
        "Pairs of columns as maps of counts and as histograms for every level: test data above, samples below.",
        "Pairs of columns that tell most about each other (mutual information): test data above, as many samples "
        "below, in the same colours. Numbers are counted in logarithmic colours. Beside levels, every line is the "
        "histogram of one level. Rows with a missing value in the pair's numbers are left out.",
    )


def _noise(run: Results) -> list[str]:
    from jkoflow.report import figures

    stages = probes.flow_stages(run.flow, run.data, [len(run.flow.blocks)], context=run.context)
    norms = ", and the norm |z| the chi distribution" if run.flow.dim > 1 else ""
    assert run.table is not None
    discrete = [run.table.features[place] for place in run.table.schema.discrete]
    sides = " Discrete parts have masses and no noise side" if discrete else ""
    note = (
        f"{sides} ({_listed(discrete)}); where a number is missing or repeated, noise stands in for it."
        if sides
        else ""
    )
    drawing = page.figure(
        figures.noise_figure(torch.from_numpy(stages[0]), run.features),
        "Histograms of the test rows' numbers carried to the noise side, with the standard Gaussian.",
        f"Numbers of the test rows carried to the noise side: each should follow the standard Gaussian{norms}. KS is "
        f"the largest gap between the two cumulative distributions.{note}",
    )
    return [page.section("Noise", drawing)]


def _listed(names: list[str], most: int = 8) -> str:
    """Returns the first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
