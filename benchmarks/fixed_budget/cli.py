"""The commands of `benchmarks/compare.py`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fixed_budget import driver, page, record, settings, sweep, tune
from fixed_budget.methods import METHODS
from fixed_budget.table import markdown


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs the command."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="run what is missing in a directory")
    run.set_defaults(command=_run)
    run.add_argument("--seeds", type=int, default=3)
    search = commands.add_parser("tune", help="search every method's learning rate at a budget")
    search.set_defaults(command=_tune)
    search.add_argument("--write", action="store_true", help=f"keep the rates in {settings.RATES.name}")
    for command, folder in ((run, "runs/comparison"), (search, "runs/tune")):
        command.add_argument("data", nargs="+", help="built-in names or files")
        command.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
        command.add_argument("--budget", type=float, default=60.0, help="seconds of training for each run")
        command.add_argument("--threads", type=int, default=1, help="threads of each run")
        command.add_argument("--jobs", type=int, default=1, help="runs at once, each pinned to cores of its own")
        command.add_argument("--out", type=Path, default=Path(folder), help="directory of the records")
    sweep_ = commands.add_parser(
        "sweep", help="train the default configuration and its variations; write docs/sweep.md"
    )
    sweep_.set_defaults(command=_sweep)
    sweep_.add_argument("data", nargs="*", help="built-in names or files; none writes the page again")
    sweep_.add_argument("--labels", nargs="+", default=[], help="variations; all of sweep.toml without")
    sweep_.add_argument("--seeds", type=int, default=1)
    sweep_.add_argument("--budget", type=float, default=40.0, help="seconds of training for each run")
    sweep_.add_argument("--jobs", type=int, default=1, help="runs at once, each pinned to a core of its own")
    sweep_.add_argument("--out", type=Path, default=Path("runs/sweep"), help="directory of the records")
    show = commands.add_parser("table", help="collect directories' records; write docs/comparison.md and its figures")
    show.set_defaults(command=_table)
    show.add_argument("folders", type=Path, nargs="*", help=f"without one: {page.RECORD.name} as it is")
    show.add_argument("--print", action="store_true", help="print the tables instead and write nothing")
    commands.add_parser("one", help="a single run, described on standard input; used by run").set_defaults(command=_one)
    return parser


def _run(options: argparse.Namespace) -> None:
    wanted = list(driver.jobs(options.data, options.methods, options.seeds, options.budget, options.threads))
    failures = driver.run_missing(wanted, options.out, options.jobs)
    if failures:
        raise SystemExit("\n".join(["some runs failed; the same command tries them again:", *failures]))


def _tune(options: argparse.Namespace) -> None:
    found = tune.tune(options.data, options.methods, options.budget, options.threads, options.out, options.jobs)
    print(json.dumps(found, indent=1))
    if options.write:
        tune.keep(found)


def _sweep(options: argparse.Namespace) -> None:
    if options.data:
        sweep.run(options.data, options.seeds, options.budget, options.out, options.jobs, options.labels)
        sweep.keep(options.out)
    sweep.write_page()


def _table(options: argparse.Namespace) -> None:
    results = record.collect(*options.folders) if options.folders else record.read(page.RECORD)
    if options.print:
        print(markdown(results), end="")
        return
    if options.folders:
        record.write(results, page.RECORD)
    page.write(results)


def _one(options: argparse.Namespace) -> None:
    driver.run_one(json.load(sys.stdin))
