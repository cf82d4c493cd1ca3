"""The interface that the comparison needs of a flow, whichever method trains it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from jkoflow.flow import base_log_prob
from jkoflow.ops.grid import Fixed, Grid


class SolverError(RuntimeError):
    """Raised if the solver of a continuous flow gives up because the velocity has become too steep."""


class Model(nn.Module):
    """A flow on standardised columns whose map can be computed at finer and finer levels.

    Level 0 is the accuracy of training; every further level is finer, such as a tolerance ten times tighter. A flow in
    closed form has one level only.
    """

    levels: int = 1
    """Number of levels."""

    val_level: int = 0
    """Level at which validation rows are scored; a likelihood that only a coarse level has is no likelihood."""

    def loss(self, x: Tensor) -> Tensor:
        """Returns the loss of training on a batch x (B, d): the mean NLL in nats, and regularisation."""
        return self.nll(x).mean()

    def encode(self, x: Tensor, level: int = 0) -> tuple[Tensor, Tensor]:
        """Carries data x (B, d) to noise (B, d), with the log abs det of the Jacobian (B,)."""
        raise NotImplementedError

    def decode(self, z: Tensor, level: int = 0) -> Tensor:
        """Carries noise (B, d) to data (B, d)."""
        raise NotImplementedError

    def describe_level(self, level: int) -> str:
        """Returns the text of a level, such as ``dopri5, tolerance 1e-04``."""
        return "closed form"

    def ladder(self, level: int) -> list[Model]:
        """Returns views of the flow from coarse to fine, the last about as fine as a level; level 0 is theirs.

        It begins below the accuracy of training, and its rungs may be closer than the levels.
        """
        return [self]

    def evaluations(self, x: Tensor) -> float:
        """Returns how often networks are evaluated for the likelihood of each row of a batch x (B, d) at level 0.

        An evaluation of a velocity with its divergence is one.
        """
        raise NotImplementedError

    def nll(self, x: Tensor, level: int = 0) -> Tensor:
        """Returns the negative log-likelihood of every row in nats, with shape (B,)."""
        z, logdet = self.encode(x, level)
        return -base_log_prob(z) - logdet


class GridModel(Model):
    """A flow that is integrated on a grid of Runge-Kutta steps; every level refines the grid of the level before.

    Arguments:
        grid: The grid of training, which is that of level 0.
        most: Largest cost of a grid, at which the levels end.
    """

    val_level = 1

    trains_on_grid: bool = True
    """Whether training integrates, and so may exploit a coarse grid."""

    def __init__(self, grid: Grid, most: int) -> None:
        super().__init__()
        self.grid, self.most = grid, most

    @property
    def levels(self) -> int:  # type: ignore[override]
        """Returns the number of levels whose grid costs no more than the largest cost."""
        grid, levels = self.grid, 0
        while grid.cost <= self.most:
            grid, levels = grid.refined(), levels + 1
        return levels

    def grid_at(self, level: int) -> Grid:
        """Returns the grid of a level."""
        grid = self.grid
        for _ in range(level):
            grid = grid.refined()
        return grid

    def ladder(self, level: int) -> list[Model]:
        """Returns the flow on grids of 1, 2, 3, 4, 6, 8, 12 steps and so on, up to one level beyond the given one."""
        most = min(self.grid_at(level + 1).cost, self.most)
        grids = {Fixed(1)}
        for grid in (Fixed(2), Fixed(3)):
            while grid.cost <= most:
                grids.add(grid)
                grid = grid.refined()
        return [self.on(grid) for grid in sorted(grids, key=lambda grid: grid.cost)]

    def on(self, grid: Grid) -> GridModel:
        """Returns a view of the flow, with the same parameters, whose level 0 has another grid."""
        view = copy.copy(self)
        view.grid = grid
        return view

    def refine(self) -> bool:
        """Refines the grid of training itself; returns False, and changes nothing, if it cannot be refined."""
        return False


@torch.no_grad()
def nll_of_rows(model: Model, x: Tensor, level: int, chunk: int) -> Tensor:
    """Returns the NLL of every row in float64, with shape (N,); rows x (N, d) go through the flow in pieces."""
    return torch.cat([model.nll(rows, level).double() for rows in x.split(chunk)])


def mean_nll(model: Model, x: Tensor, level: int, chunk: int) -> float:
    """Returns the mean NLL of the rows x (N, d) at a level."""
    return float(nll_of_rows(model, x, level, chunk).mean())
