"""The initial map, which is fitted to the data in closed form before the first block is trained.

A Gaussian copula makes every column Gaussian, and then the correlations those of the base. A radial map makes the
distances from the centre those of the base. The blocks learn the rest, which needs a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from jkoflow.knots import RESOLUTION, Tails, outer_secants, quantile_knots, with_tails
from jkoflow.spline import MonotoneSpline

LEAST_DISTANCE = 1e-6
"""Distance from the centre, as a share of the median distance, below which a distance is rounding."""

CORE = 3.8
"""Largest distance from the median, in spreads, up to which `Marginals.fit_core` leaves values as they are."""

CORE_SEARCH = 7.2
"""Distance from the median, in spreads, up to which a value is not taken for a wild one; where an asinh that bends at 5
spreads has brought 10 to."""

CORE_KNOTS = 12
"""Number of knots of the core; the outermost pieces bend."""

FAR_RISE = 0.5
"""Distance of the images of the farthest values that are known of from those of the rows that a map is fitted to."""

FAR_SLOPE = 2.0
"""Largest slope dx/dy beyond the rows, in deviations, where no farther values are known of."""

LEAST_VARIANCE = 1e-6
"""Least variance, as a share of the largest, of a direction that `Whiten` scales to variance 1."""

RECIPES: dict[str, tuple[str, ...]] = {
    "none": (),
    "whiten": ("whiten",),
    "whiten+radial": ("whiten", "radial"),
    "marginals": ("marginals",),
    "marginals+whiten": ("marginals", "whiten"),
    "marginals+whiten+radial": ("marginals", "whiten", "radial"),
}
"""Stages of the initial maps by the name of the recipe."""


class Marginals(nn.Module):
    """Maps every column by itself through a spline; logdet (B,) is the sum over the columns.

    Arguments:
        x: Knots in the columns' units, with shape (d, K).
        y: Images of the knots, with shape (d, K).
        columns: Numbers of the d columns that are mapped, the others stay as they are; None maps all.
    """

    columns: tuple[int, ...] | None = None  # for the maps that version 0.1 pickled, too

    def __init__(self, x: Tensor, y: Tensor, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        self.spline = MonotoneSpline(x, y)
        self.columns = None if columns is None else tuple(columns)

    @classmethod
    def fit(cls, rows: Tensor, columns: Sequence[int] | None = None, reach: Tensor | None = None) -> Marginals:
        """Fits splines that carry the quantiles of rows to those of the standard Gaussian.

        Far outside the rows a column's slope is at most one Gaussian deviation per deviation of the column.

        Arguments:
            rows: The rows, with shape (N, D).
            columns: Numbers of the d columns to map; None means all.
            reach: Least and largest value of every column to map, with shape (2, d). Values as far beyond the rows as
                that are brought within `FAR_RISE` of the rows' images, so that none is too far out to be compared.
        """
        rows = rows if columns is None else rows[:, list(columns)]
        gap = RESOLUTION * rows.abs().amax(0)[:, None]
        x, y, rise = quantile_knots(rows, torch.special.ndtri, gap)
        if reach is not None:
            slope = x.diff() / y.diff()
            x, y = _reaching(x, y, reach.to(x), slope[:, [0, -1]].clamp(max=FAR_SLOPE))
        steepest = 1 / rows.std(0)[:, None].clamp(min=1e-30)
        slopes = outer_secants(x, y)
        tails = Tails(slopes.clamp(max=steepest), rise, gap, math.inf)
        return cls(*with_tails(x, y, tails), columns)

    @classmethod
    def fit_core(cls, rows: Tensor, columns: Sequence[int], reach: Tensor) -> Marginals:
        """Fits splines that leave the middle of standardised columns as it is and bring values far out near it.

        Arguments:
            rows: The rows, with shape (N, D).
            columns: Numbers of the d columns to map.
            reach: Least and largest value of every column to map, with shape (2, d).
        """
        part = rows[:, list(columns)]
        inside = part.abs() < CORE_SEARCH
        low = part.where(inside, 0.0).amin(0).clamp(-CORE, -CORE / 4)
        high = part.where(inside, 0.0).amax(0).clamp(CORE / 4, CORE)
        x = low[:, None] + (high - low)[:, None] * torch.linspace(
            0, 1, CORE_KNOTS, dtype=part.dtype, device=part.device
        )
        return cls(*_reaching(x, x, reach.to(x), torch.ones_like(x[:, :2])), columns)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images (B, d) and logdets (B,) of x (B, d)."""
        return self._map(x, self.spline.forward)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns preimages (B, d) and logdets (B,) of the inverse map for y (B, d)."""
        return self._map(y, self.spline.inverse)

    def _map(self, x: Tensor, spline: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        if self.columns is None:
            y, log_derivative = spline(x)
            return y, log_derivative.sum(1)
        mapped, log_derivative = spline(x[:, list(self.columns)])
        values = list(x.unbind(1))
        for column, value in zip(self.columns, mapped.unbind(1), strict=True):
            values[column] = value
        return torch.stack(values, 1), log_derivative.sum(1)


class Whiten(nn.Module):
    """Maps x to the solution y of x = mean + root y.

    Arguments:
        mean: The mean, with shape (d,).
        root: Square root of the covariance: symmetric and positive definite, with shape (d, d).
    """

    mean: Tensor
    root: Tensor

    def __init__(self, mean: Tensor, root: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("root", root)
        self._known: tuple[Tensor, int, tuple[Tensor, Tensor, Tensor]] | None = None

    @classmethod
    def fit(cls, rows: Tensor) -> Whiten:
        """Fits a map that brings rows (N, d) to mean 0 and covariance 1 and turns them as little as possible."""
        covariance = torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1])
        variance, directions = torch.linalg.eigh(covariance)
        root = variance.clamp(min=LEAST_VARIANCE * float(variance[-1])).sqrt()
        return cls(rows.mean(0), (directions * root) @ directions.T)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images (B, d) and logdets (B,) of x (B, d)."""
        factors, pivots, log_det = self._factorised()
        centred = (x - self.mean).T
        return torch.linalg.lu_solve(factors, pivots, centred).T.contiguous(), -log_det.expand(x.shape[0])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns preimages (B, d) and logdets (B,) of the inverse map for y (B, d)."""
        return y @ self.root.T + self.mean, self._factorised()[2].expand(y.shape[0])

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without the cached factors, since the version counters of copies begin anew."""
        return {**self.__dict__, "_known": None}

    def _factorised(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns LU factors, pivots and log det of the root, computed anew only if the root has changed."""
        root = self.root
        if torch.compiler.is_compiling() or root.is_inference():  # what has no version may change unseen
            return _factorise(root)
        known = self._known
        if known is None or known[0] is not root or known[1] != root._version:
            with torch.inference_mode(False), torch.no_grad():  # to be used in any mode
                known = self._known = root, root._version, _factorise(root)
        return known[2]


def _factorise(root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return *torch.linalg.lu_factor(root), torch.linalg.slogdet(root)[1]


class Radial(nn.Module):
    """Maps the distance from the origin and keeps the direction.

    Arguments:
        x: Knots: logarithms of distances, with shape (1, K).
        y: Images of the knots: logarithms of the new distances, with shape (1, K).

    References:
        | Reducing statistical dependencies in natural signals using radial Gaussianization (Lyu and Simoncelli, 2008)
        | https://papers.nips.cc/paper/3401
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.spline = MonotoneSpline(x, y)

    @classmethod
    def fit(cls, rows: Tensor) -> Radial:
        """Fits a map that carries the quantiles of the rows' (N, d) distances to those of a standard Gaussian.

        At the centre, and far outside the rows unless these have heavy tails, distances are multiplied by a constant.
        """
        dim = rows.shape[1]
        distance = _log_distance(rows)
        distance = distance.clamp(min=float(distance.median()) + math.log(LEAST_DISTANCE))
        gap = RESOLUTION * distance.abs().amax(0)[:, None].clamp(min=1)
        x, y, rise = quantile_knots(distance, lambda levels: _log_gaussian_distance(levels, dim), gap)
        slopes = outer_secants(x, y).clamp(max=1)
        slopes[:, 0] = 1
        return cls(*with_tails(x, y, Tails(slopes, rise, gap, 1.0)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images (B, d) and logdets (B,) of x (B, d)."""
        return self._scale(x, self.spline.forward)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns preimages (B, d) and logdets (B,) of the inverse map for y (B, d)."""
        return self._scale(y, self.spline.inverse)

    def _scale(self, x: Tensor, map_log: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        before = _log_distance(x)
        after, log_derivative = map_log(before)
        # d log r'/d log r along the ray, r'/r across it; the volume element adds (r'/r) along
        return x * (after - before).exp(), ((after - before) * x.shape[1] + log_derivative)[:, 0]


STAGES: dict[str, type[Marginals | Whiten | Radial]] = {"marginals": Marginals, "whiten": Whiten, "radial": Radial}


class InitialMap(nn.Module):
    """Stages one after the other; without stages the map is the identity.

    Arguments:
        stages: The stages, in the order in which they are applied.

    Example:
        >>> rows = torch.randn(1000, 2).exp()
        >>> initial_map = InitialMap.fit(rows, "marginals+whiten")
        >>> y, logdet = initial_map(rows)
        >>> x, inverse_logdet = initial_map.inverse(y)
        >>> torch.allclose(x, rows, atol=1e-3), torch.allclose(logdet, -inverse_logdet, atol=1e-3)
        (True, True)
    """

    def __init__(self, stages: Iterable[Marginals | Whiten | Radial] = ()) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    @classmethod
    @torch.no_grad()
    def fit(cls, rows: Tensor, recipe: str) -> InitialMap:
        """Fits the stages of a recipe, each to rows (N, d) as the stages before it leave them, in float64.

        Raises:
            ValueError: If the recipe is not one of `RECIPES`.
        """
        if recipe not in RECIPES:
            raise ValueError(f"the initial map must be one of {', '.join(RECIPES)}, got {recipe!r}")
        stages, exact = [], rows.double()
        for name in RECIPES[recipe]:
            stage = STAGES[name].fit(exact)
            exact, _ = stage(exact)
            stages.append(stage)
        return cls(stages).to(rows.dtype)

    def behind(self, stages: Iterable[Marginals]) -> InitialMap:
        """Returns a map with some stages before those of this one."""
        return InitialMap([*stages, *self._stack])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images (B, d) and log abs dets (B,) of x (B, d)."""
        return self._through(x, [stage.forward for stage in self._stack])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns preimages (B, d) and log abs dets of the inverse map (B,) for y (B, d)."""
        return self._through(y, [stage.inverse for stage in reversed(self._stack)])

    @property
    def _stack(self) -> list[Marginals | Whiten | Radial]:
        return cast("list[Marginals | Whiten | Radial]", list(self.stages))

    @staticmethod
    def _through(x: Tensor, maps: Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor]:
        logdet = x.new_zeros(x.shape[0])
        for apply in maps:
            x, increment = apply(x)
            logdet = logdet + increment
        return x, logdet

    @property
    def recipe(self) -> str:
        """Returns the name of the recipe; a quantile map of some columns alone belongs to these columns, not to it."""
        named = zip(self._names, self._stack, strict=True)
        return "+".join(name for name, stage in named if not is_partial(stage)) or "none"

    @property
    def _names(self) -> list[str]:
        return [next(name for name, kind in STAGES.items() if type(stage) is kind) for stage in self._stack]

    def describe(self) -> list[dict[str, Any]]:
        """Returns the stages without their numbers, as JSON values; `from_description` builds them again."""
        return [
            {"stage": name}
            | ({} if isinstance(stage, Whiten) else {"knots": stage.spline.x.shape[1]})
            | ({"columns": list(stage.columns or ())} if is_partial(stage) else {})
            for name, stage in zip(self._names, self._stack, strict=True)
        ]

    @classmethod
    def from_description(cls, description: Sequence[dict[str, Any]], dim: int) -> InitialMap:
        """Builds a map for ``dim`` columns from what `describe` returned; its numbers are still to be loaded."""
        stages: list[Marginals | Whiten | Radial] = []
        for stage in description:
            if stage["stage"] == "whiten":
                stages.append(Whiten(torch.zeros(dim), torch.eye(dim)))
                continue
            columns = stage.get("columns")
            knots = torch.arange(float(stage["knots"]))
            if {"marginals": Marginals, "radial": Radial}[stage["stage"]] is Radial:
                stages.append(Radial(knots[None], knots[None]))
            else:
                knots = knots.expand(dim if columns is None else len(columns), -1)
                stages.append(Marginals(knots, knots, columns))
        return cls(stages)


def is_partial(stage: nn.Module) -> TypeGuard[Marginals]:
    """Tells whether a stage maps the quantiles of some of the columns alone."""
    return isinstance(stage, Marginals) and stage.columns is not None


def _reaching(x: Tensor, y: Tensor, reach: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Adds a knot at both ends of knots (d, K): at the farthest values (2, d), or where slopes dx/dy (d, 2) lead to."""
    low = torch.minimum(reach[0], x[:, 0] - FAR_RISE * slope[:, 0])
    high = torch.maximum(reach[1], x[:, -1] + FAR_RISE * slope[:, -1])
    x = torch.cat([low[:, None], x, high[:, None]], 1)
    return x, torch.cat([y[:, :1] - FAR_RISE, y, y[:, -1:] + FAR_RISE], 1)


def _log_distance(x: Tensor) -> Tensor:
    """Returns the logarithms of the distances of x (B, d) from the origin, with shape (B, 1)."""
    return x.square().sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).log() / 2


def _log_gaussian_distance(levels: Tensor, dim: int) -> Tensor:
    """Computes quantiles at levels (K,) of the logarithm of a standard Gaussian vector's length, by bisection."""
    low = torch.full_like(levels, -40.0)
    high = torch.full_like(levels, math.log(dim + 40.0 * math.sqrt(dim)))
    half = torch.full_like(levels, 0.5 * dim)
    for _ in range(80):
        middle = (low + high) / 2
        below = torch.special.gammainc(half, 0.5 * (2 * middle).exp()) < levels
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
