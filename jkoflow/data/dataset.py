"""The data that a flow is trained on: three parts of one table, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from jkoflow.data.checks import DataError, check_finite, check_unmasked, check_varies, warn_about_columns
from jkoflow.data.columnwise import contiguous_columns
from jkoflow.data.repeats import warn_about_shared_rows
from jkoflow.links import Link
from jkoflow.mapped import is_mapped


@dataclass(frozen=True)
class Dataset:
    """Rows to train on, to choose parameters by and to report on, in their own units.

    Arguments:
        name: Name of the data in reports.
        train: Rows to train on, float32, finite, no column constant, with shape (N, d).
        val: Rows to choose parameters by, with shape (N_val, d).
        test: Rows to report on, with shape (N_test, d).
        features: Names of the d columns.
        attribution: Source and licence, shown wherever the data are.
        context_features: Names of the c conditioning variables of a conditional density; none by default.
        train_context: Conditioning variables of the training rows, in their own units, with shape (N, c); None if there
            are none.
        val_context: Conditioning variables of the validation rows, with shape (N_val, c).
        test_context: Conditioning variables of the test rows, with shape (N_test, c).
        prepared: Whether the conditioning variables are as a network takes them, such as indicators of states; they
            are not brought to another scale then, and some may be constant.
        origin: What tells these rows from those that other columns would become, such as the table's translation; a
            resumed run compares it.
        warned: Whether columns that should be looked at have been pointed out already, as `split_rows` and
            `load_dataset` do; else training does so.
        links: Functions that a flow applies to the columns first, see `jkoflow.links.Link`; None, for all columns or in
            the place of one, lets `jkoflow.data.continuous.choose_links` choose.
        context_links: The same for the conditioning variables.
        frames: Library of the data frames that samples of a flow are to be, one of `jkoflow.frames.LIBRARIES`; None for
            tensors.

    Raises:
        DataError: If a part is empty, of another shape or dtype, holds NaN or inf, or a column of train is constant.

    Warns:
        DataWarning: If rows of val or test are rows of train, too.

    Example:
        >>> rows = torch.randn(30, 2)
        >>> Dataset("noise", rows[:20], rows[20:25], rows[25:], ("a", "b")).dim
        2
    """

    name: str
    train: Tensor
    val: Tensor
    test: Tensor
    features: tuple[str, ...]
    attribution: str = ""
    context_features: tuple[str, ...] = ()
    train_context: Tensor | None = None
    val_context: Tensor | None = None
    test_context: Tensor | None = None
    links: tuple[Link | None, ...] | None = None
    context_links: tuple[Link | None, ...] | None = None
    prepared: bool = False
    origin: str = ""
    frames: str | None = None
    warned: bool = field(default=False, repr=False, compare=False)
    _compared: bool = field(default=False, repr=False, compare=False)  # whether rows in two parts have been looked for

    def __post_init__(self) -> None:
        if len(self.features) == 0:
            raise DataError("features must name at least one column, got none; not all columns can be context")
        for part, rows, context in (
            ("train", self.train, self.train_context),
            ("val", self.val, self.val_context),
            ("test", self.test, self.test_context),
        ):
            _check_part(part, rows, self.features)
            if (context is None) != (not self.context_features):
                given = "None" if context is None else "a tensor"
                raise DataError(
                    f"{part}_context must be {'a tensor' if self.context_features else 'None'} to match the "
                    f"{len(self.context_features)} context_features, got {given}"
                )
            if context is not None:
                _check_part(f"{part}_context", context, self.context_features)
                if context.shape[0] != rows.shape[0]:
                    raise DataError(f"{part}_context must have {rows.shape[0]} rows as {part}, got {context.shape[0]}")
        for name, links, columns in (
            ("links", self.links, self.features),
            ("context_links", self.context_links, self.context_features),
        ):
            if links is not None and len(links) != len(columns):
                raise DataError(f"{name} must have a link for each of {len(columns)} columns, got {len(links)}")
        check_varies(self.train.detach().cpu().numpy(), self.features, "train")
        if self.train_context is not None and not self.prepared:
            check_varies(self.train_context.detach().cpu().numpy(), self.context_features, "train_context")
        if not self._compared:
            parts = ((self.train, self.train_context), (self.val, self.val_context), (self.test, self.test_context))
            warn_about_shared_rows([_columns(*part) for part in parts])
            object.__setattr__(self, "_compared", True)

    @property
    def dim(self) -> int:
        """Returns the number d of features."""
        return len(self.features)

    @property
    def context_dim(self) -> int:
        """Returns the number c of conditioning variables."""
        return len(self.context_features)

    def condition_on(self, names: Sequence[str]) -> Dataset:
        """Returns data in which some columns are conditioning variables, for the density of the rest given these.

        Arguments:
            names: Names of the columns, in the order that the context is to have.

        Raises:
            DataError: If a name is unknown or given twice, the data are conditional already, or no column is left.

        Example:
            >>> rows = torch.randn(30, 2)
            >>> data = Dataset("noise", rows[:20], rows[20:25], rows[25:], ("a", "b")).condition_on(["b"])
            >>> data.features, data.context_features
            (('a',), ('b',))
        """
        if self.context_features:
            raise DataError(f"{self.name} is conditional already, on {', '.join(self.context_features)}")
        unknown = [name for name in names if name not in self.features]
        if unknown or len(set(names)) != len(names) or not names:
            wrong = f"unknown {', '.join(unknown)}" if unknown else f"got {', '.join(names) or 'none'}"
            raise DataError(
                f"the context columns of {self.name} must be different names out of {', '.join(self.features)}; {wrong}"
            )
        context = [self.features.index(name) for name in names]
        rest = [column for column in range(self.dim) if column not in context]
        parts = {part: getattr(self, part) for part in ("train", "val", "test")}
        return dataclasses.replace(
            self,
            features=tuple(self.features[column] for column in rest),
            context_features=tuple(names),
            links=None if self.links is None else tuple(self.links[column] for column in rest),
            context_links=None if self.links is None else tuple(self.links[column] for column in context),
            **{part: rows[:, rest].contiguous() for part, rows in parts.items()},
            **{f"{part}_context": rows[:, context].contiguous() for part, rows in parts.items()},
        )


def warn_once(data: Dataset) -> None:
    """Gives the `DataWarning`s about the columns of the training rows, unless they have been given before."""
    if data.warned:
        return
    warn_about_columns(data.train.detach().cpu().numpy(), data.features)
    if data.train_context is not None:
        warn_about_columns(data.train_context.detach().cpu().numpy(), data.context_features)


def _columns(rows: Tensor, context: Tensor | None) -> list[NDArray[Any]]:
    tables = [rows] if context is None else [rows, context]
    return [column for table in tables for column in contiguous_columns(table.detach().cpu().numpy())]


def _check_part(part: str, rows: Tensor, features: tuple[str, ...]) -> None:
    dim = len(features)
    check_unmasked(rows, features, part)
    if not isinstance(rows, Tensor):
        raise DataError(f"{part} must be a float32 tensor with shape (N, {dim}), got a {type(rows).__name__}")
    if rows.dim() != 2 or rows.shape[1] != dim or rows.dtype != torch.float32:
        raise DataError(
            f"{part} must be float32 with shape (N, {dim}) to match the {dim} features, got {rows.dtype} "
            f"with shape {tuple(rows.shape)}"
        )
    if rows.shape[0] == 0:
        raise DataError(f"{part} is empty; give it at least one row")
    if not is_mapped(rows):  # what lies in a scratch file was checked on its way there
        check_finite(rows.detach().cpu().numpy(), features, part)
