"""The page of a report, from its head to its last section."""

from __future__ import annotations

from html import escape
from pathlib import Path

from jkoflow.report import conditional_sections, page, sections, tables
from jkoflow.report.results import Results
from jkoflow.report.snippet import load_snippet


def render(run: Results) -> str:
    """Returns the page as HTML; the same run gives the same bytes."""
    source = str(run.config.get("data", run.path.name))
    title = str(run.metrics.get("experiment") or Path(source).stem or source)
    body = [
        *sections.images(run),
        *sections.published(run),
        *sections.pictures(run),
        conditional_sections.calibrated(run),
        *conditional_sections.answered(run),
        *sections.columns(run),
        sections.training(run),
        page.section("Results", tables.results(run)),
        page.section("Load the model", load_snippet(run.path, run.model)),
        '<div class="columns">',
        page.section("Configuration", page.pair_table(page.flat(run.config))),
        page.section("Environment", tables.environment(run)),
        "</div>",
    ]
    return page.whole(f"{title} · jkoflow report", _headline(run, title) + page.HINT, body)


def _headline(run: Results, title: str) -> str:
    m = run.metrics
    tiles = (
        (
            "Test NLL",
            f"{page.number(m['test_nll'], 3)} <small>± {page.number(m['test_nll_stderr'], 3)}</small>",
            f"nats per row, {tables.scale(run)}",
        ),
        (
            "Converged at" if m.get("test_nll_converged", True) else "Not converged at",
            page.number(m["eval_num_steps"]),
            "Runge-Kutta steps per block",
        ),
        (
            "Inversion error",
            page.number(m["inversion_error_mean"]),
            f"mean; {page.number(m['inversion_error_max'])} at most",
        ),
        ("Training", page.duration(m["train_seconds"]), page.count(m["guard_events"], "guard event")),
    )
    if not run.has_numbers:  # no block carries anything
        tiles = (tiles[0], ("Training", page.duration(m["train_seconds"]), "masses of discrete columns"))
    cells = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}</dd><dd class="note">{note}</dd></div>'
        for name, value, note in tiles
    )
    shown = len(next(iter(run.columns.values()), run.data))
    lede = (
        f"{_model(run)}, trained on {page.count(m['n_train'], 'row')} of {page.count(len(run.names), 'column')}"
        f"{_given(run)}; drawn with {page.count(shown, 'test row')}."
    )
    return (
        f'<header><p class="eyebrow">jkoflow report</p><h1>{escape(title)}</h1><p>{lede}</p>'
        f'<dl class="tiles">{cells}</dl></header>'
    )


def _model(run: Results) -> str:
    blocks = f"flow of {page.count(len(run.flow.blocks), 'block')}"
    if run.table is None:
        return f"A {blocks}"
    discrete = len(run.table.schema.discrete)
    masses = f"The masses of {page.count(discrete, 'discrete column')}"
    if not run.has_numbers:
        return masses
    numbers = page.count(len(run.table.schema.numeric), "number")
    return f"{masses}, and a {blocks} for {numbers} given these" if discrete else f"A {blocks} for {numbers}"


def _given(run: Results) -> str:
    return f" given {', '.join(run.given)}" if run.given else ""
