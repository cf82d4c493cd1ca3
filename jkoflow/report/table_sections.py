"""The sections of a report that show a table's columns, each by its kind and in the user's units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from jkoflow.report import page, probes
from jkoflow.report.column_views import ColumnView, column_views, table_samples
from jkoflow.report.pair_choice import Pair
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
        sections.append(page.section("Data and samples, pair by pair", pairs(views)))
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


def pairs(views: list[ColumnView], sources: Sequence[str] = ("test data", "samples")) -> str:
    """Returns the figure of the pairs of columns that are most worth a look, and why they were chosen.

    Arguments:
        views: The columns, two at least.
        sources: What their values are: data, and samples of one flow or two.
    """
    from jkoflow.report import pair_choice, table_pairs

    choice = pair_choice.choose_pairs(views)
    parts = [
        f"{sources[0].capitalize()} above, as many samples below, in the same colours"
        + (", logarithmic for counts of numbers." if any(view.form != "levels" for view in views) else "."),
        "Over each pair stands what it was chosen by, in nats beyond chance: the mismatch (Jensen-Shannon divergence) "
        f"of data and samples, which chance alone brings to {page.number(choice.chance)} in the worst of all pairs in "
        "one case of twenty; or the dependence (mutual information) of the two columns among the data.",
    ]
    if all(pair.quantity == "dependence" for pair in choice.pairs):
        parts.append("No pair's mismatch is beyond chance.")
    if choice.looked_at < len(views):
        parts.append(f"Pairs of the {choice.looked_at} columns of {len(views)} that fit worst were looked at.")
    if any(view.form == "levels" for view in views):
        parts.append("Beside levels, every line is the histogram of one level.")
    if any(np.isnan(values).any() for view in views for values in view.numbers):
        parts.append("Rows with a missing value in the pair's numbers are left out.")
    return page.figure(
        table_pairs.pairs_figure(views, choice.pairs, sources),
        f"Maps of pairs of columns, from top to bottom {', '.join(sources)}: " + _told(views, choice.pairs) + ".",
        " ".join(parts),
    )


def _told(views: list[ColumnView], pairs: Sequence[Pair]) -> str:
    """Returns the pairs and what each was chosen by."""
    return "; ".join(f"{views[pair.second].name} against {views[pair.first].name}, {pair.said()}" for pair in pairs)


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
