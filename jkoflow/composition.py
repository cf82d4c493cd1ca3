"""The invertible map of a flow: standardisation, initial map and blocks, one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from jkoflow.block import Block
from jkoflow.frames import as_pandas, is_frame
from jkoflow.initial_map import InitialMap
from jkoflow.inputs import Rows, in_order, labels_of, shaped, take_context, take_points
from jkoflow.links import Links
from jkoflow.ops.autocast import without_autocast
from jkoflow.ops.grid import AnyGrid, Grid, Steps, as_any_grid, as_grid, for_each
from jkoflow.standardize import Standardize


class Trajectory(NamedTuple):
    """Points and logdets at every stage of the blocks, in the blocks' coordinates; stage 0 enters the first block."""

    x: Tensor
    """Positions at every stage, with shape (blocks + 1, B, d)."""
    logdet: Tensor
    """Logdet of the blocks up to every stage, with shape (blocks + 1, B)."""


class Composition(nn.Module):
    """The map between data and noise; arguments as in `jkoflow.JKOFlow`, which makes a density of it."""

    def __init__(
        self,
        dim: int,
        blocks: Iterable[Block] = (),
        mean: Tensor | None = None,
        std: Tensor | None = None,
        eval_num_steps: int | None = None,
        context_mean: Tensor | None = None,
        context_std: Tensor | None = None,
        initial_map: InitialMap | None = None,
        links: Links | None = None,
        context_links: Links | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.blocks = nn.ModuleList(blocks)
        self._eval_num_steps: int | None = None
        self.eval_num_steps = eval_num_steps
        # Without a block this is PyTorch's default dtype and device.
        like = next(self.blocks.parameters(), torch.empty(0))
        self.standardize = Standardize(
            torch.zeros(dim, dtype=like.dtype, device=like.device) if mean is None else mean,
            torch.ones(dim, dtype=like.dtype, device=like.device) if std is None else std,
        )
        if self.standardize.mean.shape != (dim,):
            raise ValueError(f"mean must have shape ({dim},), got {tuple(self.standardize.mean.shape)}")
        self.links = links
        self.initial_map = InitialMap() if initial_map is None else initial_map
        if (context_mean is None) != (context_std is None):
            raise ValueError("context_mean and context_std must be given together")
        self.standardize_context: Standardize | None = None
        if context_mean is not None and context_std is not None:
            self.standardize_context = Standardize(context_mean, context_std)
        self.context_links = context_links
        for name, layer, columns in (("links", links, dim), ("context_links", context_links, self.context_dim)):
            if layer is not None and len(layer.columns) != columns:
                raise ValueError(f"{name} must have a link for each of {columns} columns, got {len(layer.columns)}")
        for block in self.stack:
            if block.velocity.dim != dim:
                raise ValueError(f"every block must have velocity.dim {dim}, got {block.velocity.dim}")
            if block.velocity.context_dim != self.context_dim:
                raise ValueError(
                    f"every block must have velocity.context_dim {self.context_dim}, got {block.velocity.context_dim}"
                )
        dtypes = {tensor.dtype for tensor in (*self.parameters(), *self.buffers())}
        if len(dtypes) != 1:
            raise ValueError(
                f"mean, std, the initial map and the parameters of every block must have one dtype, got "
                f"{', '.join(sorted(map(str, dtypes)))}; convert with .to(dtype)"
            )

    features: tuple[str, ...] | None = None
    """Names of the columns that the flow was trained on, by which those of a data frame are found; None if they have
    none."""
    context_features: tuple[str, ...] | None = None
    """Names of the conditioning variables, likewise."""
    frames: str | None = None
    """Library of the data frames that samples are, one of `jkoflow.frames.LIBRARIES`, if the training was given such
    rows; None means that samples are tensors."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes what was pickled, in version 0.1, too, where a property of today was an attribute."""
        state = dict(state)
        if "eval_num_steps" in state:
            state["_eval_num_steps"] = state.pop("eval_num_steps")
        super().__setstate__(state)
        for name in ("links", "context_links"):  # which the flows of earlier versions do not have
            if name not in self._modules and name not in self.__dict__:
                setattr(self, name, None)

    @property
    def eval_num_steps(self) -> int | None:
        """Calibrated number of Runge-Kutta steps per block; None means that each block uses its own grid."""
        return self._eval_num_steps

    @eval_num_steps.setter
    def eval_num_steps(self, num_steps: int | Grid | None) -> None:
        self._eval_num_steps = None if num_steps is None else as_grid(num_steps).num_steps

    @property
    def context_dim(self) -> int:
        """Returns the number c of conditioning variables; 0 for an unconditional flow."""
        if self.standardize_context is not None:
            return self.standardize_context.mean.shape[0]
        return self.stack[0].velocity.context_dim if len(self.blocks) else 0

    @property
    def stack(self) -> list[Block]:
        """Returns the blocks as a list, from the data to the noise."""
        return cast("list[Block]", list(self.blocks))

    def _stepping(self, num_steps: Steps | None) -> list[tuple[Block, int | AnyGrid | None]]:
        """Returns the blocks with the steps that each one takes; None is the block's own grid."""
        wanted = self.eval_num_steps if num_steps is None else num_steps
        steps = [None] * len(self.blocks) if wanted is None else for_each(wanted, len(self.blocks))
        return list(zip(self.stack, steps, strict=True))

    def grids(self, num_steps: Steps | None = None) -> tuple[AnyGrid, ...]:
        """Returns the grid that every block takes for ``num_steps``; None means the calibrated number.

        Raises:
            ValueError: If a number is not an integer of at least 1, or there is not one for each block.
        """
        return tuple(block.grid if steps is None else as_any_grid(steps) for block, steps in self._stepping(num_steps))

    @without_autocast
    def standardized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Applies the links and the standardisation to data x (B, d); returns the result and the logdet of both (B,).

        These are the units that distances and likelihoods "on standardised columns" are told in.
        """
        if self.links is None:
            return self.standardize(x)
        point, logdet = self.links(x)
        point, increment = self.standardize(point)
        return point, logdet + increment

    @without_autocast
    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardises data x (B, d) and applies the initial map; returns the result and the logdet of both (B,)."""
        point, logdet = self.standardized(x)
        point, increment = self.initial_map(point)
        return point, logdet + increment

    @without_autocast
    def leave(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Inverts `enter`; returns data x (B, d) and the logdet of the inverse (B,)."""
        point, logdet = self.initial_map.inverse(point)
        x, increment = self.standardize.inverse(point)
        if self.links is None:
            return x, logdet + increment
        x, links = self.links.inverse(x)
        return x, logdet + increment + links

    @without_autocast
    def forward(
        self,
        x: Rows,
        context: Rows | None = None,
        num_steps: Steps | None = None,
        discrete: bool = False,
        validate: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Carries data to noise.

        Wherever a flow takes points, they may be a tensor, an array, lists or a data frame (of pandas, polars or
        whatever speaks Arrow), of any dtype of real numbers, which is converted to the flow's. They may have any axes
        (..., d), such as (d,) for a single point; results then have shape (..., d) and (...). With one column, (N,) are
        N points. In a data frame, and in a Series that is one row of it, the columns of the training are found by name.
        Results are tensors of the flow's dtype, on its device. Context comes in the same forms and axes; with one
        conditioning variable, (...) will do, and one condition, (c,) or a data frame of one row, is that of all points.

        Arguments:
            x: Data in their own units, finite, with shape (B, d).
            context: Conditioning variables in their own units, finite, with shape (B, c).
            num_steps: Runge-Kutta steps per block, or a grid; or a list of one for each block, such as
                `JKOFlow.grids_for` returns; None means the calibrated number.
            discrete: Whether to compute the log-determinant of the Runge-Kutta map itself, see `JKOFlow.log_prob`.
            validate: Whether to look for NaN and inf first, which waits for the device; shapes are checked always.

        Returns:
            The noise z (B, d) and the log abs det of the whole map's Jacobian, standardisation included (B,).

        Raises:
            jkoflow.arrays.InputError: If the shape does not match or x holds NaN or inf (row and column are named).
        """
        points, leading = self._take(x, validate)
        conditions = self._given(x, context, leading, validate)
        z, logdet = self.enter(points)
        for block, steps in self._stepping(num_steps):
            z, increment = block(z, conditions, steps, discrete)
            logdet = logdet + increment
        return shaped(z, leading), shaped(logdet, leading)

    @without_autocast
    def inverse(
        self,
        z: Rows,
        context: Rows | None = None,
        num_steps: Steps | None = None,
        exact: bool = False,
        validate: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Carries noise to data.

        Arguments:
            z: Noise, finite, with shape (B, d).
            context: Conditioning variables, with shape (B, c).
            num_steps: Runge-Kutta steps per block, or a grid; None means the calibrated number.
            exact: Whether to invert the map of `forward`, with as many steps, to rounding: by fixed-point iteration on
                every Runge-Kutta step, at some three times the cost and without gradients. Otherwise the differential
                equation is integrated backwards, which inverts it up to the integrator's error.
            validate: Whether to look for NaN and inf first, which waits for the device; shapes are checked always.

        Returns:
            The data x (B, d) and the inverse map's logdet (B,); if exact, minus the logdet of `forward` at x.

        Raises:
            jkoflow.arrays.InputError: If the shape does not match or z holds NaN or inf.
            jkoflow.discrete.NotContractiveError: If exact and the steps of a block are too coarse to be inverted.

        Example:
            >>> flow = JKOFlow(2, [Block(MLPVelocity(2))])
            >>> x = torch.randn(5, 2)
            >>> with torch.no_grad():
            ...     back, _ = flow.inverse(flow(x)[0], exact=True)
            >>> torch.allclose(back, x, atol=1e-5)
            True
        """
        x, leading = take_points(z, self.dim, "z", self.standardize.mean, validate)
        conditions = self.standardized_context(context, leading, validate)
        logdet = x.new_zeros(x.shape[0])
        for index, (block, steps) in reversed(list(enumerate(self._stepping(num_steps)))):
            x, increment = block.inverse(x, conditions, steps, exact, f"block {index}")
            logdet = logdet + increment
        x, increment = self.leave(x)
        return shaped(x, leading), shaped(logdet + increment, leading)

    @without_autocast
    def carry(
        self,
        x: Rows,
        context: Rows | None = None,
        num_steps: Steps | None = None,
        inverse: bool = False,
        validate: bool = True,
    ) -> Tensor:
        """Returns the noise of data x (B, d), or the data of noise, for half of what `forward` and `inverse` cost."""
        point, leading = self._take(x, validate)
        conditions = self._given(x, context, leading, validate)
        point = point if inverse else self.enter(point)[0]
        stepping = self._stepping(num_steps)
        for block, steps in reversed(stepping) if inverse else stepping:
            point = block.carry(point, conditions, steps, inverse)
        return shaped(self.leave(point)[0] if inverse else point, leading)

    @without_autocast
    def trajectory(
        self,
        x: Rows,
        context: Rows | None = None,
        num_steps: Steps | None = None,
        inverse: bool = False,
        validate: bool = True,
    ) -> Trajectory:
        """Follows points through the blocks.

        Arguments:
            x: Data in their own units, or noise if ``inverse``, with shape (B, d).
            context: Conditioning variables, with shape (B, c).
            num_steps: Runge-Kutta steps per block, or a grid; None means the calibrated number.
            inverse: Whether to travel from the noise to the data.
            validate: Whether to look for NaN and inf first, see `forward`.

        Returns:
            Positions and logdets at every stage. Stage 0 is the data side in both directions: the data, standardised
            and after the initial map.
        """
        point, leading = self._take(x, validate)
        conditions = self._given(x, context, leading, validate)
        point = point if inverse else self.enter(point)[0]
        logdet = point.new_zeros(point.shape[0])
        stages = [(point, logdet)]
        stepping = self._stepping(num_steps)
        for block, steps in reversed(stepping) if inverse else stepping:
            step = block.inverse if inverse else block
            point, increment = step(point, conditions, steps)
            logdet = logdet + increment
            stages.append((point, logdet))
        if inverse:
            stages.reverse()
        positions, logdets = zip(*((shaped(p, leading), shaped(j, leading)) for p, j in stages), strict=True)
        return Trajectory(torch.stack(positions), torch.stack(logdets))

    def _take(self, x: Rows, validate: bool) -> tuple[Tensor, torch.Size]:
        return take_points(in_order(x, self.features, "x"), self.dim, "x", self.standardize.mean, validate)

    def _given(self, x: Rows, context: Rows | None, leading: torch.Size, validate: bool) -> Tensor | None:
        """Returns the standardised conditions; a data frame of points may hold them, too."""
        return self.standardized_context(self._given_with(x, context), leading, validate)

    def _given_with(self, x: Rows, context: Rows | None) -> Rows | None:
        """Returns the conditions as they were given, with points or beside them."""
        if context is None and self.context_features and is_frame(x):
            frame = as_pandas(x)
            return frame if set(labels_of(frame)).issuperset(self.context_features) else None
        return context

    def _rows(self, x: Rows, context: Rows | None, validate: bool) -> tuple[Tensor, Tensor | None, torch.Size]:
        """Returns points (B, d) and their conditions (B, c) in their own units, and the axes of results."""
        points, leading = self._take(x, validate)
        return points, self._in_own_units(self._given_with(x, context), leading, validate), leading

    def _in_own_units(self, context: Rows | None, leading: torch.Size, validate: bool) -> Tensor | None:
        context = in_order(context, self.context_features, "context")
        return take_context(context, leading, self.context_dim, self.standardize.mean, validate)

    @without_autocast
    def standardized_context(
        self, context: Rows | None, rows: int | torch.Size, validate: bool = True
    ) -> Tensor | None:
        """Checks context and brings it into the units that the blocks were trained with.

        Arguments:
            context: Conditioning variables in their own units, finite, in a form that `forward` takes; None for an
                unconditional flow.
            rows: Number of points, or the axes that they are in.
            validate: Whether to look for NaN and inf first, see `forward`.

        Returns:
            Standardised conditioning variables of each point, with shape (rows, c), or None.

        Raises:
            jkoflow.arrays.InputError: If context is missing or superfluous, its shape does not match or it holds NaN or
                inf.
        """
        leading = torch.Size((rows,)) if isinstance(rows, int) else rows
        conditions = self._in_own_units(context, leading, validate)
        if conditions is not None and self.context_links is not None:
            conditions = self.context_links(conditions)[0]
        layer = self.standardize_context
        return conditions if conditions is None or layer is None else layer(conditions)[0]


def base_log_prob(z: Tensor) -> Tensor:
    """Returns the log-density of the standard Gaussian in nats, with shape (...), for z (..., d)."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
