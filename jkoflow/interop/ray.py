"""Densities in Ray Data: a class for `ray.data.Dataset.map_batches` that loads the model once in each worker.

Ray itself is not imported here: what it maps over batches is any class or function.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jkoflow.data import DataError
from jkoflow.frames import is_pandas
from jkoflow.optional import require
from jkoflow.table_flow import Model, load


class Score:
    """Adds the log-density of every row to batches of rows.

    ``map_batches(Score(path), ...)`` scores in Ray's tasks: the model is not pickled, but read in each process when it
    is first needed there. ``map_batches(Score, fn_constructor_args=(path,), concurrency=2, ...)`` does so in actors.
    The batch formats "numpy", "pandas" and "pyarrow" all do.

    A row's log-density does not depend on the others of its batch, except with a tolerance, which each batch keeps by
    itself; ``num_steps`` with the grids of `jkoflow.JKOFlow.grids_for` keeps one without that.

    Arguments:
        path: The model's file, or the directory of its run, where the workers can read it.
        tol: Largest error of a row's log-density in nats, see `jkoflow.JKOFlow.log_prob`.
        num_steps: Runge-Kutta steps per block, or grids, in place of ``tol``; None means the calibrated number.
        columns: Names of the model's columns in its order, for a model that was trained on rows without names. Others
            find theirs by name; a batch of one array (N, d), as from `ray.data.from_numpy`, needs none.
        output: Name of the column that is added.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/flow.safetensors"
        >>> jkoflow.JKOFlow(2, [jkoflow.Block(jkoflow.MLPVelocity(2))]).save(path)
        >>> batch = {"a": torch.zeros(3).numpy(), "b": torch.ones(3).numpy(), "id": torch.arange(3).numpy()}
        >>> list(Score(path, columns=["a", "b"])(batch))
        ['a', 'b', 'id', 'log_prob']
    """

    def __init__(
        self,
        path: str | Path,
        tol: float | None = None,
        num_steps: Any = None,
        columns: Sequence[str] | None = None,
        output: str = "log_prob",
    ) -> None:
        self.path, self.tol, self.num_steps = str(path), tol, num_steps
        self.columns = None if columns is None else list(columns)
        self.output = output
        self._model: Model | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without the model, which each process reads by itself."""
        return {**self.__dict__, "_model": None}

    def __call__(self, batch: Any) -> Any:
        """Returns a batch of columns by name, a DataFrame or a table of pyarrow with the log-densities beside its rows.

        Raises:
            jkoflow.data.DataError: If the batch has no rows that fit the model, or a column of that name.
            jkoflow.checkpoint.CheckpointError: If the model cannot be read.
        """
        names = batch.column_names if hasattr(batch, "column_names") else list(batch)
        if self.output in names:
            raise DataError(f"the batch has a column {self.output!r} already; give another output")
        if self._model is None:
            self._model = load(self.path)
        with torch.no_grad():
            found = self._model.log_prob(self._rows(batch), num_steps=self.num_steps, tol=self.tol).numpy()
        if isinstance(batch, dict):
            return {**batch, self.output: found}
        if is_pandas(batch):
            return batch.assign(**{self.output: found})
        return batch.append_column(self.output, require("pyarrow", "tables of pyarrow").array(found))

    def _rows(self, batch: Any) -> Any:
        """Returns the rows of a batch in a form that ``log_prob`` takes."""
        if not isinstance(batch, dict):
            if self.columns is None:
                return batch
            return np.array((batch if is_pandas(batch) else batch.to_pandas())[self.columns], order="C")
        if len(batch) == 1 and (array := np.asarray(next(iter(batch.values())))).ndim == 2:
            return array
        if self.columns is not None:
            return np.stack([np.asarray(batch[name]) for name in self.columns], 1)
        return require("pandas", "batches of columns").DataFrame(batch)
