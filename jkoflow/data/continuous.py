"""The choice of a link for every continuous column: from its values alone, with a reason that can be printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from jkoflow.callers import warn_caller
from jkoflow.data.checks import DataError, DataWarning, column_label
from jkoflow.data.columnwise import contiguous_columns, distinct_values
from jkoflow.data.dataset import Dataset
from jkoflow.data.edges import bounded_links, is_crowded, positive_link
from jkoflow.data.ordered_values import OrderedValues
from jkoflow.data.sight import in_sight
from jkoflow.data.table import PARTS
from jkoflow.links import Link
from jkoflow.mapped import parts

WILD_DEVIATION = 2.0
"""Ratio of standard deviation to spread beyond which the deviation misleads."""

FAR = 10.0
"""Distance from the median, in spreads, from which the values of a column with wild ones are counted."""

APART = 1.5
"""Ratio of the numbers of values beyond half of `FAR` and beyond `FAR` under which wild values are apart from the rest;
in the tail of a Cauchy distribution it is 2, in all lighter ones more."""

STRAIGHT = 5.0
"""Spreads at which the asinh of a column bends whose wild values are apart."""

WILD_DISTANCE = 12.0
"""Distance from the median, in spreads, beyond which a value is wild; exponential tails reach 10 in a million rows."""

SIGHT_ROWS = 100_000
"""Number of values of a column above which a part of them is looked at first."""

PLAIN = "mean and deviation describe it"
"""Reason of the choice for a column that is taken as it is."""

FEW_VALUES = 20
"""Number of distinct values up to which a column is discrete and has no link."""


class Scale(StrEnum):
    """What a column is located and scaled by behind its link."""

    MOMENTS = "moments"
    """Mean and standard deviation."""
    QUANTILES = "quantiles"
    """Median and spread, and then all quantiles are mapped to those of a Gaussian: for heavy tails."""
    ENDS = "ends"
    """Mean and standard deviation, and then the quantiles at both ends are mapped to a Gaussian's, while the rest
    stays as it is: for values that crowd at an edge that is no bound."""
    CORE = "core"
    """Mean and deviation of the values that are not far out, which stay as they are; the rest is brought near them."""


class Choice(NamedTuple):
    """The treatment of one column."""

    link: Link
    scale: Scale
    reason: str
    """Why, in a few words that begin with a small letter."""


class Treatments(NamedTuple):
    """The treatments of all columns of a dataset."""

    columns: list[Choice]
    context: list[Choice]
    """Those of the conditioning variables."""

    def describe(self) -> dict[str, Any]:
        """Returns links and scales as JSON values; `from_description` builds them again."""
        return {
            name: [
                {"link": choice.link.describe(), "scale": str(choice.scale), "reason": choice.reason}
                for choice in choices
            ]
            for name, choices in self._asdict().items()
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any] | None, data: Dataset) -> Self:
        """Builds the treatments from what `describe` returned; None stands for mean and deviation of all columns."""
        if description is None:
            plain = Choice(Link(), Scale.MOMENTS, "as in version 0.1")
            return cls([plain] * data.dim, [plain] * data.context_dim)
        return cls(
            *(
                [Choice(Link(**c["link"]), Scale(c["scale"]), c.get("reason", "as saved")) for c in description[name]]
                for name in cls._fields
            )
        )


def choose_link(values: NDArray[Any], others: NDArray[Any] | None = None) -> Choice:
    """Chooses how a column is treated.

    Arguments:
        values: Finite values of the training rows, with shape (N,).
        others: Values of the other rows, with shape (M,). Bounds must hold for them, and they may be wild; no number is
            computed from them.

    Returns:
        The link, whether quantiles are to be trusted instead of moments, and the reason.

    Example:
        >>> values = np.exp(3 * np.random.default_rng(0).standard_normal(1000))
        >>> choose_link(values).link.kind
        'log'
    """
    column = OrderedValues.of(values, others)
    few = column.ordered[:: max(len(column.ordered) // 5000, 1)]
    if len(distinct_values(few)) <= FEW_VALUES:
        return Choice(Link(), Scale.MOMENTS, "few distinct values")
    for link, reason in bounded_links(column):
        behind = column.through(link)
        if wild := _wild(behind):
            return Choice(link, _tails(behind), f"{reason}; {wild}")
        if link.kind != "logit" and is_crowded(behind):
            return Choice(link, Scale.ENDS, f"{reason}; crowded at the other edge")
        return Choice(link, Scale.MOMENTS, reason)
    if wild := _wild(column):
        return _asinh(column, wild)
    if is_crowded(column):
        return Choice(Link(), Scale.ENDS, "crowded at an edge that is no round number")
    return Choice(Link(), Scale.MOMENTS, PLAIN)


def choose_context_link(values: NDArray[Any], others: NDArray[Any] | None = None) -> Choice:
    """Chooses how a conditioning variable is treated: as a column, but without bounds, since it has no density."""
    column = OrderedValues.of(values, others)
    if (found := positive_link(column)) is not None:
        behind = column.through(found[0])
        wild = _wild(behind)
        return Choice(found[0], _tails(behind) if wild else Scale.MOMENTS, "; ".join(filter(None, (found[1], wild))))
    if wild := _wild(column):
        return _asinh(column, wild)
    return Choice(Link(), Scale.MOMENTS, PLAIN)


def _asinh(column: OrderedValues, wild: str) -> Choice:
    scale = _tails(column)
    bend = column.spread * (STRAIGHT if scale is Scale.CORE else 1.0)
    return Choice(Link("asinh", centre=column.quantile(0.5), scale=bend), scale, wild)


def choose_links(data: Dataset) -> Treatments:
    """Returns the treatments of a dataset's columns and conditioning variables: by the links given, or by their values.

    Conditioning variables that are prepared have none.

    Raises:
        DataError: If values are not inside the bounds of a link that is given.
    """
    context_features = () if data.prepared else data.context_features
    return Treatments(
        _choices(data, "", data.features, data.links),
        _choices(data, "_context", context_features, data.context_links),
    )


def warn_of_wild_values(data: Dataset, treatments: Treatments) -> None:
    """Warns of every column and conditioning variable with values far out that are apart from the others."""
    for features, choices, context in (
        (data.features, treatments.columns, ""),
        (data.context_features, treatments.context, "_context"),
    ):
        for index, choice in enumerate(choices):
            if choice.scale is Scale.CORE:
                warn_caller(
                    f"{column_label(features, index)}: {choice.reason} ({_farthest(data, context, index)}); the column "
                    "is scaled by its quantiles, so that these values do not decide; remove them if they are errors",
                    DataWarning,
                )


def _farthest(data: Dataset, context: str, index: int) -> str:
    """Returns where the value of a column is that is farthest from its median."""
    data_of = {part: getattr(data, f"{part}{context}") for part in PARTS}
    middle = in_sight(data_of["train"])[:, index].double().median()
    found: tuple[float, float, int, str] | None = None
    for name, rows in data_of.items():
        start = 0
        for part in parts(rows):
            distance, row = (part[:, index].double() - middle).abs().max(0)
            if found is None or float(distance) > found[0]:
                found = float(distance), float(part[row, index]), start + int(row), name
            start += len(part)
    assert found is not None
    return f"{found[1]:.6g} in row {found[2]} of {found[3]}"


def explain(data: Dataset) -> list[str]:
    """Returns one line for every column and conditioning variable of the data: its link, and why.

    Example:
        >>> rows = torch.rand(500, 1, generator=torch.Generator().manual_seed(0))
        >>> explain(Dataset("shares", rows[:400], rows[400:450], rows[450:], ("share",)))
        ["column 'share': logit between 0 and 1; all values within [0, 1], which are crowded at both edges"]
    """
    lines = []
    for features, choices in zip((data.features, data.context_features), choose_links(data), strict=True):
        for index, choice in enumerate(choices):
            lines.append(f"{column_label(features, index)}: {_name(choice)}; {choice.reason}")
    return lines


def described(data: Dataset, treatments: Treatments) -> list[dict[str, str]]:
    """Returns what was decided about every column, those of the context last, in words.

    Example:
        >>> rows = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
        >>> data = Dataset("heights", rows[:400], rows[400:450], rows[450:], ("height",))
        >>> described(data, choose_links(data))[0]["reason"]
        'mean and deviation describe it'
    """
    context_features = () if data.prepared else data.context_features
    return [
        {
            "name": name,
            "kind": {"reflected": "log"}.get(choice.link.kind, choice.link.kind),
            "reason": choice.reason,
            "treatment": _name(choice),
            "measure": measure,
        }
        for names, chosen, measure in (
            (data.features, treatments.columns, "density"),
            (context_features, treatments.context, "given"),
        )
        for name, choice in zip(names, chosen, strict=True)
    ]


def given_choice(link: Link, values: NDArray[Any], others: NDArray[Any] | None = None) -> Choice:
    """Returns the treatment of a column whose link is given; one that is set to real stays as it is."""
    if link.kind == "real":
        return Choice(link, Scale.MOMENTS, "as set")
    column = OrderedValues.of(values, others)
    seen = column if link.kind == "asinh" else column.through(link)
    if wild := _wild(seen):
        return Choice(link, _tails(seen), f"as set; {wild}")
    return Choice(link, Scale.MOMENTS, "as set")


def _choices(data: Dataset, suffix: str, features: Sequence[str], given: Sequence[Link | None] | None) -> list[Choice]:
    if not features:
        return []
    train, *rest = (in_sight(getattr(data, f"{part}{suffix}").detach().cpu()).numpy() for part in PARTS)
    choose = choose_context_link if suffix else choose_link
    links = [None] * len(features) if given is None else given
    columns = zip(contiguous_columns(train), contiguous_columns(np.concatenate(rest)), strict=True)
    choices = []
    for link, (values, others) in zip(links, columns, strict=True):
        if link is None:
            choices.append(_chosen(choose, values, others))
        else:
            _check_bounds(link, np.concatenate([values, others]), column_label(features, len(choices)))
            choices.append(given_choice(link, values, others))
    return choices


def _chosen(choose: Callable[..., Choice], values: NDArray[Any], others: NDArray[Any]) -> Choice:
    """Returns the choice for a column, for which a part of many values and their extremes are enough if it is plain."""
    if len(values) > SIGHT_ROWS:
        part = np.append(values[:: len(values) // SIGHT_ROWS + 1], [values.min(), values.max()])
        if (choice := choose(part, others)).reason == PLAIN:
            return choice
    return choose(values, others)


def _check_bounds(link: Link, values: NDArray[Any], label: str) -> None:
    outside = (values <= link.lower) | (values >= link.upper)
    if outside.any():
        raise DataError(
            f"the {link.kind} link of {label} takes values beyond {link.lower:g} and under {link.upper:g}, got "
            f"{values[outside][0]:g} ({int(outside.sum())} such values); move the bound, or leave the link out"
        )


def _wild(column: OrderedValues) -> str:
    """Tells how many values lie how far out; an empty text if deviation and extremes do not mislead."""
    size = column.spread
    if size == 0:
        return ""
    middle = column.quantile(0.5)
    farthest = max(column.high - middle, middle - column.low) / size
    if column.ordered.std() <= WILD_DEVIATION * size and farthest <= WILD_DISTANCE:
        return ""
    count, rows = column.beyond(FAR), len(column.ordered) + len(column.others)
    values = f"{count} of {rows} values lie" if count != 1 else f"1 of {rows} values lies"
    return f"{values} more than {FAR:g} spreads from the median, the farthest {farthest:.2g} spreads"


def _tails(column: OrderedValues) -> Scale:
    """Tells whether the wild values of a column are apart from the others or the end of a heavy tail."""
    return Scale.CORE if column.beyond(FAR / 2) < APART * column.beyond(FAR) else Scale.QUANTILES


def _name(choice: Choice) -> str:
    link = choice.link
    names = {
        "real": "as it is",
        "log": f"logarithm of the distance from {link.lower:g}",
        "reflected": f"logarithm of the distance from {link.upper:g}",
        "logit": f"logit between {link.lower:g} and {link.upper:g}",
        "asinh": f"asinh around {link.centre:g} with scale {link.scale:g}",
    }
    scales = {
        Scale.MOMENTS: "",
        Scale.QUANTILES: ", through its quantiles",
        Scale.ENDS: ", its ends through their quantiles",
        Scale.CORE: ", scaled by its quantiles",
    }
    return f"{names[link.kind]}{scales[choice.scale]}"
