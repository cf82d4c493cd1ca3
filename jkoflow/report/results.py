"""The results of a finished run, read from its directory and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from jkoflow.checkpoint import CheckpointError
from jkoflow.flow import MODEL_FILE, JKOFlow
from jkoflow.table_flow import Model, TableFlow
from jkoflow.training.run_directory import METRICS_FILE, PREVIEW_FILE, RunDirectory


@dataclass(frozen=True)
class Results:
    """The parts of a finished run, as read from its directory."""

    path: Path
    model: Model
    metrics: dict[str, Any]
    """Metrics, at least those under `jkoflow.training.run_files.COUNTS` and `jkoflow.training.run_files.MEASURES`."""
    history: list[dict[str, Any]]
    config: dict[str, Any]
    """The table of config.toml."""
    environment: dict[str, Any]
    data: Tensor
    """Test rows with shape (n, d), in their own units; those of a table as its flow of numbers takes them."""
    features: tuple[str, ...]
    """Names of their columns."""
    context: Tensor | None
    """What the flow is given for these rows, with shape (n, c); None for an unconditional flow."""
    context_features: tuple[str, ...]
    columns: Mapping[str, NDArray[Any]]
    """Test rows of a table as the user has them: columns and conditioning variables by name; empty for other runs."""

    @property
    def table(self) -> TableFlow | None:
        """Returns the flow of a table; None if all columns are plain numbers."""
        return self.model if isinstance(self.model, TableFlow) else None

    @property
    def flow(self) -> JKOFlow:
        """Returns the flow of numbers, that of a table's numbers if the run is one of a table."""
        return self.model.flow if isinstance(self.model, TableFlow) else self.model

    @property
    def has_numbers(self) -> bool:
        """Tells whether there are numbers that the flow was trained on; a table of discrete columns has none."""
        return self.table is None or bool(self.table.schema.numeric)

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the columns that the model has a density of."""
        return self.features if self.table is None else self.table.features

    @property
    def given(self) -> tuple[str, ...]:
        """Returns the names of the conditioning variables."""
        return self.context_features if self.table is None else self.table.context_features


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
    metrics, model, preview = run.metrics(), run.model().requires_grad_(False), run.preview()
    results = Results(
        path=path,
        model=model,
        metrics=metrics,
        history=run.history(),
        config=run.table(),
        environment=run.environment(),
        data=preview.data,
        features=preview.features,
        context=preview.context,
        context_features=preview.context_features,
        columns=preview.columns or {},
    )
    flow = results.flow
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
    if results.table is not None and tuple(results.columns) != (*results.names, *results.given):
        raise CheckpointError(
            f"{path / PREVIEW_FILE} has not the columns of {MODEL_FILE} beside it: the files are of different runs; "
            "restore them, or train the run again"
        )
    rows = [len(preview.data), *(len(values) for values in results.columns.values())]
    if min(rows) < 2:
        raise CheckpointError(
            f"{path / PREVIEW_FILE} has a single test row, and a report is drawn from at least 2; train on more rows"
        )
    return results
