"""The initial map: stages that are fitted one after the other, by the name of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from jkoflow.initial_map.marginals import Marginals, is_partial
from jkoflow.initial_map.radial import Radial
from jkoflow.initial_map.whiten import Whiten

RECIPES: dict[str, tuple[str, ...]] = {
    "none": (),
    "whiten": ("whiten",),
    "whiten+radial": ("whiten", "radial"),
    "marginals": ("marginals",),
    "marginals+whiten": ("marginals", "whiten"),
    "marginals+whiten+radial": ("marginals", "whiten", "radial"),
}
"""Stages of the initial maps by the name of the recipe."""

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
