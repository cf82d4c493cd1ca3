"""The flow of a table: the masses of discrete parts, and a flow of the numbers given these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from jkoflow import checkpoint
from jkoflow.data.columns.codec import Array, Floats
from jkoflow.data.columns.schema import Coded, Schema
from jkoflow.data.table import Table
from jkoflow.distribution import no_distribution
from jkoflow.flow import JKOFlow
from jkoflow.frames import known_library, to_frame
from jkoflow.in_parts import InParts
from jkoflow.log_densities import pilot_of
from jkoflow.masses import Masses
from jkoflow.metrics import CHUNK
from jkoflow.ops.autocast import without_autocast
from jkoflow.ops.grid import Steps
from jkoflow.quadrature import quadrature
from jkoflow.restore import DTYPES
from jkoflow.saved import MODEL_FILE, Saved
from jkoflow.table_rows import GivenRows, columns_of, given_conditions, given_rows
from jkoflow.within import check_tolerance

BATCH = 256
"""Rows whose masses are computed at once."""


class TableFlow(Saved):
    r"""The density of rows whose columns have kinds: numbers, counts, categories, dates, repeated and missing values.

    .. math:: p(row) = P(s | c) \int_0^1 p(y(u) | s, c) \, w(u) \, du

    The states s of the discrete parts have exactly normalised masses, and a flow has the density of the numbers y given
    them. The weight w is that of the columns' own transforms. Only lattices of many values and the numbers that are
    absent beside a repeated value depend on the noise u; for all other rows there is no integral.

    The measure is counting measure for discrete parts and Lebesgue measure, in the column's own units, for numbers:
    `log_prob` is the logarithm of a mass, of a density, or of a mixture of both where values are repeated.

    Arguments:
        schema: Translation of the columns.
        flow: Flow of the numbers, whose context are the conditioning variables and the indicators of the states.
        masses: Masses of the states; None if no column has several.
        frames: Library of the data frames that samples are, one of `jkoflow.frames.LIBRARIES`; None for tensors, which
            needs columns of numbers.
        dtype: Type of the tensors of samples: that of the rows of the training, float32 or float64.

    Example:
        >>> rows = torch.stack([torch.randint(0, 3, (500,)).float(), torch.randn(500)], 1)
        >>> config = jkoflow.TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=5, batch_size=100)
        >>> flow = jkoflow.train(rows, config, columns={"x0": "category"})
        >>> flow.sample(3)[:, 0].frac()
        tensor([0., 0., 0.])
    """

    KIND, WHAT = "table-flow", "the flow of a table"

    def __init__(
        self,
        schema: Schema,
        flow: JKOFlow,
        masses: Masses | None,
        frames: str | None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.flow = flow
        self.masses = masses
        self.frames = frames
        self.dtype = dtype
        self.metrics: dict[str, Any] | None = None

    @property
    def converged(self) -> bool | None:
        """Returns whether the reported NLL is step-converged; None if the flow was never evaluated."""
        return None if self.metrics is None else self.metrics.get("test_nll_converged")

    @property
    def features(self) -> tuple[str, ...]:
        """Returns the names of the columns that the flow has a density of."""
        return self.schema.features

    @property
    def context_features(self) -> tuple[str, ...]:
        """Returns the names of the conditioning variables."""
        return self.schema.context_features

    distribution = transform = no_distribution

    def log_prob(
        self,
        x: Any,
        context: Any = None,
        num_steps: Steps | None = None,
        points: int | None = None,
        tol: float | None = None,
    ) -> Tensor:
        """Returns the log-densities of rows in nats, in the columns' own units.

        Arguments:
            x: Rows: a data frame, in which columns are found by name, or an array, tensor or list of shape (..., d)
                with the columns in the order of the training; one row may be (d,), or a Series labelled with the names.
            context: Conditioning variables of the rows, likewise, or one row for all; None if x has them, or without
                any.
            num_steps: Runge-Kutta steps per block, or a grid; None means the calibrated number.
            points: Points of noise to integrate over, for rows that need it; None means 16 for one column with noise
                and 64 for several.
            tol: Largest error of a row's log-density by the steps and by rounding, in nats, in place of ``num_steps``:
                the fewest steps that keep it are found, see `JKOFlow.log_prob`. What the points of noise are off by is
                not in it.

        Returns:
            Log-densities, float64, with shape (...), or (N,) for a data frame; -inf for impossible rows, such as an
            unknown category.

        Raises:
            jkoflow.data.DataError: If a column is missing, of another type, or holds missing values that the training
                did not have.
            ValueError: If ``tol`` is not a positive number, or given together with ``num_steps``.
        """
        return self._log_prob_and_error(x, context, num_steps, points, tol, False)[0]

    def log_prob_and_error(
        self,
        x: Any,
        context: Any = None,
        num_steps: Steps | None = None,
        points: int | None = None,
        tol: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns log-densities as `log_prob` does, and estimates of their errors by the steps and by rounding, (N,).

        They are those of `JKOFlow.log_prob_and_error`; 0 for rows that are impossible or have no number.
        """
        return self._log_prob_and_error(x, context, num_steps, points, tol, True)

    def _log_prob_and_error(
        self, x: Any, context: Any, num_steps: Steps | None, points: int | None, tol: float | None, every_error: bool
    ) -> tuple[Tensor, Tensor]:
        given = given_rows(self.schema, x, context)
        numbers = self._in_parts(given, num_steps, every_error, tol)
        values, errors = self._given_log_prob(given, numbers, points)
        if every_error:
            numbers.warn_if_beyond(errors)
        return values, errors

    def in_parts(self, x: Any, tol: float | None = None, every_error: bool = False) -> InParts:
        """Returns how to score rows that come in parts: on the same steps, or within a tolerance that is kept on x.

        Arguments:
            x: Rows with their conditioning variables that stand for all, as for `log_prob`; each of them is looked at.
            tol: Largest error of a row's log-density in nats.
            every_error: Whether to check every row and estimate its error.
        """
        return self._in_parts(given_rows(self.schema, x, None), None, every_error, tol)

    def log_prob_of_part(self, x: Any, numbers: InParts) -> tuple[Tensor, Tensor]:
        """Returns log-densities (n,) of a part of the rows, and estimates (n,) of their errors, 0 if not asked for."""
        return self._given_log_prob(given_rows(self.schema, x, None), numbers, None)

    def _in_parts(self, given: GivenRows, num_steps: Steps | None, every_error: bool, tol: float | None) -> InParts:
        numbers = InParts(self.flow, num_steps, every_error)
        if tol is None:
            return numbers
        check_tolerance(tol, num_steps)
        return numbers.within(*self._pilot(given.columns, given.conditions), tol)

    def _given_log_prob(self, given: GivenRows, numbers: InParts, points: int | None) -> tuple[Tensor, Tensor]:
        columns, conditions, axes = given
        parts = [
            self._log_prob(
                {name: values[begin : begin + CHUNK] for name, values in columns.items()},
                conditions[begin : begin + CHUNK],
                numbers,
                points,
            )
            for begin in range(0, len(conditions), CHUNK)
        ]
        nothing = torch.zeros(0, dtype=torch.float64)
        values, errors = (torch.cat(those) for those in zip((nothing, nothing), *parts, strict=True))
        return values.reshape(axes), errors.reshape(axes)

    def _pilot(self, columns: Mapping[str, Array], conditions: Floats) -> tuple[Tensor, Tensor | None]:
        """Returns the numbers of possible rows (M, k) that steps are sought on, and what the flow is conditional on."""
        rows = pilot_of(len(conditions), torch.device("cpu")).numpy()
        middle = np.full((len(rows), len(self.features)), 0.5)
        coded = self.schema.encode({name: values[rows] for name, values in columns.items()}, middle)
        possible = np.flatnonzero(np.isfinite(coded.log_weights)) if self.schema.numeric else np.zeros(0, np.int64)
        coded = _pick(coded, possible)
        return self._tensor(coded.numbers), self._context(coded.states, conditions[rows][possible])

    @without_autocast
    @torch.no_grad()
    def _log_prob(
        self, columns: Mapping[str, Array], conditions: Floats, numbers: InParts, points: int | None
    ) -> tuple[Tensor, Tensor]:
        count = len(conditions)
        middle = self.schema.encode(columns, np.full((count, len(self.features)), 0.5))
        found = self._states_log_prob(middle, conditions)
        errors = torch.zeros_like(found)
        possible = np.isfinite(middle.log_weights)
        if not self.schema.numeric:
            found += torch.from_numpy(middle.log_weights)
            return found, errors
        found[torch.from_numpy(~possible)] = -math.inf
        certain = np.flatnonzero(possible & ~middle.noisy)
        density, errors[certain] = self._numbers_log_prob(_pick(middle, certain), conditions[certain], numbers)
        found[certain] += density
        noisy = np.flatnonzero(possible & middle.noisy)
        if len(noisy):
            rows = {name: values[noisy] for name, values in columns.items()}
            density, errors[noisy] = self._integrate(rows, conditions[noisy], numbers, points)
            found[noisy] += density
        return found, errors

    def _integrate(
        self, rows: Mapping[str, Array], conditions: Floats, numbers: InParts, points: int | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the logarithm of the integral over the noise, for rows with conditions (N, c), and its error."""
        terms, errors = [], []
        for node, log_weight in zip(*quadrature(len(self.schema.noisy), points), strict=True):
            noise = np.full((len(conditions), len(self.features)), 0.5)
            noise[:, self.schema.noisy] = node
            coded = self.schema.encode(rows, noise)
            term, error = self._numbers_log_prob(coded, conditions, numbers)
            terms.append((term + float(log_weight)).numpy())
            errors.append(error.numpy())
        # numpy's sum does not depend, in its last bits, on the number of rows
        total = np.logaddexp.reduce(np.stack(terms), axis=0)
        with np.errstate(invalid="ignore"):
            parts = np.nan_to_num(np.exp(np.stack(terms) - total))  # of the integral, by which the errors count
        return torch.from_numpy(total), torch.from_numpy((parts * np.stack(errors)).sum(0))

    def _states_log_prob(self, coded: Coded, conditions: Floats) -> Tensor:
        if self.masses is None:
            return torch.zeros(len(conditions), dtype=torch.float64)
        states, count = torch.from_numpy(coded.states), len(conditions)
        spare = -count % BATCH  # PyTorch's products depend, in their last bits, on the number of rows
        states = torch.cat([states, states.new_zeros(spare, states.shape[1])]).to(self.flow.standardize.mean.device)
        given = self._tensor(np.concatenate([conditions, np.zeros((spare, conditions.shape[1]))]))
        batches = zip(states.split(BATCH), given.split(BATCH), strict=True)
        parts = [self.masses.log_prob(batch, c if c.shape[1] else None) for batch, c in batches]
        return torch.cat(parts).double().cpu()[:count] if parts else torch.zeros(0, dtype=torch.float64)

    def _numbers_log_prob(self, coded: Coded, conditions: Floats, numbers: InParts) -> tuple[Tensor, Tensor]:
        density, error = numbers.log_prob(self._tensor(coded.numbers), self._context(coded.states, conditions))
        return density.double().cpu() + torch.from_numpy(coded.log_weights), error.cpu()

    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Any = None,
        num_steps: Steps | None = None,
        generator: torch.Generator | None = None,
        exact: bool = False,
        tol: float | None = None,
    ) -> Any:
        """Draws n rows in the columns' own units and types.

        Arguments:
            n: Number of rows.
            context: Conditioning variables, one row for each sample or one for all, see `log_prob`.
            num_steps: Runge-Kutta steps per block, or a grid; None means the calibrated number.
            generator: Source of the noise.
            exact: Whether to invert the flow's map to rounding, see `JKOFlow.inverse`.
            tol: Error, in nats, that the log-density of a sample may have, in place of ``num_steps``, see
                `JKOFlow.sample_and_log_prob`.

        Returns:
            If the training was given a data frame or a file, a data frame of the same library with its columns; else a
            tensor of shape (n, d).
        """
        columns = self.sample_columns(n, context, num_steps, generator, exact, tol)
        if self.frames is not None:
            return to_frame(self.frames, columns)
        rows = np.stack([np.asarray(values, np.float64) for values in columns.values()], 1)
        return torch.from_numpy(rows).to(self.dtype)

    def sample_and_log_prob(
        self,
        n: int,
        context: Any = None,
        num_steps: Steps | None = None,
        generator: torch.Generator | None = None,
        exact: bool = False,
        tol: float | None = None,
    ) -> tuple[Any, Tensor]:
        """Draws n rows as `sample` does, and returns them with their log-densities as `log_prob` gives them, (n,)."""
        rows = self.sample(n, context, num_steps, generator, exact, tol)
        return rows, self.log_prob(rows, context, num_steps, tol=tol)

    @without_autocast
    @torch.no_grad()
    def sample_columns(
        self,
        n: int,
        context: Any = None,
        num_steps: Steps | None = None,
        generator: torch.Generator | None = None,
        exact: bool = False,
        tol: float | None = None,
    ) -> dict[str, Array]:
        """Draws n rows as `sample` does; returns columns (n,) by name."""
        conditions = given_conditions(self.schema, context, (n,))
        given = self._tensor(conditions) if conditions.shape[1] else None
        states = np.zeros((n, 0), np.int64)
        if self.masses is not None:
            states = self.masses.sample(n, given, generator).cpu().numpy()
        numbers = np.zeros((n, 0))
        if self.schema.numeric:
            drawn = self.flow.rsample(n, self._context(states, conditions), num_steps, generator, exact, tol=tol)
            numbers = drawn.double().cpu().numpy()
        return self.schema.decode(states, numbers)

    def _context(self, states: Array, conditions: Floats) -> Tensor | None:
        """Returns what the flow is conditional on, with shape (N, c + sum of levels)."""
        if self.flow.context_dim == 0:
            return None
        return self._tensor(np.concatenate([conditions, self.schema.indicators(states)], 1))

    def _tensor(self, rows: Floats) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self.flow.standardize.mean)

    def columns_of(self, table: Table, names: tuple[str, ...], source: str = "x") -> dict[str, Array]:
        """Returns some of the flow's columns of a table by name, see `jkoflow.table_rows.columns_of`."""
        return columns_of(self.schema, table, names, source)

    def describe(self) -> dict[str, Any]:
        """Returns the flow without its numbers, as JSON values; `from_description` builds it again."""
        return {
            "schema": self.schema.describe(),
            "masses": None if self.masses is None else self.masses.describe(),
            "flow": self.flow.describe(),
            "frames": self.frames,
            "dtype": str(self.dtype).removeprefix("torch."),
            "metrics": checkpoint.finite(self.metrics),
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Builds a flow from what `describe` returned; its numbers are still to be loaded.

        Raises:
            KeyError, TypeError, AttributeError, ValueError, RuntimeError: If something is missing or wrong.
        """
        schema, masses = Schema.from_description(description["schema"]), description["masses"]
        masses = None if masses is None else Masses.from_description(masses)
        flow = JKOFlow.from_description(description["flow"])
        frames = description["frames"]
        frames = {True: "pandas", False: None}.get(frames, frames)  # of earlier versions
        found = cls(schema, flow, masses, known_library(frames), DTYPES[description["dtype"]])
        found.metrics = description["metrics"]
        return found


Model = JKOFlow | TableFlow
"""What training returns: the flow itself where all columns are plain numbers."""


def load(path: str | Path) -> Model:
    """Reads a trained model of either kind, on the CPU, from its file or from a run directory.

    Raises:
        jkoflow.checkpoint.CheckpointError: If the file is missing, damaged or of an unknown version.

    Example:
        >>> load("runs/first").log_prob(pandas.read_csv("new.csv"))  # doctest: +SKIP
    """
    path = Path(path)
    path = path / MODEL_FILE if path.is_dir() else path
    return TableFlow.load(path) if checkpoint.kind_of(path) == TableFlow.KIND else JKOFlow.load(path)


def _pick(coded: Coded, rows: Array) -> Coded:
    return Coded(coded.states[rows], coded.numbers[rows], coded.log_weights[rows], coded.noisy[rows])
