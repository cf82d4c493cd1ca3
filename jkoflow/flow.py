"""The flow: the density of a Gaussian base under the inverse of an invertible map."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from jkoflow import checkpoint, schedule
from jkoflow.block import MOST_SAVED_STEPS, Block
from jkoflow.composition import Trajectory, base_log_prob
from jkoflow.density import Density
from jkoflow.distribution import FlowDistribution, FlowTransform, distribution_class
from jkoflow.former_names import accepts_former_names
from jkoflow.frames import known_library
from jkoflow.initial_map import InitialMap
from jkoflow.inputs import Rows
from jkoflow.links import Links
from jkoflow.ops.grid import Steps, as_grid
from jkoflow.restore import DTYPES
from jkoflow.saved import MODEL_FILE, Saved

__all__ = ["MODEL_FILE", "JKOFlow", "Trajectory", "base_log_prob"]


class JKOFlow(Saved, Density):
    r"""A normalizing flow: links, standardisation, an initial map, a stack of blocks, a standard Gaussian.

    .. math:: \log p(x) = \log N(z; 0, I) + \sum_k \mathrm{logdet}_k

    Arguments:
        dim: Number d of features.
        blocks: Blocks from the data to the noise.
        mean: Column means of the data, behind their links, with shape (d,); zero if None.
        std: Column standard deviations, behind the links, with shape (d,); one if None.
        eval_num_steps: Calibrated number of Runge-Kutta steps per block for densities and samples; None means
            that each block uses its own.
        context_mean: Column means of the context, with shape (c,), for a conditional flow that is given its context in
            units of its own.
        context_std: Column standard deviations of the context, with shape (c,).
        initial_map: Map of standardised rows before the first block; none if None.
        links: Functions of the columns in their own units, before the standardisation; none if None.
        context_links: Functions of the context's columns, before their standardisation; none if None.

    References:
        | Normalizing flow neural networks by JKO scheme (Xu et al., 2022)
        | https://arxiv.org/abs/2212.14424

    Example:
        >>> flow = JKOFlow(2, [Block(MLPVelocity(2))])
        >>> flow.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    KIND, WHAT = "flow", "a flow"

    _metrics: dict[str, Any] | None = None  # of the class: what was pickled before there were metrics has none

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Results of the evaluation that ended the training: those of metrics.json, but for the seconds it took.

        None for a flow that has not been evaluated as it is, such as one with other blocks or of version 0.1. What is
        not finite is None, as in the file. A change of the parameters from outside does not change the metrics.
        """
        return self._metrics

    @metrics.setter
    def metrics(self, results: Mapping[str, Any] | None) -> None:
        self._metrics = None if results is None else dict(checkpoint.finite(results))

    @property
    def converged(self) -> bool | None:
        """Whether the NLLs of `metrics` stand still when the Runge-Kutta steps are doubled; None without metrics."""
        return None if self.metrics is None else self.metrics.get("test_nll_converged")

    def measure_movements(self, x: Rows, context: Rows | None = None) -> list[float]:
        """Measures how far every block moves data, and sets the blocks' movements; training does so by itself.

        Arguments:
            x: Data in their own units, with shape (N, d).
            context: Conditioning variables, with shape (N, c).

        Returns:
            Root mean square distances in the blocks' units, one per block.
        """
        with torch.no_grad():
            path = self.trajectory(x, context).x.flatten(1, -2)
        movements = (path[1:] - path[:-1]).double().square().sum(2).mean(1).sqrt().tolist()
        for block, movement in zip(self.stack, movements, strict=True):
            block.movement = movement
        return movements

    @accepts_former_names
    def reparametrize(self, damping: float = 0.5, jko_step_max: float = math.inf) -> JKOFlow:
        """Returns a copy whose JKO step sizes make the blocks move more equally far once they are trained again.

        The map does not change: the new JKO step sizes take effect in ``jkoflow.train(data, config, start=flow)``. Free
        blocks stay free.

        Arguments:
            damping: How far the JKO step sizes go towards those of equal movements, greater than 0 and at most 1.
            jko_step_max: Upper bound of the new JKO step sizes.

        Returns:
            A copy with the JKO step sizes of `jkoflow.schedule.reparametrized_jko_steps`.

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
        """Returns a flow with every block divided into ``factor`` blocks and the same map, to the integrator's error.

        Child c follows its parent's velocity through the c-th part of its time interval, with the JKO step size
        h / factor. ``jkoflow.train(data, config, start=flow)`` then trains the children one by one.

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
        steps = None if self.eval_num_steps is None else as_grid(self.eval_num_steps).split(factor).num_steps
        return self.with_blocks([child for block in self.stack for child in block.split(factor)], steps)

    def with_blocks(self, blocks: Iterable[Block], eval_num_steps: int | None = None) -> JKOFlow:
        """Returns a flow with other blocks, not copied, and the same links, standardisation, initial map and names."""
        layer = self.standardize_context
        context = (None, None) if layer is None else (layer.mean, layer.std)
        first = self.standardize
        flow = JKOFlow(
            self.dim,
            blocks,
            first.mean,
            first.std,
            eval_num_steps,
            *context,
            self.initial_map,
            self.links,
            self.context_links,
        )
        flow.features, flow.context_features, flow.frames = self.features, self.context_features, self.frames
        return flow.train(self.training)

    def distribution(
        self,
        context: Rows | None = None,
        num_steps: Steps | None = None,
        tol: float | None = None,
        validate_args: bool | None = None,
    ) -> FlowDistribution:
        """Returns the flow's density as a torch.distributions.Distribution, which holds the flow and does not copy it.

        Where Pyro has been imported it has the methods that Pyro asks for, such as ``to_event`` and ``mask``.

        Arguments:
            context: Conditioning variables in their own units, with shape (..., c): the axes (...) are batch axes.
                None for an unconditional flow.
            num_steps: Runge-Kutta steps per block, or a grid, for densities and samples, see `log_prob`.
            tol: Largest error of a log-density in nats, in place of ``num_steps``, likewise.
            validate_args: Whether context and values are looked at for NaN, inf and what is out of the support; None
                means what all distributions do, see `torch.distributions.Distribution.set_default_validate_args`.

        Returns:
            A distribution with event shape (d,), with ``rsample`` and ``rsample_and_log_prob``.

        Raises:
            jkoflow.arrays.InputError: If context is missing or superfluous, or does not fit the flow.

        Example:
            >>> flow = JKOFlow(2, [Block(MLPVelocity(2, context_dim=3))])
            >>> given = flow.distribution(torch.zeros(10, 3))
            >>> x = given.sample((5,))
            >>> x.shape, given.log_prob(x).shape
            (torch.Size([5, 10, 2]), torch.Size([5, 10]))
        """
        return distribution_class()(self, context, num_steps, tol, validate_args)

    def transform(
        self, context: Rows | None = None, num_steps: Steps | None = None, cache_size: int = 0
    ) -> FlowTransform:
        """Returns the map from noise to data as a torch.distributions.Transform; ``.inv`` is from data to noise.

        This is the direction of a TransformedDistribution, whose base is the noise. With the standard Gaussian for a
        base its density is `log_prob`.

        Arguments:
            context: Conditioning variables in their own units, with shape (..., c), see `distribution`.
            num_steps: Runge-Kutta steps per block, or a grid; for a tolerance in nats, those of `grids_for`.
            cache_size: 1 keeps the last pair of points with its log-determinant, which then come from one integration
                instead of two. It keeps them after a change of the flow's parameters, too: make a new transform then.

        Returns:
            A bijective transform of points (..., d) with ``log_abs_det_jacobian``.

        Raises:
            jkoflow.arrays.InputError: If context is missing or superfluous, or does not fit the flow.

        Example:
            >>> flow = JKOFlow(2, [Block(MLPVelocity(2))])
            >>> noise = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
            >>> density = torch.distributions.TransformedDistribution(noise, flow.transform(cache_size=1))
            >>> x = torch.randn(5, 2)
            >>> torch.allclose(density.log_prob(x), flow.log_prob(x), atol=1e-5)
            True
        """
        return FlowTransform(self, context, num_steps, cache_size)

    def describe(self) -> dict[str, Any]:
        """Returns the flow without its numbers, as JSON values; `from_description` builds it again."""
        description: dict[str, Any] = {
            "dim": self.dim,
            "eval_num_steps": self.eval_num_steps,
            "context_dim": self.context_dim,
            "standardize_context": self.standardize_context is not None,
            "initial_map": self.initial_map.describe(),
            "dtype": str(self.standardize.mean.dtype).removeprefix("torch."),
            "blocks": [block.describe() for block in self.stack],
        }
        for name, links in (("links", self.links), ("context_links", self.context_links)):
            if links is not None:
                description[name] = links.describe()
        names = {"features": self.features, "context_features": self.context_features, "frames": self.frames}
        for name, value in {"metrics": self.metrics, **names}.items():
            if value is not None:
                description[name] = value
        return description

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """Builds a flow from what `describe` returned; its numbers are still to be loaded.

        Raises:
            KeyError, TypeError, AttributeError, ValueError, RuntimeError: If something is missing or wrong.
        """
        blocks = [Block.from_description(block) for block in description["blocks"]]
        context: tuple[Tensor | None, Tensor | None] = (None, None)
        if description.get("standardize_context", False):  # files of earlier versions do not have it
            context = (torch.zeros(description["context_dim"]), torch.ones(description["context_dim"]))
        dim = description["dim"]
        initial_map = InitialMap.from_description(description.get("initial_map", ()), dim)
        links = (
            Links.from_description(description[name]) if name in description else None
            for name in ("links", "context_links")
        )
        flow = cls(dim, blocks, None, None, description["eval_num_steps"], *context, initial_map, *links)
        if (flow.eval_num_steps or 0) > MOST_SAVED_STEPS:
            raise ValueError(f"eval_num_steps must be at most {MOST_SAVED_STEPS}, got {flow.eval_num_steps}")
        flow.metrics = description.get("metrics")  # nor these
        for name, count in (("features", flow.dim), ("context_features", flow.context_dim)):
            if name in description:
                names = tuple(description[name])
                if len(names) != count or not all(isinstance(column, str) for column in names):
                    raise ValueError(f"{name} must be {count} names, got {names!r}")
                setattr(flow, name, names)
        flow.frames = known_library(description.get("frames"))
        return flow.to(DTYPES[description["dtype"]])
