"""The page of a report, from its head to its last section."""

from __future__ import annotations

from html import escape
from pathlib import Path

from jkoflow.report import page, sections, tables
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
        sections.training(run),
        page.section("Results", tables.results(run)),
        page.section("Load the model", load_snippet(run.path, run.flow)),
        '<div class="columns">',
        page.section("Configuration", page.pair_table(page.flat(run.config))),
        page.section("Environment", tables.environment(run)),
        "</div>",
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · jkoflow report</title>\n<style>{page.STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_headline(run, title)}\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def _headline(run: Results, title: str) -> str:
    m = run.metrics
    tiles = (
        (
            "Test NLL",
            f"{page.number(m['test_nll'], 3)} <small>± {page.number(m['test_nll_stderr'], 3)}</small>",
            "nats per row, standardised columns",
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
    cells = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}</dd><dd class="note">{note}</dd></div>'
        for name, value, note in tiles
    )
    lede = (
        f"A flow of {page.count(len(run.flow.blocks), 'block')}, trained on {page.count(m['n_train'], 'row')} of "
        f"{page.count(run.flow.dim, 'column')}{_given(run)}; drawn with {page.count(len(run.data), 'test row')}."
    )
    return (
        f'<header><p class="eyebrow">jkoflow report</p><h1>{escape(title)}</h1><p>{lede}</p>'
        f'<dl class="tiles">{cells}</dl></header>'
    )


def _given(run: Results) -> str:
    return f" given {', '.join(run.context_features)}" if run.context_features else ""
