"""The report of a finished run, one self-contained HTML page: the flow, its quality and the course of the training.

Two runs have a page that shows them side by side.
"""

from __future__ import annotations

from pathlib import Path

from jkoflow.checkpoint import write_atomically
from jkoflow.errors import UserError
from jkoflow.report import comparison_page
from jkoflow.report.document import render
from jkoflow.report.results import read_results
from jkoflow.training.run_directory import REPORT_FILE

COMPARISON_FILE = "comparison.html"


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Writes RUN/report.html: one page with its pictures inside, that needs no network, and no script to be read.

    Arguments:
        run_dir: The directory of a finished run, as `jkoflow.train` leaves it.
        out: The page's file instead.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: If a file of the run is missing or damaged, or two of them disagree.
        ImportError: If matplotlib is missing.
        OSError: If the page cannot be written.

    Example:
        >>> write_report("runs/gasturbine")  # doctest: +SKIP
        PosixPath('runs/gasturbine/report.html')
    """
    run = read_results(run_dir)
    path = run.path / REPORT_FILE if out is None else Path(out)
    write_atomically(path, render(run).encode())
    return path


def write_comparison(first: str | Path, second: str | Path, out: str | Path | None = None) -> Path:
    """Writes a page of two runs side by side: what differs in settings and data, and how the same test rows fare.

    Arguments:
        first: The directory of a finished run.
        second: That of another.
        out: The page's file; None means comparison.html in the directory of the first.

    Returns:
        The path of the page.

    Raises:
        UserError: If both are the same run.
        CheckpointError: If a file of a run is missing or damaged, or two of them disagree.
        ImportError: If matplotlib is missing.
        OSError: If the page cannot be written.

    Example:
        >>> write_comparison("runs/first", "runs/second")  # doctest: +SKIP
        PosixPath('runs/first/comparison.html')
    """
    if Path(first).resolve() == Path(second).resolve():
        raise UserError(f"{first} and {second} are the same run; give two different ones, or one for its own report")
    runs = read_results(first), read_results(second)
    path = runs[0].path / COMPARISON_FILE if out is None else Path(out)
    write_atomically(path, comparison_page.render(*runs).encode())
    return path
