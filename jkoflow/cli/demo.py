"""The command demo, which shows in a few minutes what there is."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from jkoflow.cli import json_lines, settings, training_run
from jkoflow.data import load_dataset, place
from jkoflow.training.run_directory import RunDirectory

NAMES = ("rose", "gasturbine")
"""A density in two dimensions, which can be seen whole, and a real table."""


def demo(
    out: Annotated[Path, typer.Option(help="Directory for the two runs; made if it is not there.")] = Path("runs/demo"),
    seconds: Annotated[float, typer.Option(min=1, help="Seconds for both trainings together.")] = 150.0,
    as_json: json_lines.Json = False,
) -> None:
    """Train on two built-in data sets and write a report of each.

    rose is a density in two dimensions, gasturbine a table of eleven sensor readings. Nothing is downloaded.
    """
    training_run.require_for_run()
    for name in NAMES:
        RunDirectory(out / name).check_free("open its report.html", "choose another --out")
    runs = []
    for name in NAMES:
        chosen = settings.Given({"time_budget": seconds / len(NAMES)})
        run, _, config = settings.for_start(name, out / name, chosen)
        again = f"jkoflow train --resume {shlex.quote(str(run))}"
        dataset = load_dataset(name, config.seed)
        runs.append(training_run.train_and_report(dataset, place(name), config, run, resume=False, again=again))
        print()
    print("Reports, to open in a browser:")
    for found in runs:
        print(f"  {found['report'].resolve()}")
    print("With a table of your own: jkoflow train FILE --out runs/first")
    json_lines.result("demo", runs=runs)
