"""One invertible block of a flow: a velocity and its time grid."""

from __future__ import annotations

import copy
import itertools
import math
import sys
from typing import Any, Literal

from torch import Tensor, nn

from jkoflow import discrete as discrete_map
from jkoflow.former_names import accepts_former_names, attribute, under_present_names
from jkoflow.ops import Integrated, JKOTerms, integrate, jko_loss
from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.grid import Adaptive, AnyGrid, Grid, as_any_grid, as_grid
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.schedule import refined_jko_steps
from jkoflow.velocity import Velocity, from_description

ADAPTIVE_METHOD = "dopri5"
"""Method of adaptive steps where a block's own has no error estimate."""


MOST_SAVED_STEPS = 100_000
"""Largest number of steps that a saved block or flow may have: with more, a damaged file would compute for ever."""


class Block(nn.Module):
    r"""One JKO step: the map :math:`x(t_0) \mapsto x(t_1)` along a velocity.

    Arguments:
        velocity: The velocity field.
        num_steps: Runge-Kutta steps inside the block that training uses, or a grid.
        method: Runge-Kutta method, see `jkoflow.integrate`.
        t0: Start of the time interval, a number: it is saved with the block. An end that is trained is for
            `jkoflow.integrate`.
        t1: End of the time interval, likewise.
        jko_step: JKO step size h the block was trained with; ``inf`` for a free block (no penalty).
        movement: Root mean square distance that the training data travel in the block; None if it is not known.

    Example:
        >>> block = Block(MLPVelocity(2), num_steps=8)
        >>> y, logdet = block(torch.randn(5, 2))
        >>> x, inverse_logdet = block.inverse(y)
        >>> torch.allclose(logdet, -inverse_logdet, atol=1e-4)
        True
    """

    step_size = attribute("jko_step")

    @accepts_former_names
    def __init__(
        self,
        velocity: Velocity,
        num_steps: int | Grid = 3,
        method: str = "rk4",
        t0: float = 0.0,
        t1: float = 1.0,
        jko_step: float = math.inf,
        movement: float | None = None,
    ) -> None:
        super().__init__()
        if method not in TABLEAUX:
            raise ValueError(f"method must be one of {', '.join(TABLEAUX)}, got {method!r}")
        t0, t1 = _as_number(t0, "t0"), _as_number(t1, "t1")
        if not (_is_number(t0) and _is_number(t1)):
            raise ValueError(f"t0 and t1 must be finite numbers, got {t0!r} and {t1!r}")
        if not (_is_number(jko_step) or jko_step == math.inf) or jko_step <= 0:
            raise ValueError(f"jko_step must be positive (inf for a free block), got {jko_step!r}")
        if movement is not None and not (_is_number(movement) and movement >= 0):
            raise ValueError(f"movement must be a finite distance, or None if it is not known, got {movement!r}")
        self.velocity = velocity
        self._grid = as_grid(num_steps)
        self.method = method
        self.t0 = t0
        self.t1 = t1
        self.jko_step = jko_step
        self.movement = movement

    @property
    def grid(self) -> Grid:
        """Grid of the block, on which it is trained."""
        return self._grid

    @grid.setter
    def grid(self, grid: int | Grid) -> None:
        self._grid = as_grid(grid)

    @property
    def cost(self) -> int:
        """Cost of a pass through the block, in Runge-Kutta steps of every row."""
        return self._grid.cost

    @property
    def num_steps(self) -> int:
        """Runge-Kutta steps of the block's grid."""
        return self._grid.num_steps

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        self._grid = as_grid(num_steps)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes what was pickled, in version 0.1, too."""
        state = under_present_names(state)
        if "num_steps" in state:
            state["_grid"] = as_grid(state.pop("num_steps"))
        super().__setstate__(state)

    def forward(
        self, x: Tensor, context: Tensor | None = None, num_steps: int | AnyGrid | None = None, discrete: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Carries x towards the noise.

        Arguments:
            x: Positions, with shape (B, d).
            context: Conditioning variables, with shape (B, c).
            num_steps: Runge-Kutta steps, or a grid, which may be adaptive; None means the block's own grid.
            discrete: Whether to compute the log-determinant of the Runge-Kutta map itself instead of the integrated
                divergence. It costs d passes forward and back, and has no gradients.

        Returns:
            The image of x (B, d) and the log abs det of the map's Jacobian (B,).
        """
        if not discrete:
            return self.integrate(x, context, num_steps, self.t0, self.t1)[:2]
        return discrete_map.forward(self.velocity, x, context, **self._discrete(num_steps))

    def inverse(
        self,
        y: Tensor,
        context: Tensor | None = None,
        num_steps: int | AnyGrid | None = None,
        exact: bool = False,
        name: str = "the block",
    ) -> tuple[Tensor, Tensor]:
        """Carries y back towards the data.

        Arguments:
            y: Positions, with shape (B, d).
            context: Conditioning variables, with shape (B, c).
            num_steps: Runge-Kutta steps, or a grid; None means the block's own grid.
            exact: Whether to invert the Runge-Kutta map of `forward` to rounding instead of integrating backwards in
                time. It costs some three times as much, and has no gradients.
            name: Name of the block in errors.

        Returns:
            The preimage of y (B, d) and the inverse map's logdet (B,); if exact, minus the logdet of `forward` at the
            preimage.

        Raises:
            jkoflow.discrete.NotContractiveError: If exact and the steps are too coarse to be inverted.
        """
        if not exact:
            return self.integrate(y, context, num_steps, self.t1, self.t0)[:2]
        return discrete_map.invert(self.velocity, y, context, **self._discrete(num_steps), name=name)

    def carry(
        self, x: Tensor, context: Tensor | None = None, num_steps: int | AnyGrid | None = None, inverse: bool = False
    ) -> Tensor:
        """Returns the image of x (B, d), or its preimage if ``inverse``, at about half the cost of `forward`."""
        start, end = (self.t1, self.t0) if inverse else (self.t0, self.t1)
        return self.integrate(x, context, num_steps, start, end, "none").x

    @accepts_former_names
    def jko_loss(self, x: Tensor, context: Tensor | None = None, jko_step: float | None = None) -> JKOTerms:
        """Computes the objective of the block on a batch of pushed samples x (B, d), see `jkoflow.jko_loss`.

        ``jko_step`` None means the block's own JKO step size.
        """
        return jko_loss(
            self.velocity,
            x,
            self.jko_step if jko_step is None else jko_step,
            context=context,
            t0=self.t0,
            t1=self.t1,
            num_steps=self.grid,
            method=self.method,
        )

    def _discrete(self, num_steps: int | AnyGrid | None) -> dict[str, Any]:
        """Returns the arguments that describe the discrete map of the block to `jkoflow.discrete`."""
        grid = self.grid if num_steps is None else num_steps
        if isinstance(grid, Adaptive):
            raise ValueError(f"the discrete map is that of equal steps; pass their number as num_steps, got {grid}")
        return {"t0": self.t0, "t1": self.t1, "num_steps": grid, "method": self.method}

    def integrate(
        self,
        x: Tensor,
        context: Tensor | None,
        num_steps: int | AnyGrid | None,
        start: float,
        end: float,
        divergence: Literal["exact", "none"] = "exact",
    ) -> Integrated:
        """Integrates x (B, d) along the velocity from one time to another, see `jkoflow.integrate`.

        With an adaptive grid the method is that of the block if it has an error estimate, and else `ADAPTIVE_METHOD`.
        """
        grid = self.grid if num_steps is None else as_any_grid(num_steps)
        options = {"context": context, "t0": start, "t1": end, "divergence": divergence, "keep_path": False}
        if isinstance(grid, Adaptive):
            method = self.method if self.method in EMBEDDED else ADAPTIVE_METHOD
            return integrate(self.velocity, x, method=method, **grid._asdict(), **options)  # type: ignore[arg-type]
        return integrate(self.velocity, x, method=self.method, num_steps=grid, **options)  # type: ignore[arg-type]

    def describe(self) -> dict[str, Any]:
        """Returns everything but the parameters, as JSON values; `from_description` builds the block again."""
        return {
            "velocity": self.velocity.describe(),
            "num_steps": self.num_steps,
            "method": self.method,
            "t0": self.t0,
            "t1": self.t1,
            "step_size": None if math.isinf(self.jko_step) else self.jko_step,
            "movement": self.movement,
        }

    def split(self, count: int) -> list[Block]:
        """Divides the time interval into blocks whose composition is the same map, up to the integrator's error.

        Arguments:
            count: Number of children.

        Returns:
            Blocks with copies of the velocity, equal parts of the interval and of the Runge-Kutta steps (rounded up),
            and the JKO step size h / count; their movement is not known.

        Raises:
            ValueError: If count is not an integer of at least 1.
        """
        if not (isinstance(count, int) and count >= 1):
            raise ValueError(f"count must be an integer of at least 1, got {count!r}")
        times = [self.t0 + (self.t1 - self.t0) * part / count for part in range(count)] + [self.t1]
        intervals, jko_steps = itertools.pairwise(times), refined_jko_steps([self.jko_step], count)
        grid = self.grid.split(count)
        return [
            Block(copy.deepcopy(self.velocity), grid, self.method, start, end, jko_step)
            for (start, end), jko_step in zip(intervals, jko_steps, strict=True)
        ]

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Block:
        """Builds a block with fresh parameters from what `describe` returned, in this version or an earlier one."""
        rest = {key: value for key, value in description.items() if key not in ("velocity", "step_size")}
        if as_grid(rest["num_steps"]).num_steps > MOST_SAVED_STEPS:
            raise ValueError(f"num_steps must be at most {MOST_SAVED_STEPS}, got {rest['num_steps']}")
        jko_step = math.inf if description["step_size"] is None else description["step_size"]
        return cls(from_description(description["velocity"]), **rest, jko_step=jko_step)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _as_number(time: Any, name: str) -> float:
    """Returns an end of a block's interval, which may be a tensor without a gradient."""
    if isinstance(time, Tensor):
        if time.requires_grad:
            raise ValueError(
                f"{name} of a block is saved as a number, got a tensor that requires a gradient; pass float({name}), "
                f"or train the end of an interval with jkoflow.integrate(..., {name}={name})"
            )
        return float(time)
    return time
