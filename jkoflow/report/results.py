"""The results of a finished run, read from its directory and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from jkoflow.checkpoint import CheckpointError
from jkoflow.flow import MODEL_FILE, JKOFlow
from jkoflow.training.run_directory import METRICS_FILE, PREVIEW_FILE, RunDirectory


@dataclass(frozen=True)
class Results:
    """The parts of a finished run, as read from its directory."""

    path: Path
    flow: JKOFlow
    metrics: dict[str, Any]
    """Metrics, at least those under `jkoflow.training.run_files.COUNTS` and `jkoflow.training.run_files.MEASURES`."""
    history: list[dict[str, Any]]
    config: dict[str, Any]
    """The table of config.toml."""
    environment: dict[str, Any]
    data: Tensor
    """Test rows in their own units, with shape (n, d)."""
    features: tuple[str, ...]
    context: Tensor | None
    """Conditioning variables of these rows, with shape (n, c); None for an unconditional flow."""
    context_features: tuple[str, ...]


def read_results(run_dir: str | Path) -> Results:
    """Reads a finished run.

    Arguments:
        run_dir: The directory of the run.

    Returns:
        The parts of the run, checked against each other.

    Raises:
        CheckpointError: If a file of the run is missing or damaged, or two of them disagree.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such run directory; train one with: jkoflow train DATA --out {path}")
    run = RunDirectory(path)
    metrics, flow, preview = run.metrics(), run.flow().requires_grad_(False), run.preview()
    results = Results(
        path=path,
        flow=flow,
        metrics=metrics,
        history=run.history(),
        config=run.table(),
        environment=run.environment(),
        data=preview.data,
        features=preview.features,
        context=preview.context,
        context_features=preview.context_features,
    )
    for name, what, found, expected in (
        (METRICS_FILE, "columns", metrics["dim"], flow.dim),
        (PREVIEW_FILE, "columns", preview.data.shape[1], flow.dim),
        (PREVIEW_FILE, "context columns", len(preview.context_features), flow.context_dim),
        (METRICS_FILE, "movements", len(metrics["movements"]), len(flow.blocks)),
    ):
        if found != expected:
            of = "blocks" if what == "movements" else what
            raise CheckpointError(
                f"{path / name} has {found} {what}, but {MODEL_FILE} beside it has {expected} {of}: the files are of "
                "different runs; restore them, or train the run again"
            )
    if len(preview.data) < 2:
        raise CheckpointError(
            f"{path / PREVIEW_FILE} has a single test row, and a report is drawn from at least 2; train on more rows"
        )
    return results
