"""Explicit fixed-step Runge-Kutta methods, one table for the reference and for every kernel."""

from __future__ import annotations

from dataclasses import dataclass

from jkoflow.ops.embedded import EMBEDDED


@dataclass(frozen=True)
class Tableau:
    r"""An explicit Butcher tableau.

    .. math:: k_i = f(x + \Delta t \sum_{j<i} a_{ij} k_j, t + c_i \Delta t), \quad
              x \leftarrow x + \Delta t \sum_i b_i k_i

    Raises:
        ValueError: If the rows do not fit together or break consistency (sum a_i = c_i, sum b = 1).
    """

    order: int
    a: tuple[tuple[float, ...], ...]  # row i has i entries
    b: tuple[float, ...]
    c: tuple[float, ...]

    def __post_init__(self) -> None:
        stages = len(self.b)
        if len(self.c) != stages or [len(row) for row in self.a] != list(range(stages)):
            raise ValueError(f"tableau rows must have 0, 1, ..., {stages - 1} entries, got {self.a}")
        if abs(sum(self.b) - 1) > 1e-12 or any(
            abs(sum(row) - c) > 1e-12 for row, c in zip(self.a, self.c, strict=True)
        ):
            raise ValueError("tableau is not consistent: each row of a must sum to c, and b to 1")

    @property
    def stages(self) -> int:
        """Returns the number of evaluations of the velocity per step."""
        return len(self.b)


TABLEAUX: dict[str, Tableau] = {
    #   0 |
    #  ---+---
    #     | 1
    "euler": Tableau(1, ((),), (1.0,), (0.0,)),
    #   0  |
    #  1/2 | 1/2
    #  ----+--------
    #      |  0   1
    "midpoint": Tableau(2, ((), (0.5,)), (0.0, 1.0), (0.0, 0.5)),
    #   0 |
    #   1 |  1
    #  ---+---------
    #     | 1/2 1/2
    "heun": Tableau(2, ((), (1.0,)), (0.5, 0.5), (0.0, 1.0)),
    # The 3/8 rule, which torchdiffeq calls rk4:
    #   0  |
    #  1/3 |  1/3
    #  2/3 | -1/3  1
    #   1  |   1  -1   1
    #  ----+-----------------
    #      |  1/8 3/8 3/8 1/8
    "rk4": Tableau(
        4,
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
        (0.0, 1 / 3, 2 / 3, 1.0),
    ),
    #   0  |
    #  1/2 | 1/2
    #  1/2 |  0  1/2
    #   1  |  0   0   1
    #  ----+-----------------
    #      | 1/6 1/3 1/3 1/6
    "rk4_classic": Tableau(
        4,
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
        (0.0, 0.5, 0.5, 1.0),
    ),
    # Embedded methods with equal steps: without their last stage, which only their error estimate needs.
    **{name: Tableau(method.order, method.a[:-1], method.a[-1], method.c[:-1]) for name, method in EMBEDDED.items()},
}
