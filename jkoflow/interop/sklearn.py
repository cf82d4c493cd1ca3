"""A density estimator with scikit-learn's interface, in the place of `KernelDensity` or `GaussianMixture`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted, validate_data

from jkoflow.data import Dataset, TableData, TableOptions, as_table
from jkoflow.data.checks import default_features
from jkoflow.data.columns.numbers import Real as RealColumn
from jkoflow.data.columns.prepare import prepare, split_table
from jkoflow.data.splits import MIN_ROWS, split_order, to_float32
from jkoflow.data.table import Table
from jkoflow.frames import as_pandas, is_frame, library_of, to_frame
from jkoflow.table_flow import TableFlow
from jkoflow.training import TrainConfig, train
from jkoflow.training.progress import Silent

__all__ = ["JKODensity"]

ITERATIONS = (100, 2000)
"""Fewest and most iterations if none are told: one for each row, within these bounds."""


class JKODensity(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """A normalizing flow as an estimator of scikit-learn: exact log-densities, samples, and a map to Gaussian noise.

    Of the rows of `fit` a tenth chooses the parameters, by its likelihood, and the rest is trained on. With the same
    ``random_state`` the same rows give the same flow, unless the length is a ``time_budget``.

    Columns of numbers are real numbers, and log-densities are comparable with those of `KernelDensity` and
    `GaussianMixture`. In a data frame other columns are what they hold: text and true or false are categories, which
    have masses instead of densities; such a flow scores and samples, but cannot `transform`.

    Arrays go in and come out. After ``set_output(transform="pandas")`` or ``"polars"``, or with scikit-learn's global
    ``transform_output``, `transform`, `inverse_transform` and `sample` return data frames.

    Arguments:
        iterations: Iterations for each block; None means one for each row, at least 100 and at most 2000.
        time_budget: Seconds that `fit` may take, in place of ``iterations``; the flow then depends on the machine.
        hidden: Widths of the hidden layers; None means those of `jkoflow.TrainConfig`.
        max_blocks: Largest number of blocks; None means one, and under a time budget what its plan has.
        tol: Largest error of a row's log-density in nats, for which steps are sought with every call of
            `score_samples`; None means the steps that are right for the mean, with which a row does not depend on the
            others.
        columns: Kinds of columns by name, such as ``{"visits": "integer"}``, see
            `jkoflow.data.columns.override.KINDS`; ``"auto"`` finds the kinds of all columns as `jkoflow.train` does.
        config: All other settings, as a `jkoflow.TrainConfig`; what is given here takes their place.
        device: Where to train and to compute, such as ``"cuda"``; None means ``config.device``, the CPU by default.
        random_state: Seed of the split, of the first parameters and of the batches: an integer, or a generator of
            numpy; None means that every fit is another one.
        verbose: Whether to print how the training goes.

    Attributes:
        flow_: The trained `jkoflow.JKOFlow`, or `jkoflow.TableFlow` for columns that are no real numbers.
        history_: Records of the training, see ``return_history`` of `jkoflow.train`.
        n_features_in_: Number of columns.
        feature_names_in_: Names of the columns, if `fit` was given a data frame with names.

    References:
        | Normalizing flow neural networks by JKO scheme (Xu et al., 2022)
        | https://arxiv.org/abs/2212.14424

    Example:
        >>> rows = numpy.random.default_rng(0).normal(size=(300, 2))
        >>> density = JKODensity(iterations=20, hidden=(8,), random_state=0).fit(rows)
        >>> density.score_samples(rows[:5]).shape, density.sample(3, random_state=0).shape
        ((5,), (3, 2))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "iterations": [Interval(Integral, 1, None, closed="left"), None],
        "time_budget": [Interval(Real, 0, None, closed="neither"), None],
        "hidden": ["array-like", None],
        "max_blocks": [Interval(Integral, 1, None, closed="left"), None],
        "tol": [Interval(Real, 0, None, closed="neither"), None],
        "columns": [Mapping, StrOptions({"auto"}), None],
        "config": [TrainConfig, None],
        "device": [str, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }
    n_features_in_: int
    flow_: Any
    history_: list[dict[str, Any]]

    def __init__(
        self,
        *,
        iterations: int | None = None,
        time_budget: float | None = None,
        hidden: Sequence[int] | None = None,
        max_blocks: int | None = None,
        tol: float | None = None,
        columns: Mapping[str, str] | str | None = None,
        config: TrainConfig | None = None,
        device: str | None = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.iterations = iterations
        self.time_budget = time_budget
        self.hidden = hidden
        self.max_blocks = max_blocks
        self.tol = tol
        self.columns = columns
        self.config = config
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Trains the flow on rows.

        Arguments:
            X: Rows with shape (n, d), n at least 10: an array, nested lists or a data frame.
            y: Not used.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If the rows cannot be used or a parameter is wrong; the message tells the fix.
        """
        self._validate_params()
        self._is_table = self.columns is not None or not _holds_numbers(X)
        rows = self._validated(X, reset=True)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        data = self._table(X, seed) if self._is_table else self._numbers(rows, library_of(X), seed)
        count = len(data.train) if isinstance(data, Dataset) else len(data.states["train"])
        config = self._settings(seed, count)
        progress = Printed() if self.verbose else None
        flow, self.history_ = train(data, config, progress=progress, return_history=True)
        flow.metrics = None  # those of rows that have chosen the parameters
        self.flow_ = flow
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Returns the log-density of every row in nats, with shape (n,); -inf for what cannot be."""
        check_is_fitted(self)
        found = self.flow_.log_prob(self._validated(X), tol=self.tol)
        return found.double().cpu().numpy()

    def score(self, X: Any, y: Any = None) -> float:  # pyright: ignore[reportIncompatibleMethodOverride] (no-op there)
        """Returns the mean log-density of the rows, in nats.

        It is the mean, as that of `GaussianMixture`, so that numbers of folds of different sizes, and of data and
        parts of them, can be compared. `KernelDensity` has the sum, which is ``score_samples(X).sum()``.
        """
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draws rows, in the columns' own units.

        Arguments:
            n_samples: Number of rows n.
            random_state: Seed of the noise: an integer, or a generator of numpy, from whose state it is drawn; None
                means other rows with every call.

        Returns:
            An array (n, d), of objects if not all columns are numbers; or a data frame, see ``set_output``.
        """
        check_is_fitted(self)
        flow = self.flow_
        generator = torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))
        if isinstance(flow, TableFlow):
            return self._contained(list(flow.sample_columns(n_samples, generator=generator).values()))
        noise = torch.randn(n_samples, flow.dim, generator=generator)
        return self._contained(flow.carry(noise, inverse=True).double().cpu().numpy().T)

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Carries rows (n, d) to noise (n, d), which is distributed as a standard Gaussian if the rows are as in `fit`.

        Raises:
            ValueError: If the flow has columns that are no real numbers.
        """
        check_is_fitted(self)
        rows = self._validated(X)
        return self._map().carry(rows).double().cpu().numpy()

    def inverse_transform(self, X: Any) -> Any:
        """Carries noise (n, d) to rows (n, d), as the inverse of `transform`.

        Raises:
            ValueError: If the flow has columns that are no real numbers, or the number of columns is another one.
        """
        check_is_fitted(self)
        flow = self._map()
        noise = check_array(X, dtype=(np.float64, np.float32))  # pyright: ignore[reportArgumentType]
        return self._contained(flow.carry(noise, inverse=True).double().cpu().numpy().T)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = self.time_budget is not None
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    @property
    def _names(self) -> tuple[str, ...]:
        names = getattr(self, "feature_names_in_", None)
        return default_features(self.n_features_in_) if names is None else tuple(map(str, names))

    def _validated(self, X: Any, reset: bool = False) -> Any:
        """Returns rows as scikit-learn checks them: arrays of numbers, or the columns of a table as they are."""
        if self._is_table:
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        least = MIN_ROWS if reset else 1
        return validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], ensure_min_samples=least)

    def _settings(self, seed: int, rows: int) -> TrainConfig:
        """Returns the settings of a training on so many rows."""
        if self.iterations is not None and self.time_budget is not None:
            raise ValueError(
                f"the length is told twice, by iterations={self.iterations!r} and time_budget={self.time_budget!r}; "
                "give one of them"
            )
        told: dict[str, Any] = {
            "iterations_per_block": self.iterations,
            "time_budget": self.time_budget,
            "hidden": None if self.hidden is None else tuple(self.hidden),
            "max_blocks": self.max_blocks,
            "device": self.device,
        }
        told = {name: value for name, value in told.items() if value is not None}
        if self.config is not None:
            length = {"time_budget": None} if self.iterations is not None else {}
            return dataclasses.replace(self.config, seed=seed, **(length | told))
        if self.time_budget is None:
            fewest, most = ITERATIONS
            told = {"iterations_per_block": min(max(rows, fewest), most), "max_blocks": 1} | told
        return TrainConfig(seed=seed, **told)

    def _table(self, X: Any, seed: int) -> Dataset | TableData:
        """Returns the rows of `fit` as a table whose columns have kinds."""
        table = as_table(X, "X")
        numbers = [n for n, c in zip(table.features, table.parts["all"], strict=True) if c.dtype.kind in "fiu"]
        kinds = dict.fromkeys(numbers, "real") if self.columns is None else self.columns
        options = TableOptions(columns={} if isinstance(kinds, str) else kinds)
        order = split_table(table, seed, options)
        order = {"train": np.concatenate([order["train"], order["test"]]), "val": order["val"], "test": order["val"]}
        parts = {part: [values[rows] for values in table.parts["all"]] for part, rows in order.items()}
        return prepare(Table(parts, table.features), "X", seed, options, library_of(X))

    def _numbers(self, rows: NDArray[Any], frames: str | None, seed: int) -> Dataset:
        """Returns the rows of `fit` as real numbers, of which a tenth are held out."""
        train_rows, val, test = split_order(list(rows.T), seed)
        numbers = to_float32(rows)
        trained = numbers[torch.from_numpy(np.concatenate([train_rows, test]))]
        held_out = numbers[torch.from_numpy(val)]  # stand in for test rows, whose results are not kept
        return Dataset("X", trained, held_out, held_out, self._names, frames=frames, _compared=True)

    def _map(self) -> Any:
        """Returns the flow as a map between rows of numbers and noise."""
        if isinstance(self.flow_, TableFlow):
            others = [
                repr(name)
                for name, codec in zip(self.flow_.features, self.flow_.schema.codecs, strict=True)
                if not isinstance(codec, RealColumn)
            ]
            told = ", ".join(others) or "several columns"
            raise ValueError(f"transform needs real numbers, and {told} hold others; encode them, or leave them out")
        return self.flow_

    def _contained(self, columns: Any) -> Any:
        """Returns columns (n,) in the container that ``set_output`` asks for."""
        container = _get_output_config("transform", estimator=self)["dense"]
        if container != "default":
            return to_frame(container, dict(zip(self._names, columns, strict=True)))
        numbers = all(np.asarray(values).dtype.kind in "fiu" for values in columns)
        return np.stack([np.asarray(values, np.float64 if numbers else object) for values in columns], 1)


class Printed(Silent):
    """A `Progress` that prints what a person should read, and how every block has ended."""

    def end_block(self, block: int, summary: Mapping[str, Any]) -> None:
        """Prints the validation NLL behind a block."""
        nll = summary["val_nll"]
        print(f"[JKODensity] block {block + 1}: NLL of held-out rows {nll:.4f} nats, on standardised columns")

    def message(self, text: str) -> None:
        """Prints a message."""
        print(f"[JKODensity] {text}")


def _holds_numbers(X: Any) -> bool:
    """Tells whether rows are numbers alone; what is no data frame is for scikit-learn to check."""
    if not is_frame(X):
        return True
    frame = as_pandas(X)
    return all(dtype.kind in "fiu" for dtype in getattr(frame, "dtypes", ()))
