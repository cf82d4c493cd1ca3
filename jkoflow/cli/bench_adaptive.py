"""The group "adaptive" of the command bench."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from jkoflow.bench.adaptive.measure import broken, measure
from jkoflow.bench.adaptive.settings import AdaptiveSettings
from jkoflow.bench.adaptive.table import HEADINGS, lines_of, markdown, notes
from jkoflow.bench.record import write_record
from jkoflow.cli import console, json_lines
from jkoflow.cli.bench_bars import BenchBars
from jkoflow.cli.settings import ConfigError

RECORD_FILE, TABLE_FILE = "adaptive.json", "adaptive.md"


def bench_adaptive(quick: bool, given: Mapping[str, Any], out: Path | None) -> None:
    """Measures the group and writes its record and its tables into a directory, if one is given."""
    try:
        settings = AdaptiveSettings.of(quick, **given)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    threads_before = torch.get_num_threads()
    try:
        with BenchBars(Console(), show_case) as progress:
            record = measure(settings, progress, lambda found: write_record(found, out, RECORD_FILE))
    finally:
        torch.set_num_threads(threads_before)
    if out is not None:
        (out / TABLE_FILE).write_text(markdown(record), encoding="utf-8")
        print(f"written: {out / RECORD_FILE}, {out / TABLE_FILE}")
    json_lines.result("bench", out=out, record=record)
    wrong = broken(record)
    for line in wrong:
        console.error(line)
    if wrong:
        raise typer.Exit(1)


def show_case(entry: dict[str, Any], screen: Console) -> None:
    """Prints the table of a case and its notes."""
    table = Table(title=entry["title"], title_justify="left")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if index else "left", no_wrap=index == 0)
    for line in lines_of(entry):
        table.add_row(*line)
    screen.print(table)
    for line in notes({"cases": [entry]}).splitlines():
        screen.print(line, markup=False, highlight=False, style="dim")
    screen.print()
