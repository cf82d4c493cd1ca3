"""The whole flow: standardisation, initial map, blocks and a Gaussian base."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from jkoflow import checkpoint, schedule
from jkoflow.block import Block
from jkoflow.former_names import accepts_former_names
from jkoflow.initial_map import InitialMap
from jkoflow.standardize import Standardize

MODEL_FILE = "model.safetensors"


class Trajectory(NamedTuple):
    """Points on their way through the blocks, in the blocks' coordinates; stage 0 is what the first block sees."""

    x: Tensor
    """Positions at every stage, with shape (blocks + 1, B, d)."""
    logdet: Tensor
    """Log abs det of the map travelled so far, blocks only, with shape (blocks + 1, B)."""


class JKOFlow(nn.Module):
    r"""A normalizing flow: standardisation, an initial map, a stack of blocks, a standard Gaussian.

    .. math:: \log p(x) = \log N(z; 0, I) + \sum_k \mathrm{logdet}_k

    Arguments:
        dim: Number d of features.
        blocks: Blocks from the data to the noise.
        mean: Column means of the data, with shape (d,); zero if None.
        std: Column standard deviations, with shape (d,); one if None.
        eval_num_steps: Calibrated number of Runge-Kutta steps per block for densities and samples; None means
            that each block uses its own.
        context_mean: Column means of the context, with shape (c,), for a conditional flow that is given its context in
            units of its own.
        context_std: Column standard deviations of the context, with shape (c,).
        initial_map: What is applied to standardised rows before the first block; nothing if None.

    References:
        | Normalizing flow neural networks by JKO scheme (Xu et al., 2022)
        | https://arxiv.org/abs/2212.14424

    Example:
        >>> flow = JKOFlow(2, [Block(MLPVelocity(2))])
        >>> flow.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

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
    ) -> None:
        super().__init__()
        self.dim = dim
        self.blocks = nn.ModuleList(blocks)
        self.eval_num_steps = eval_num_steps
        # Without a block this is PyTorch's default dtype and device.
        like = next(self.blocks.parameters(), torch.empty(0))
        self.standardize = Standardize(
            torch.zeros(dim, dtype=like.dtype, device=like.device) if mean is None else mean,
            torch.ones(dim, dtype=like.dtype, device=like.device) if std is None else std,
        )
        if self.standardize.mean.shape != (dim,):
            raise ValueError(f"mean must have shape ({dim},), got {tuple(self.standardize.mean.shape)}")
        self.initial_map = InitialMap() if initial_map is None else initial_map
        if (context_mean is None) != (context_std is None):
            raise ValueError("context_mean and context_std must be given together")
        self.standardize_context: Standardize | None = None
        if context_mean is not None and context_std is not None:
            self.standardize_context = Standardize(context_mean, context_std)
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

    @property
    def context_dim(self) -> int:
        """Number c of conditioning variables; 0 for an unconditional flow."""
        if self.standardize_context is not None:
            return self.standardize_context.mean.shape[0]
        return self.stack[0].velocity.context_dim if len(self.blocks) else 0

    @property
    def stack(self) -> list[Block]:
        """The blocks as a list, from the data to the noise."""
        return cast("list[Block]", list(self.blocks))

    def _steps(self, num_steps: int | None) -> int | None:
        return self.eval_num_steps if num_steps is None else num_steps

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardises data x (B, d) and applies the initial map: what the first block sees, and the logdet so far."""
        point, logdet = self.standardize(x)
        point, increment = self.initial_map(point)
        return point, logdet + increment

    def leave(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Undoes `enter`: data x (B, d) and the logdet of the way there."""
        point, logdet = self.initial_map.inverse(point)
        x, increment = self.standardize.inverse(point)
        return x, logdet + increment

    def forward(
        self, x: Tensor, context: Tensor | None = None, num_steps: int | None = None, discrete: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Carries data to noise.

        Arguments:
            x: Data in their own units, finite, with shape (B, d).
            context: Conditioning variables in their own units, finite, with shape (B, c).
            num_steps: Runge-Kutta steps per block; None means the calibrated number.
            discrete: Whether logdet is that of the Runge-Kutta map itself, see `log_prob`.

        Returns:
            The noise z (B, d) and the log abs det of the whole map's Jacobian, standardisation included (B,).

        Raises:
            ValueError: If the shape does not match or x holds NaN or inf (row and column are named).
        """
        self._check(x, "x")
        context = self.standardized_context(context, x.shape[0])
        z, logdet = self.enter(x)
        for block in self.stack:
            z, increment = block(z, context, self._steps(num_steps), discrete)
            logdet = logdet + increment
        return z, logdet

    def inverse(
        self, z: Tensor, context: Tensor | None = None, num_steps: int | None = None, exact: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Carries noise to data.

        Arguments:
            z: Noise, finite, with shape (B, d).
            context: Conditioning variables, with shape (B, c).
            num_steps: Runge-Kutta steps per block; None means the calibrated number.
            exact: Whether to invert the map of `forward`, with as many steps, to rounding: by fixed-point iteration on
                every Runge-Kutta step, at some three times the cost and without gradients. Otherwise the differential
                equation is integrated backwards, which inverts it up to the integrator's error.

        Returns:
            The data x (B, d) and the inverse map's logdet (B,); if exact, minus that of `forward` at x.

        Raises:
            ValueError: If the shape does not match or z holds NaN or inf.
            jkoflow.discrete.NotContractiveError: If exact and the steps of a block are too coarse to be inverted.

        Example:
            >>> flow = JKOFlow(2, [Block(MLPVelocity(2))])
            >>> x = torch.randn(5, 2)
            >>> with torch.no_grad():
            ...     back, _ = flow.inverse(flow(x)[0], exact=True)
            >>> torch.allclose(back, x, atol=1e-5)
            True
        """
        self._check(z, "z")
        context = self.standardized_context(context, z.shape[0])
        x, logdet = z, z.new_zeros(z.shape[0])
        for index, block in reversed(list(enumerate(self.stack))):
            x, increment = block.inverse(x, context, self._steps(num_steps), exact, f"block {index}")
            logdet = logdet + increment
        x, increment = self.leave(x)
        return x, logdet + increment

    def carry(
        self, x: Tensor, context: Tensor | None = None, num_steps: int | None = None, inverse: bool = False
    ) -> Tensor:
        """The noise of data x (B, d) alone, or the data of noise: about half of what `forward` and `inverse` cost."""
        self._check(x, "x")
        context = self.standardized_context(context, x.shape[0])
        point = x if inverse else self.enter(x)[0]
        for block in reversed(self.stack) if inverse else self.stack:
            point = block.carry(point, context, self._steps(num_steps), inverse)
        return self.leave(point)[0] if inverse else point

    def log_prob(
        self, x: Tensor, context: Tensor | None = None, num_steps: int | None = None, discrete: bool = False
    ) -> Tensor:
        """Log-density of x in nats, in the data's own units.

        Arguments:
            x: Data in their own units, finite, with shape (B, d).
            context: Conditioning variables, with shape (B, c).
            num_steps: Runge-Kutta steps per block; None means the calibrated number.
            discrete: Whether to take the log-determinant of the Runge-Kutta map itself, so that the density integrates
                to one at any number of steps. It costs d passes forward and back, for small d, and has no gradients.
                Otherwise the divergence is integrated, and the total is one up to the integrator's error.

        Returns:
            Log-densities, with shape (B,).
        """
        z, logdet = self.forward(x, context, num_steps, discrete)
        return base_log_prob(z) + logdet

    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
        exact: bool = False,
    ) -> Tensor:
        """Draws n points in the data's own units, with shape (n, d); context (n, c), exact as in `inverse`."""
        if exact:
            return self.sample_and_log_prob(n, context, num_steps, generator, exact)[0]
        return self.carry(self._noise(n, generator), context, num_steps, inverse=True)

    def sample_and_log_prob(
        self,
        n: int,
        context: Tensor | None = None,
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
        exact: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Draws n points and their log-densities in one pass, with shapes (n, d) and (n,).

        The log-densities integrate the divergence backwards along the sampled paths; they agree with `log_prob` to
        the integrator's error, or to rounding if exact (see `inverse`).
        """
        z = self._noise(n, generator)
        x, logdet = self.inverse(z, context, num_steps, exact)
        return x, base_log_prob(z) - logdet

    def _noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        mean = self.standardize.mean
        return torch.randn(n, self.dim, dtype=mean.dtype, device=mean.device, generator=generator)

    def trajectory(
        self,
        x: Tensor,
        context: Tensor | None = None,
        num_steps: int | None = None,
        inverse: bool = False,
    ) -> Trajectory:
        """Follows points through the blocks.

        Arguments:
            x: Data in their own units, or noise if ``inverse``, with shape (B, d).
            context: Conditioning variables, with shape (B, c).
            num_steps: Runge-Kutta steps per block; None means the calibrated number.
            inverse: Whether to travel from the noise to the data.

        Returns:
            Positions and logdets at every stage. Stage 0 is the data side in both directions: the data, standardised
            and after the initial map.
        """
        self._check(x, "x")
        context = self.standardized_context(context, x.shape[0])
        point = x if inverse else self.enter(x)[0]
        logdet = point.new_zeros(point.shape[0])
        stages = [(point, logdet)]
        for block in reversed(self.stack) if inverse else self.stack:
            step = block.inverse if inverse else block
            point, increment = step(point, context, self._steps(num_steps))
            logdet = logdet + increment
            stages.append((point, logdet))
        if inverse:
            stages.reverse()
        return Trajectory(torch.stack([p for p, _ in stages]), torch.stack([j for _, j in stages]))

    def measure_movements(self, x: Tensor, context: Tensor | None = None) -> list[float]:
        """Measures how far every block moves data, and notes it in the blocks; training does so by itself.

        Arguments:
            x: Data in their own units, with shape (N, d).
            context: Conditioning variables, with shape (N, c).

        Returns:
            Root mean square distances in the blocks' units, one per block.
        """
        with torch.no_grad():
            path = self.trajectory(x, context).x
        movements = (path[1:] - path[:-1]).double().square().sum(2).mean(1).sqrt().tolist()
        for block, movement in zip(self.stack, movements, strict=True):
            block.movement = movement
        return movements

    @accepts_former_names
    def reparametrize(self, damping: float = 0.5, jko_step_max: float = math.inf) -> JKOFlow:
        """The same flow with step sizes under which its blocks, once they are trained again, move more equally far.

        The map does not change: the new step sizes take effect in ``jkoflow.train(data, config, start=flow)``. Free
        blocks stay free.

        Arguments:
            damping: How far the step sizes go towards those of equal movements, greater than 0 and at most 1.
            jko_step_max: Upper bound of the new step sizes.

        Returns:
            A copy with the step sizes of `jkoflow.schedule.reparametrized_jko_steps`.

        Raises:
            ValueError: If a block's movement is not known, or an argument is out of its range.

        References:
            | Normalizing flow neural networks by JKO scheme (Xu et al., 2022)
            | https://arxiv.org/abs/2212.14424

        Example:
            >>> blocks = [Block(MLPVelocity(2), jko_step=1.0, movement=movement) for movement in (3.0, 1.0)]
            >>> [block.jko_step for block in JKOFlow(2, blocks).reparametrize(damping=1.0).blocks]
            [0.6666666666666666, 1.3333333333333335]
        """
        blocks = [copy.deepcopy(block) for block in self.stack]
        penalised = [block for block in blocks if not math.isinf(block.jko_step)]
        movements: list[float] = []
        for index, block in enumerate(blocks):
            if block.movement is None:
                raise ValueError(f"block {index} has no movement to go by; measure it with flow.measure_movements(x)")
            if not math.isinf(block.jko_step):
                movements.append(block.movement)
        sizes = schedule.reparametrized_jko_steps(
            [block.jko_step for block in penalised], movements, damping, jko_step_max
        )
        for block, size in zip(penalised, sizes, strict=True):
            block.jko_step = size
        return self.with_blocks(blocks, self.eval_num_steps)

    def refine(self, factor: int = 2) -> JKOFlow:
        """The same map, to the integrator's error, with every block divided into ``factor`` blocks.

        Child c follows its parent's velocity through the c-th part of its time interval, with the step size h / factor;
        ``jkoflow.train(data, config, start=flow)`` then trains the children one by one.

        Arguments:
            factor: Children of a block, at least 1.

        Returns:
            A flow with ``factor`` times as many blocks.

        Raises:
            ValueError: If the factor is less than 1.

        References:
            | Normalizing flow neural networks by JKO scheme (Xu et al., 2022)
            | https://arxiv.org/abs/2212.14424

        Example:
            >>> flow = JKOFlow(2, [Block(MLPVelocity(2), num_steps=4, jko_step=1.0)])
            >>> [(block.t0, block.t1, block.num_steps, block.jko_step) for block in flow.refine(2).blocks]
            [(0.0, 0.5, 2, 0.5), (0.5, 1.0, 2, 0.5)]
        """
        if not (isinstance(factor, int) and factor >= 1):
            raise ValueError(f"factor must be an integer of at least 1, got {factor!r}")
        steps = None if self.eval_num_steps is None else -(-self.eval_num_steps // factor)
        return self.with_blocks([child for block in self.stack for child in block.split(factor)], steps)

    def with_blocks(self, blocks: Iterable[Block], eval_num_steps: int | None = None) -> JKOFlow:
        """A flow with the same standardisation and initial map and other blocks, which are not copied."""
        layer = self.standardize_context
        context = (None, None) if layer is None else (layer.mean, layer.std)
        first = self.standardize
        return JKOFlow(self.dim, blocks, first.mean, first.std, eval_num_steps, *context, self.initial_map)

    def standardized_context(self, context: Tensor | None, rows: int) -> Tensor | None:
        """Checks context and brings it into the units that the blocks were trained with.

        Arguments:
            context: Conditioning variables in their own units, finite, with shape (rows, c); None for an unconditional
                flow.
            rows: How many there must be.

        Returns:
            Standardised conditioning variables, with shape (rows, c), or None.

        Raises:
            ValueError: If context is missing or superfluous, its shape does not match or it holds NaN or inf.
        """
        wanted = (rows, self.context_dim)
        if context is None:
            if self.context_dim:
                raise ValueError(f"context must have shape {wanted} for this conditional flow, got None")
            return None
        if not self.context_dim:
            raise ValueError(
                f"context must be None for a flow without conditioning variables, got {tuple(context.shape)}"
            )
        if context.shape != wanted:
            raise ValueError(f"context must have shape {wanted} to match x and the flow, got {tuple(context.shape)}")
        _check_finite(context, "context")
        return context if self.standardize_context is None else self.standardize_context(context)[0]

    def save(self, path: str | Path) -> None:
        """Writes the flow into one safetensors file, atomically.

        Raises:
            OSError: If the file cannot be written.
        """
        description = {
            "dim": self.dim,
            "eval_num_steps": self.eval_num_steps,
            "context_dim": self.context_dim,
            "standardize_context": self.standardize_context is not None,
            "initial_map": self.initial_map.describe(),
            "dtype": str(self.standardize.mean.dtype).removeprefix("torch."),
            "blocks": [block.describe() for block in self.stack],
        }
        checkpoint.save(path, "flow", self.state_dict(), description)

    @classmethod
    def load(cls, path: str | Path) -> JKOFlow:
        """Reads a flow, on the CPU, from the file that `save` wrote or from a run directory.

        Raises:
            jkoflow.checkpoint.CheckpointError: If the file is missing, damaged or of an unknown version.
        """
        path = Path(path)
        path = path / MODEL_FILE if path.is_dir() else path
        tensors, description = checkpoint.load(path, "flow")
        try:
            blocks = [Block.from_description(block) for block in description["blocks"]]
            context: tuple[Tensor | None, Tensor | None] = (None, None)
            if description.get("standardize_context", False):  # files of earlier versions do not have it
                context = (torch.zeros(description["context_dim"]), torch.ones(description["context_dim"]))
            dim = description["dim"]
            initial_map = InitialMap.from_description(description.get("initial_map", ()), dim)
            flow = cls(dim, blocks, None, None, description["eval_num_steps"], *context, initial_map)
            flow = flow.to(getattr(torch, description["dtype"]))
            flow.load_state_dict(tensors)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise checkpoint.CheckpointError(f"{path} does not describe a flow: {error}") from error
        return flow

    def _check(self, x: Tensor, name: str) -> None:
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise ValueError(f"{name} must have shape (B, {self.dim}) to match flow.dim, got {tuple(x.shape)}")
        _check_finite(x, name)


def _check_finite(x: Tensor, name: str) -> None:
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"{name} must be finite, got {x[row, column].item()} in row {row}, column {column} "
            f"({int((~finite).sum())} such values); drop or impute these rows"
        )


def base_log_prob(z: Tensor) -> Tensor:
    """Log-density of the standard Gaussian in nats, with shape (B,), for z (B, d)."""
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
