"""An increasing function for every column in its own units, with its exact derivative: bounded and wild columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

NUMBERS: dict[str, tuple[str, ...]] = {
    "real": (),
    "log": ("lower",),
    "reflected": ("upper",),
    "logit": ("lower", "upper"),
    "asinh": ("centre", "scale"),
}
"""Kinds of links, with the names of the numbers that each has."""


@dataclass(frozen=True)
class Link:
    """The description of one column's function.

    Arguments:
        kind: ``"real"``, the identity; ``"log"``, log(x - lower) for x beyond a lower bound; ``"reflected"``,
            -log(upper - x) for x under an upper bound; ``"logit"``, log(x - lower) - log(upper - x) between two bounds;
            or ``"asinh"``, asinh((x - centre) / scale), which is a straight line in the middle and a logarithm far out.
        lower: Lower bound, which no value reaches.
        upper: Upper bound, which no value reaches.
        centre: Zero of the asinh.
        scale: Distance from the centre at which the asinh bends, positive.

    Raises:
        ValueError: If the kind is unknown, or its numbers are not finite or out of order.

    Example:
        >>> Link("logit", lower=0.0, upper=100.0).describe()
        {'kind': 'logit', 'lower': 0.0, 'upper': 100.0}
    """

    kind: str = "real"
    lower: float = -math.inf
    upper: float = math.inf
    centre: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in NUMBERS:
            raise ValueError(f"kind must be one of {', '.join(NUMBERS)}, got {self.kind!r}")
        numbers = self.describe()
        if not all(math.isfinite(numbers[name]) for name in NUMBERS[self.kind]):
            raise ValueError(f"the numbers of a link must be finite, got {numbers}; give them all")
        if not (self.lower < self.upper and self.scale > 0):
            raise ValueError(f"lower must be less than upper and scale positive, got {numbers}")

    def describe(self) -> dict[str, Any]:
        """Returns the kind and its numbers, as JSON values."""
        values = asdict(self)
        return {"kind": self.kind, **{name: values[name] for name in NUMBERS[self.kind]}}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns values at x and the logarithms of the derivatives: -inf, beside a finite value, out of the bounds."""
        match self.kind:
            case "log":
                gap, outside = _gap(x - self.lower)
                y = gap.log()
                return y, (-y).masked_fill(outside, -math.inf)
            case "reflected":
                gap, outside = _gap(self.upper - x)
                y = -gap.log()
                return y, y.masked_fill(outside, -math.inf)
            case "logit":
                below, under = _gap(x - self.lower)
                above, over = _gap(self.upper - x)
                left, right = below.log(), above.log()
                slope = math.log(self.upper - self.lower) - left - right
                return left - right, slope.masked_fill(under | over, -math.inf)
            case "asinh":
                at = (x - self.centre) / self.scale
                return torch.asinh(at), -torch.hypot(at, torch.ones_like(at)).log() - math.log(self.scale)
            case _:
                return x, torch.zeros_like(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the values inside the bounds whose images are y, and the logarithms of the inverse's derivatives."""
        largest = math.log(torch.finfo(y.dtype).max) - 1.0
        match self.kind:
            case "log":
                x = self.lower + y.clamp(max=largest).exp()
                return x.clamp(min=self._bounds(y.dtype)[0]), y
            case "reflected":
                x = self.upper - (-y).clamp(max=largest).exp()
                return x.clamp(max=self._bounds(y.dtype)[1]), -y
            case "logit":
                width = self.upper - self.lower
                x = torch.where(
                    y < 0, self.lower + width * torch.sigmoid(y), self.upper - width * torch.sigmoid(-y)
                ).clamp(*self._bounds(y.dtype))
                return x, math.log(width) + logsigmoid(y) + logsigmoid(-y)
            case "asinh":
                most = largest - max(math.log(self.scale), 0.0)
                size = y.abs()
                slope = size + torch.log1p((-2 * size).exp()) - math.log(2.0) + math.log(self.scale)
                return self.centre + self.scale * y.clamp(-most, most).sinh(), slope
            case _:
                return y, torch.zeros_like(y)

    def _bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """Returns the least and the largest number of a dtype that `forward` takes for a point inside the bounds."""
        lower, upper = torch.tensor([self.lower, self.upper], dtype=dtype)
        tiny = torch.finfo(dtype).tiny
        up = torch.nextafter(lower, torch.full_like(lower, math.inf))
        down = torch.nextafter(upper, torch.full_like(upper, -math.inf))
        return max(float(up), float(lower) + tiny), min(float(down), float(upper) - tiny)


def _gap(distance: Tensor) -> tuple[Tensor, Tensor]:
    """Returns distances from a bound, kept positive, and which of them were not."""
    return distance.clamp(min=torch.finfo(distance.dtype).tiny), distance <= 0


class Links(nn.Module):
    """The functions of all columns; logdet (B,) is the sum over the columns, and a real column stays as it is.

    Arguments:
        links: The link of every column.

    Example:
        >>> links = Links([Link(), Link("log", lower=0.0)])
        >>> links(torch.tensor([[3.0, 0.5], [3.0, -1.0]]))[1]
        tensor([0.6931,   -inf])
    """

    def __init__(self, links: Iterable[Link]) -> None:
        super().__init__()
        self.columns = tuple(links)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images (B, d) and logdets (B,) of x (B, d) in the columns' own units; -inf outside of a bound."""
        return self._through(x, inverse=False)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns preimages (B, d) and logdets (B,) of the inverse map for y (B, d)."""
        return self._through(y, inverse=True)

    def _through(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        values, logdet = list(x.unbind(1)), x.new_zeros(x.shape[0])
        for column, link in enumerate(self.columns):
            if link.kind != "real":
                values[column], slope = (link.inverse if inverse else link.forward)(values[column])
                logdet = logdet + slope
        return torch.stack(values, 1), logdet

    def describe(self) -> list[dict[str, Any]]:
        """Returns the links as JSON values; `from_description` builds them again."""
        return [link.describe() for link in self.columns]

    @classmethod
    def from_description(cls, description: Sequence[Mapping[str, Any]]) -> Links:
        """Builds the links from what `describe` returned."""
        return cls(Link(**link) for link in description)


def links_or_none(links: Sequence[Link]) -> Links | None:
    """Returns the links of columns, or None if all columns are real and nothing is to be computed."""
    return Links(links) if any(link.kind != "real" for link in links) else None
