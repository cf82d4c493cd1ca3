"""The sections of a report about how sure a model is, and what the conditioning variables do."""

from __future__ import annotations

from html import escape

from jkoflow.report import page, probes
from jkoflow.report.results import Results


def calibrated(run: Results) -> str:
    """Returns the section about the coverage of the model's regions, and the calibration of its columns."""
    from jkoflow.report import conditional_figures
    from jkoflow.report.calibration import calibration, verdict

    found = calibration(run)
    rows = page.count(len(found.regions), "test row")
    compared = f"{found.samples:,} samples" + (" given its context" if run.given else " of the model")
    body = "".join(f"<p>{escape(sentence)}</p>" for sentence in verdict(found))
    body += page.figure(
        conditional_figures.coverage_figure(found),
        "Share of test rows in regions of highest density against the share that each should hold, with a band for "
        "chance.",
        f"The region of highest density that should hold a share is the smallest one that does; {rows}, each placed "
        f"among {compared} by log-density. Below the diagonal the model is too sure of itself, above it too unsure. "
        "Chance alone leaves the grey band, anywhere, in one case of twenty.",
    )
    if found.transforms:
        shown = min(len(found.transforms), probes.MAX_COLUMNS)
        which = "" if shown == len(found.transforms) else f" The {shown} least uniform are shown."
        body += page.figure(
            conditional_figures.transforms_figure(found),
            "Histograms of where the observed values lie among the model's samples given their context, one panel per "
            "column.",
            f"Where each observed value lies among {compared} (probability integral transform, PIT), column by column: "
            "flat if the model is calibrated, high at both ends if it is too sure, high in the middle if too unsure, "
            f"sloping if it predicts too low or too high. KS is the distance from uniform.{which} Chance alone takes a "
            "bar out of the grey band in one case of twenty.",
        )
    return page.section("Calibration", body)


def answered(run: Results) -> list[str]:
    """Returns the section about what the conditioning variables do; none for an unconditional model."""
    if not run.given:
        return []
    from jkoflow.report import conditional_figures
    from jkoflow.report.what_if import MOST_ASKED, MOST_SHOWN, what_if

    answers = what_if(run)
    if not answers:
        return []
    parts = [
        "What the model says of the columns if one conditioning variable takes its 10 % quantile, its median or its 90 "
        "% quantile among the test rows (levels: the most frequent ones), while all others stay at their median or "
        "most frequent level. Heights are shares of the samples; change is the largest distance of two of the "
        "cumulative distributions, or the total variation of levels. Such contexts need not occur among the rows."
    ]
    if len(answers) < len(run.given):
        known = f"the first {MOST_ASKED} of {len(run.given)}" if len(run.given) > MOST_ASKED else str(len(run.given))
        parts.append(f"Shown are {len(answers)} conditioning variables of {known}, those of most effect.")
    columns = len(answers[0].views)
    if columns > MOST_SHOWN:
        parts.append(f"The {MOST_SHOWN} columns of {columns} that change most are shown.")
    drawing = page.figure(
        conditional_figures.what_if_figure(answers),
        f"Histograms of the columns for a few values each of {', '.join(answer.name for answer in answers)}.",
        " ".join(parts),
    )
    return [page.section("What if", drawing)]
