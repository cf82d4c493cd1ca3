"""The translation of whole tables between the user's columns and what the models learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from jkoflow.data.checks import DataError
from jkoflow.data.columns.codec import Array, Category, Codec, Count, Floats, Lattice
from jkoflow.data.columns.numbers import Constant, Date, Mixed, Real, Weekly

CODECS: dict[str, type[Codec]] = {
    "category": Category,
    "count": Count,
    "lattice": Lattice,
    "real": Real,
    "mixed": Mixed,
    "date": Date,
    "week": Weekly,
    "constant": Constant,
}
"""Codecs by the names that model files know them by."""


class Coded(NamedTuple):
    """Rows of a table, as the models take them."""

    states: NDArray[np.int64]
    """States of the k columns with several states, with shape (N, k)."""
    numbers: Floats
    """Numbers of the d columns that have some, with shape (N, d)."""
    log_weights: Floats
    """Sums of the columns' log-weights, with shape (N,); -inf for impossible rows."""
    noisy: NDArray[np.bool_]
    """Whether one point of noise is not enough, with shape (N,)."""


@dataclass(frozen=True)
class Dependence:
    """A column that is an affine function of others, which samples repeat."""

    sources: tuple[str, ...]
    coefficients: tuple[float, ...]
    intercept: float
    tolerance: float
    """Largest distance from the function that is taken for rounding."""

    def value(self, columns: Mapping[str, Array]) -> Floats:
        """Returns the function's values at other columns (N,)."""
        parts = (a * np.asarray(columns[name], float) for a, name in zip(self.coefficients, self.sources, strict=True))
        return self.intercept + sum(parts)  # type: ignore[return-value]


@dataclass(frozen=True)
class Schema:
    """The columns of a table, in the user's order, and of its conditioning variables.

    Arguments:
        features: Names of the columns, those left out excepted.
        codecs: Their codecs; None for a column that depends on others.
        context_features: Names of the conditioning variables.
        context_codecs: Their codecs.
        dependences: The functions that columns without a codec are.
    """

    features: tuple[str, ...]
    codecs: tuple[Codec | None, ...]
    context_features: tuple[str, ...] = ()
    context_codecs: tuple[Codec, ...] = ()
    dependences: Mapping[str, Dependence] = dataclasses.field(default_factory=dict)

    @property
    def discrete(self) -> list[int]:
        """Returns the numbers of the columns with several states."""
        return [place for place, codec in enumerate(self.codecs) if codec is not None and codec.states > 1]

    @property
    def numeric(self) -> list[int]:
        """Returns the numbers of the columns that the flow has a number of."""
        return [place for place, codec in enumerate(self.codecs) if codec is not None and codec.numeric]

    @property
    def noisy(self) -> list[int]:
        """Returns the numbers of the columns whose numbers may depend on noise."""
        return [place for place in self.numeric if not _is_exact(self.codecs[place])]

    @property
    def levels(self) -> list[int]:
        """Returns how many states the columns with several states have."""
        return [codec.states for codec in self._having(self.discrete)]

    def _having(self, places: Sequence[int]) -> list[Codec]:
        return [codec for place in places if (codec := self.codecs[place]) is not None]

    def encode(self, columns: Mapping[str, Array], noise: Floats) -> Coded:
        """Translates columns by name, each of shape (N,), with noise (N, number of features) in (0, 1)."""
        count = noise.shape[0]
        weights, noisy, possible = np.zeros(count), np.zeros(count, bool), np.ones(count, bool)
        states, numbers = [], []
        for place, (name, codec) in enumerate(zip(self.features, self.codecs, strict=True)):
            if codec is None:
                dependence = self.dependences[name]
                off = np.abs(np.asarray(columns[name], float) - dependence.value(columns))
                possible &= off <= dependence.tolerance
                continue
            encoded = codec.encode(columns[name], noise[:, place])
            possible &= encoded.states >= 0
            weights += encoded.log_weights
            noisy |= encoded.noisy
            if codec.states > 1:
                states.append(np.maximum(encoded.states, 0))
            if codec.numeric:
                numbers.append(encoded.numbers)
        return Coded(
            np.stack(states, 1) if states else np.zeros((count, 0), np.int64),
            np.stack(numbers, 1) if numbers else np.zeros((count, 0)),
            np.where(possible, weights, -np.inf),
            noisy,
        )

    def decode(self, states: NDArray[np.int64], numbers: Floats) -> dict[str, Array]:
        """Translates states (N, k) and numbers (N, d) back into columns by name."""
        discrete = dict(zip(self.discrete, states.T, strict=True))
        numeric = dict(zip(self.numeric, numbers.T, strict=True))
        zeros = np.zeros(len(states), np.int64)
        columns: dict[str, Array] = {}
        for place, (name, codec) in enumerate(zip(self.features, self.codecs, strict=True)):
            if codec is not None:
                number = numeric.get(place, np.zeros(len(states)))
                columns[name] = codec.decode(discrete.get(place, zeros), number)
        for name, dependence in self.dependences.items():
            columns[name] = dependence.value(columns)
        return {name: columns[name] for name in self.features}

    def indicators(self, states: NDArray[np.int64]) -> Floats:
        """Returns states (N, k) as one indicator for every state of every column, with shape (N, sum of levels)."""
        parts = [np.equal.outer(column, np.arange(level)) for column, level in zip(states.T, self.levels, strict=True)]
        return np.concatenate(parts, 1).astype(np.float64) if parts else np.zeros((len(states), 0))

    def conditions(self, columns: Mapping[str, Array]) -> Floats:
        """Returns the conditioning variables, as the models take them, with shape (N, c).

        Raises:
            DataError: If a value is one that the model cannot be given.
        """
        parts = []
        for name, codec in zip(self.context_features, self.context_codecs, strict=True):
            values = columns[name]
            wrong = codec.encode(values, np.full(len(values), 0.5)).states < 0
            if wrong.any() and not (isinstance(codec, Real | Lattice) or _base_is_real(codec)):
                row = int(np.argmax(wrong))
                raise DataError(
                    f"{values[row]!r} in row {row} (counting from 0), context column {name!r}, was never seen in "
                    "training; give one of the values of the training"
                )
            parts.append(codec.features(values))
        return np.concatenate(parts, 1) if parts else np.zeros((0, 0))

    def describe(self) -> dict[str, Any]:
        """Returns the schema as JSON values."""
        return {
            "features": list(self.features),
            "codecs": [_describe(codec) for codec in self.codecs],
            "context_features": list(self.context_features),
            "context_codecs": [_describe(codec) for codec in self.context_codecs],
            "dependences": {name: dataclasses.asdict(found) for name, found in self.dependences.items()},
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Builds a schema from what `describe` returned.

        Raises:
            KeyError, TypeError, ValueError: If something is missing or wrong.
        """
        context = [_build(codec) for codec in description["context_codecs"]]
        dependences = {
            name: Dependence(tuple(d["sources"]), tuple(d["coefficients"]), d["intercept"], d["tolerance"])
            for name, d in description["dependences"].items()
        }
        return cls(
            tuple(description["features"]),
            tuple(_build(codec) for codec in description["codecs"]),
            tuple(description["context_features"]),
            tuple(codec for codec in context if codec is not None),
            dependences,
        )


def _is_exact(codec: Codec | None) -> bool:
    return isinstance(codec.base if isinstance(codec, Date) else codec, Real)


def _base_is_real(codec: Codec) -> bool:
    base = getattr(codec, "base", None)
    return isinstance(base, Real | Lattice | Mixed)


def _describe(codec: Codec | None) -> dict[str, Any] | None:
    if codec is None:
        return None
    name = next(name for name, kind in CODECS.items() if type(codec) is kind)
    fields = {field.name: getattr(codec, field.name) for field in dataclasses.fields(codec)}  # type: ignore[arg-type]
    return {"codec": name, **{k: _describe(v) if isinstance(v, Codec) else v for k, v in fields.items()}}


def _build(description: Mapping[str, Any] | None) -> Codec | None:
    if description is None:
        return None
    fields = {key: value for key, value in description.items() if key != "codec"}
    if "base" in fields:
        fields["base"] = _build(fields["base"])
    if "tails" in fields:
        fields["tails"] = tuple(fields["tails"])
    return CODECS[description["codec"]](**fields)
