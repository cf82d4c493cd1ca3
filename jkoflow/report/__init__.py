"""The report of a finished run, one self-contained HTML page: the flow, its quality and the course of the training."""

from __future__ import annotations

from pathlib import Path

from jkoflow.checkpoint import write_atomically
from jkoflow.report.document import render
from jkoflow.report.results import read_results
from jkoflow.training.run_directory import REPORT_FILE


def write_report(run_dir: str | Path) -> Path:
    """Writes RUN/report.html: one page with its pictures inside, that needs no network and no script.

    Arguments:
        run_dir: The directory of a finished run, as `jkoflow.train` leaves it.

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
    path = run.path / REPORT_FILE
    write_atomically(path, render(run).encode())
    return path
