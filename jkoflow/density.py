"""The density of a Gaussian base under the inverse of an invertible map, and samples of it."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor

from jkoflow.composition import Composition, base_log_prob
from jkoflow.float64 import call_in_float64
from jkoflow.frames import default_features, to_frame
from jkoflow.inputs import Rows, shaped
from jkoflow.log_densities import LogDensities
from jkoflow.ops.grid import AnyGrid, Steps
from jkoflow.within import (
    check_tolerance,
    error_of,
    grids_within,
    log_prob_within,
    sampling_grids_within,
)

Precision = Literal["auto", "float64"]
"""The type that log-densities are computed in: the flow's own, or float64."""


class Density(Composition):
    """The density of a map between data and noise; arguments as in `jkoflow.JKOFlow`."""

    def log_prob(
        self,
        x: Rows,
        context: Rows | None = None,
        num_steps: Steps | None = None,
        discrete: bool = False,
        validate: bool = True,
        precision: Precision = "auto",
        tol: float | None = None,
    ) -> Tensor:
        """Returns the log-density of x in nats, in the data's own units.

        Arguments:
            x: Data in their own units, finite, with shape (B, d) or any other form that `forward` takes, such as a data
                frame, in which the columns of the training are found by name.
            context: Conditioning variables, with shape (B, c) or any other form that `forward` takes; None if the data
                frame has them, or without any.
            num_steps: Runge-Kutta steps per block, or a grid, or a list of one for each block; None means the
                calibrated number, with which the mean over rows is right.
            discrete: Whether to take the log-determinant of the Runge-Kutta map itself, so that the density integrates
                to one at any number of steps. It costs d passes forward and back, for small d, and has no gradients.
                Otherwise the divergence is integrated, and the total is one up to the integrator's error.
            validate: Whether to look for NaN and inf first, and refuse them by row and column; it waits for the device.
                Without it the call only queues work on a GPU, unless there is a tolerance. Shapes are checked always.
            precision: ``"auto"`` computes in the flow's dtype; ``"float64"`` takes rows as they come, parameters and
                all that follows to float64. On the CPU that takes up to 3 times as long as float32 (docs/accuracy.md);
                the CUDA kernels are for float32, so there PyTorch computes, with a `jkoflow.ops.FallbackWarning`.
            tol: Largest error of a row's log-density in nats, in place of ``num_steps``: the cheapest steps that keep
                it are found by refinement: equal ones, for each block its own number, or adaptive ones of each row.
                Each of up to 256 rows is checked. Of more rows, M at random are (1 in 256, but 256 to 1024), and all
                rows less likely than these: none of them is beyond, so that of the other rows about one in M + 1 may
                be, and none is by `log_prob_and_error`. Results depend on which rows a call holds, within the
                tolerance; with the steps that `grids_for` returns they do not.

        Returns:
            Log-densities, with shape (B,), in the flow's dtype, or in float64 with that precision: those of rows far
            from the data are so large that float32 cannot hold what float64 computes. A
            `jkoflow.tolerance.ToleranceWarning` tells if the tolerance is not kept, such as one below the rounding of
            float32.

        Raises:
            jkoflow.arrays.InputError: If the shape does not match or x holds NaN or inf (row and column are named).
            ValueError: If the precision is unknown, or ``tol`` is not a positive number, or given together with
                ``num_steps`` or ``discrete``.

        Example:
            >>> flow = JKOFlow(2, [Block(MLPVelocity(2))])
            >>> flow.log_prob(torch.randn(5, 2), tol=1e-3).shape
            torch.Size([5])
        """
        if precision not in ("auto", "float64"):
            raise ValueError(f"precision must be auto or float64, got {precision!r}")
        if tol is not None:
            check_tolerance(tol, num_steps, discrete)
            if precision == "float64" and self.standardize.mean.dtype != torch.float64:
                double = copy.deepcopy(self).double().requires_grad_(False)
                if not any(parameter.requires_grad for parameter in self.parameters()):
                    return double.log_prob(x, context, validate=validate, tol=tol)
                num_steps, tol = double.grids_for(x, context, tol), None
        if tol is None:
            if precision == "float64":
                z, logdet = call_in_float64(self, x, context, num_steps, discrete, validate, graph=not discrete)
            else:
                z, logdet = self.forward(x, context, num_steps, discrete, validate)
            return base_log_prob(z) + logdet
        points, conditions, leading = self._rows(x, context, validate)
        return shaped(log_prob_within(self, points, conditions, tol, every_error=False)[0], leading)

    def log_prob_and_error(
        self,
        x: Rows,
        context: Rows | None = None,
        num_steps: Steps | None = None,
        validate: bool = True,
        tol: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the log-density of every row of x, and an estimate of how much it is off by, in nats.

        It takes some two and a half times as long as `log_prob` with the same steps. With a tolerance, rows that are
        beyond it are refined one by one, and the `jkoflow.tolerance.ToleranceWarning` counts those that stay beyond.

        Arguments:
            x: Data, as for `log_prob`.
            context: Conditioning variables, likewise.
            num_steps: Runge-Kutta steps, likewise.
            validate: Whether to look for NaN and inf first, likewise.
            tol: Largest error of a row's log-density in nats, in place of ``num_steps``.

        Returns:
            Log-densities (B,) in the flow's dtype, and estimates (B,) of their absolute errors in float64, of the steps
            and of rounding, given x in the flow's dtype. With ``tol`` an estimate is what the last refinement of the
            row has changed, which is several times its error as a rule.

        Raises:
            ValueError: If ``tol`` is not a positive number, or given together with ``num_steps``.

        Example:
            >>> flow = JKOFlow(2, [Block(MLPVelocity(2))])
            >>> log_p, error = flow.log_prob_and_error(torch.randn(5, 2), tol=1e-3)
            >>> bool((error <= 1e-3).all())
            True
        """
        points, conditions, leading = self._rows(x, context, validate)
        if tol is None:
            rows, grids = LogDensities(self, points, conditions), self.grids(num_steps)
            values = rows.all_values(grids)
            return shaped(values, leading), shaped(error_of(rows, values, grids), leading)
        check_tolerance(tol, num_steps)
        values, errors = log_prob_within(self, points, conditions, tol, every_error=True)
        return shaped(values, leading), shaped(errors, leading)

    def grids_for(self, x: Rows, context: Rows | None = None, tol: float = 1e-3) -> tuple[AnyGrid, ...]:
        """Returns the cheapest grids that keep a tolerance on some rows, for ``num_steps`` of other calls.

        With these, the result of a row does not depend on the others of a call, and nothing is sought again.

        Arguments:
            x: Rows like those to come, with shape (B, d) or any other form that `forward` takes; of many, some are
                chosen at random.
            context: Conditioning variables, with shape (B, c).
            tol: Largest error of a row's log-density in nats.

        Returns:
            A grid for each block.

        Raises:
            ValueError: If there is no row, or the tolerance is not a positive number.

        Example:
            >>> flow = JKOFlow(2, [Block(MLPVelocity(2)), Block(MLPVelocity(2))])
            >>> grids = flow.grids_for(torch.randn(500, 2), tol=1e-2)
            >>> len(grids), flow.log_prob(torch.zeros(3, 2), num_steps=grids).shape
            (2, torch.Size([3]))
        """
        check_tolerance(tol)
        points, conditions, _ = self._rows(x, context, True)
        return grids_within(self, points, conditions, tol).grids

    def sample(
        self,
        n: int,
        context: Rows | None = None,
        num_steps: Steps | None = None,
        generator: torch.Generator | None = None,
        exact: bool = False,
        validate: bool = True,
        tol: float | None = None,
    ) -> Any:
        """Draws n points in the data's own units.

        ``context`` has shape (n, c), or (c,) for the same condition in all rows; the other arguments are those of
        `inverse` and of `sample_and_log_prob`.

        Returns:
            A tensor of shape (n, d); or, if the training was given a data frame or a file, a data frame of the same
            library with its columns, in float64 (see `frames`). `rsample` returns a tensor in any case.
        """
        return self._as_given(self.rsample(n, context, num_steps, generator, exact, validate, tol))

    def rsample(
        self,
        n: int,
        context: Rows | None = None,
        num_steps: Steps | None = None,
        generator: torch.Generator | None = None,
        exact: bool = False,
        validate: bool = True,
        tol: float | None = None,
    ) -> Tensor:
        """Draws points as `sample` does, in a tensor of shape (n, d) through which gradients flow."""
        if exact:
            return self.rsample_and_log_prob(n, context, num_steps, generator, exact, validate, tol)[0]
        z = self._noise(n, generator)
        return self.carry(z, context, self._sampling_steps(z, context, num_steps, exact, tol), True, validate)

    def sample_and_log_prob(
        self,
        n: int,
        context: Rows | None = None,
        num_steps: Steps | None = None,
        generator: torch.Generator | None = None,
        exact: bool = False,
        validate: bool = True,
        tol: float | None = None,
    ) -> tuple[Any, Tensor]:
        """Draws n points as `sample` does, and their log-densities (n,), in one pass.

        The log-densities integrate the divergence backwards along the sampled paths; they agree with `log_prob` to
        the integrator's error, or to rounding if exact (see `inverse`). With ``tol`` in place of ``num_steps``, steps
        are found with which the log-density given with a sample differs from that of the sample by at most so many
        nats: none of the first 256 samples is beyond, and of others about one in 257 may be.
        """
        x, log_prob = self.rsample_and_log_prob(n, context, num_steps, generator, exact, validate, tol)
        return self._as_given(x), log_prob

    def rsample_and_log_prob(
        self,
        n: int,
        context: Rows | None = None,
        num_steps: Steps | None = None,
        generator: torch.Generator | None = None,
        exact: bool = False,
        validate: bool = True,
        tol: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws points (n, d) and log-densities (n,) as `sample_and_log_prob` does; gradients flow through both."""
        z = self._noise(n, generator)
        x, logdet = self.inverse(z, context, self._sampling_steps(z, context, num_steps, exact, tol), exact, validate)
        return x, base_log_prob(z) - logdet

    def _sampling_steps(
        self, z: Tensor, context: Rows | None, num_steps: Steps | None, exact: bool, tol: float | None
    ) -> Steps | None:
        if tol is None:
            return num_steps
        check_tolerance(tol, num_steps)
        return sampling_grids_within(self, z, self._in_own_units(context, z.shape[:1], True), tol, exact)

    def _as_given(self, x: Tensor) -> Any:
        """Returns samples (n, d) in the form that the training was given its rows in."""
        if self.frames is None:
            return x
        names = default_features(self.dim) if self.features is None else self.features
        columns = x.detach().double().cpu().numpy().T
        return to_frame(self.frames, dict(zip(names, columns, strict=True)))

    def _noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        mean = self.standardize.mean
        return torch.randn(n, self.dim, dtype=mean.dtype, device=mean.device, generator=generator)
