"""Flows in sbi: density estimators for NPE and NLE, and an ODE solver for FMPE and NPSE."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from sbi.inference.trainers.base import NeuralInference
from sbi.inference.trainers.nle.nle_base import LikelihoodEstimatorTrainer
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.neural_nets.estimators.base import ConditionalEstimatorBuilder
from sbi.utils.sbiutils import mcmc_transform, standardizing_net, z_score_parser, z_standardization
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

from jkoflow.block import Block
from jkoflow.flow import JKOFlow
from jkoflow.interop.sbi_fields import MLPVectorField
from jkoflow.interop.sbi_ode import JKONeuralODE, register_ode_backend
from jkoflow.ops.grid import Grid
from jkoflow.training.first_layer import first_layer_scale, sharpen
from jkoflow.velocity import MLPVelocity

__all__ = [
    "JKODensityEstimator",
    "JKONeuralODE",
    "MLPVectorField",
    "build_jko",
    "density_estimator",
    "register_ode_backend",
]

ZScore = Literal["independent", "structured", "transform_to_unconstrained", "none"] | None
"""How columns are brought to one scale: each by its own moments, all by common ones, by a support, or not at all."""

REFINEMENT = 2
"""Steps in evaluation for each one in training: what training makes of too few steps shows in the validation loss."""

EMBEDDED_AT_ONCE = 1000
"""Conditions that are embedded at once when an estimator is built."""


class JKODensityEstimator(ConditionalDensityEstimator):
    r"""The density :math:`p(\mathrm{input} \mid \mathrm{condition})` of a conditional flow, as sbi's estimators are.

    Arguments:
        net: The flow. One that `jkoflow.train` has trained on parameters, with the observations as context, is a
            posterior estimator as it is.
        embedding_net: Network that makes the flow's context of a condition; its output is flattened. The identity if
            None.
        input_shape: Shape of an input, of ``net.dim`` numbers; ``(net.dim,)`` if None.
        condition_shape: Shape of a condition; ``(net.context_dim,)`` if None.
        unconstrain: Transform of inputs to unbounded ones, before the flow; none if None.

    Raises:
        TypeError: If ``net`` is no `jkoflow.JKOFlow`.
        ValueError: If the flow has no context, or the shapes do not fit it.

    Example:
        >>> theta = torch.randn(1000, 2)
        >>> x = theta + 0.1 * torch.randn(1000, 2)
        >>> config = jkoflow.TrainConfig(hidden=(8,), max_blocks=1, iterations_per_block=5)
        >>> estimator = JKODensityEstimator(jkoflow.train(theta, config, context=x))
        >>> estimator.sample((5,), condition=x[:3]).shape
        torch.Size([5, 3, 2])

        In sbi this is ``DirectPosterior(estimator, prior)``.
    """

    net: JKOFlow

    def __init__(
        self,
        net: JKOFlow,
        embedding_net: nn.Module | None = None,
        input_shape: Sequence[int] | None = None,
        condition_shape: Sequence[int] | None = None,
        unconstrain: Transform | None = None,
    ) -> None:
        if not isinstance(net, JKOFlow):
            raise TypeError(
                f"net must be a jkoflow.JKOFlow, which has a density of real numbers, got {type(net).__name__}; train "
                "it on columns of real numbers"
            )
        if not net.context_dim:
            raise ValueError(
                "net must be a conditional flow, got one without context; train it with jkoflow.train(theta, context=x)"
            )
        inputs = torch.Size((net.dim,) if input_shape is None else input_shape)
        conditions = torch.Size((net.context_dim,) if condition_shape is None else condition_shape)
        if inputs.numel() != net.dim:
            raise ValueError(f"input_shape must hold the {net.dim} numbers of the flow, got {tuple(inputs)}")
        if embedding_net is None and conditions.numel() != net.context_dim:
            raise ValueError(
                f"condition_shape must hold the {net.context_dim} numbers of the flow's context, got "
                f"{tuple(conditions)}; or pass the embedding_net that makes them"
            )
        super().__init__(net, inputs, conditions)
        self._embedding_net = nn.Identity() if embedding_net is None else embedding_net
        self._unconstrain: Any = unconstrain  # whose results torch types as optional

    @property
    def embedding_net(self) -> nn.Module:
        """Returns the network that makes the flow's context of a condition."""
        return self._embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Returns log-densities, with shape (S, B).

        In training mode the blocks take their own steps, in evaluation mode those that the flow has for evaluation.

        Arguments:
            input: Inputs, with shape (S, B, *input_shape) or (B, *input_shape).
            condition: Conditions, with shape (B, *condition_shape) or (S, B, *condition_shape). Axes of length 1
                broadcast.
            kwargs: Arguments of `jkoflow.JKOFlow.log_prob`, such as ``tol=1e-3``.
        """
        input = input.unsqueeze(0) if input.dim() <= len(self.input_shape) + 1 else input
        rows, context, leading = self._rows(input, condition)
        rows, logdet = self._unbounded(rows)
        log_prob = self.net.log_prob(rows, context, validate=False, **self._stepping(kwargs))
        return (log_prob + logdet).reshape(leading)

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Returns minus the log-densities (B,) of inputs (B, *input_shape) given conditions (B, *condition_shape)."""
        return -self.log_prob(input.unsqueeze(0), condition, **kwargs)[0]

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int], condition: Tensor, **kwargs: Any) -> Tensor:
        """Draws inputs, with shape (*sample_shape, B, *input_shape), for conditions (B, *condition_shape).

        ``kwargs`` are arguments of `jkoflow.JKOFlow.sample`, such as ``generator``.
        """
        context, shape = self._context_of_samples(sample_shape, condition)
        rows = self.net.rsample(len(context), context, validate=False, **self._stepping(kwargs))
        rows = rows if self._unconstrain is None else self._unconstrain.inv(rows)
        return rows.reshape(shape + self.input_shape)

    def sample_and_log_prob(
        self, sample_shape: Sequence[int], condition: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Draws inputs as `sample` does, and their log-densities (*sample_shape, B), with gradients of both."""
        context, shape = self._context_of_samples(sample_shape, condition)
        rows, log_prob = self.net.sample_and_log_prob(len(context), context, validate=False, **self._stepping(kwargs))
        if self._unconstrain is not None:
            free, rows = rows, self._unconstrain.inv(rows)
            log_prob = log_prob + self._unconstrain.log_abs_det_jacobian(rows, free)
        return rows.reshape(shape + self.input_shape), log_prob.reshape(shape)

    def inverse_transform(self, input: Tensor, condition: Tensor) -> Tensor:
        """Returns the noise (..., d) of inputs (..., *input_shape) and conditions, whose leading axes broadcast."""
        rows, context, leading = self._rows(input, condition)
        noise = self.net(self._unbounded(rows)[0], context, validate=False, **self._stepping({}))[0]
        return noise.reshape(*leading, self.net.dim)

    def _rows(self, input: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
        """Returns inputs (N, d), their context (N, c) and their leading axes, to which those of both broadcast."""
        self._check_input_shape(input)
        context, given = self._context(condition), input.shape[: input.dim() - len(self.input_shape)]
        try:
            leading = torch.broadcast_shapes(given, context.shape[:-1])
        except RuntimeError as error:
            raise RuntimeError(
                f"input and condition must have leading axes that broadcast, got {tuple(given)} and "
                f"{tuple(context.shape[:-1])}; repeat the condition for each input"
            ) from error
        rows = input.expand(leading + self.input_shape).reshape(-1, self.net.dim)
        return rows, context.expand(*leading, context.shape[-1]).reshape(-1, context.shape[-1]), leading

    def _context_of_samples(self, sample_shape: Sequence[int], condition: Tensor) -> tuple[Tensor, torch.Size]:
        """Returns one row of context (N, c) for each sample, and the axes that samples are returned in."""
        context = self._context(condition)
        shape = torch.Size(sample_shape) + context.shape[:-1]
        return context.expand(*shape, context.shape[-1]).reshape(-1, context.shape[-1]), shape

    def _context(self, condition: Tensor) -> Tensor:
        """Returns the flow's context (..., c) of conditions (..., *condition_shape)."""
        self._check_condition_shape(condition)
        leading = condition.shape[: condition.dim() - len(self.condition_shape)]
        rows = condition.reshape(-1, *self.condition_shape)  # embeddings take a single axis of conditions
        return self._embedding_net(rows).reshape(*leading, -1)

    def _unbounded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns inputs (N, d) where the flow knows them, and the logdet (N,) of the way there."""
        if self._unconstrain is None:
            return rows, rows.new_zeros(len(rows))
        free = self._unconstrain(rows)
        return free, self._unconstrain.log_abs_det_jacobian(rows, free)

    def _stepping(self, options: dict[str, Any]) -> dict[str, Any]:
        """Returns the options of a call, and the blocks' own steps in training mode unless the options have others."""
        if not self.training or "num_steps" in options or "tol" in options:
            return options
        return {"num_steps": [block.grid for block in self.net.stack], **options}


def build_jko(
    batch_x: Tensor,
    batch_y: Tensor,
    z_score_x: ZScore = "independent",
    z_score_y: ZScore = "independent",
    hidden: Sequence[int] = (64, 64),
    blocks: int = 1,
    num_steps: int | Grid = 4,
    activation: str = "tanh",
    embedding_net: nn.Module | None = None,
    x_dist: Distribution | None = None,
) -> JKODensityEstimator:
    r"""Builds an estimator of :math:`p(x \mid y)` that is trained end to end, with the arguments of sbi's builders.

    All blocks are free (they have no movement penalty) and begin as the identity, with a first layer as fine as the
    details that the batch can show (`jkoflow.training.first_layer`).

    Arguments:
        batch_x: Inputs, from which shape and moments are taken, with shape (N, *input_shape), N at least 2.
        batch_y: Conditions, likewise.
        z_score_x: How inputs are brought to one scale: ``"independent"``, each column by its mean and deviation;
            ``"structured"``, all by common ones; ``"transform_to_unconstrained"``, by the map of the support of
            ``x_dist`` to unbounded numbers, and then independently: samples then never leave the support; ``"none"``.
        z_score_y: How conditions are brought to one scale before the embedding: ``"independent"``, ``"structured"`` or
            ``"none"``; as in sbi, ``"transform_to_unconstrained"`` stands for ``"none"`` here.
        hidden: Widths of the hidden layers of every block.
        blocks: Number of blocks.
        num_steps: Runge-Kutta steps of a block in training; in evaluation it takes twice as many.
        activation: Activation, see `jkoflow.MLPVelocity`.
        embedding_net: Network that makes the flow's context of a condition; its output is flattened. The identity if
            None.
        x_dist: Distribution whose support the inputs are in, such as the prior.

    Returns:
        An untrained estimator.

    Raises:
        ValueError: If a way of scaling is unknown, ``x_dist`` is missing, there is no block, or the batch has no two
            finite rows.

    Example:
        >>> theta, x = torch.randn(1000, 2), torch.randn(1000, 5, 3)
        >>> estimator = build_jko(theta, x, z_score_y="structured", embedding_net=torch.nn.Flatten())
        >>> estimator.loss(theta, x).shape
        torch.Size([1000])
    """
    if blocks < 1:
        raise ValueError(f"blocks must be at least 1, got {blocks}")
    unconstrain: Any = None
    if z_score_x == "transform_to_unconstrained":
        if x_dist is None:
            raise ValueError("x_dist must be a distribution with the inputs' support to be transformed by, got None")
        unconstrain = mcmc_transform(x_dist, device=batch_x.device)
    shape_x, shape_y = batch_x.shape[1:], batch_y.shape[1:]
    rows = batch_x.flatten(1)
    rows = rows if unconstrain is None else unconstrain(rows)
    mean, std = _moments(rows, "independent" if unconstrain is not None else z_score_x)
    embedding = nn.Identity() if embedding_net is None else embedding_net
    scales_y, structured_y = z_score_parser(z_score_y)
    if scales_y:
        embedding = nn.Sequential(standardizing_net(batch_y, structured_y), embedding)
    flow = JKOFlow(rows.shape[1], (), mean, std)
    context = _embedded(embedding, batch_y)
    scale = first_layer_scale(flow.enter(rows)[0], context)
    flow = flow.with_blocks([_free_block(flow, context, hidden, num_steps, activation, scale) for _ in range(blocks)])
    flow.eval_num_steps = REFINEMENT * flow.stack[0].num_steps
    return JKODensityEstimator(flow, embedding, shape_x, shape_y, unconstrain)


def density_estimator(
    hidden: Sequence[int] = (64, 64),
    blocks: int = 1,
    num_steps: int | Grid = 4,
    activation: str = "tanh",
    *,
    z_score_theta: ZScore = "independent",
    z_score_x: ZScore = "independent",
    embedding_net: nn.Module | None = None,
    x_dist: Distribution | None = None,
    of: Literal["posterior", "likelihood"] | None = None,
) -> ConditionalEstimatorBuilder[JKODensityEstimator]:
    r"""Returns what NPE and NLE take as ``density_estimator``: a function that builds an estimator for simulations.

    Arguments:
        hidden: Widths of the hidden layers of every block.
        blocks: Number of blocks.
        num_steps: Runge-Kutta steps of a block in training; in evaluation it takes twice as many.
        activation: Activation, see `jkoflow.MLPVelocity`.
        z_score_theta: How parameters are brought to one scale, see `build_jko`.
        z_score_x: How observations are.
        embedding_net: Network for the condition: the observations of a posterior, the parameters of a likelihood.
        x_dist: Distribution with the support of what the density is of, for ``"transform_to_unconstrained"``.
        of: What the density is: :math:`p(\theta \mid x)` of a ``"posterior"`` or :math:`p(x \mid \theta)` of a
            ``"likelihood"``. None asks the trainer that calls the function: a likelihood for NLE, else a posterior.

    Returns:
        A function of parameters (N, ...) and observations (N, ...), which can be pickled.

    Raises:
        ValueError: If ``of`` is neither, or None.

    Example:
        >>> build = density_estimator(hidden=(64, 64))
        >>> estimator = build(torch.randn(1000, 2), torch.randn(1000, 3))
        >>> estimator.input_shape, estimator.condition_shape
        (torch.Size([2]), torch.Size([3]))

        In sbi this is ``NPE(prior, density_estimator=density_estimator(hidden=(64, 64)))``.
    """
    if of not in ("posterior", "likelihood", None):
        raise ValueError(f"of must be 'posterior', 'likelihood' or None, got {of!r}")
    options = {"hidden": tuple(hidden), "blocks": blocks, "num_steps": num_steps, "activation": activation}
    return partial(_build, of, z_score_theta, z_score_x, {**options, "embedding_net": embedding_net, "x_dist": x_dist})


def _build(
    of: str | None,
    z_score_theta: ZScore,
    z_score_x: ZScore,
    options: dict[str, Any],
    theta: Tensor,
    x: Tensor,
) -> JKODensityEstimator:
    if (_asked_for() if of is None else of) == "likelihood":
        return build_jko(x, theta, z_score_x, z_score_theta, **options)
    return build_jko(theta, x, z_score_theta, z_score_x, **options)


def _asked_for() -> str:
    """Returns which density the trainer wants that has called us: sbi gives NPE's and NLE's builders the same."""
    frame = sys._getframe(1)
    while frame is not None:
        trainer = frame.f_locals.get("self")
        if isinstance(trainer, NeuralInference):
            return "likelihood" if isinstance(trainer, LikelihoodEstimatorTrainer) else "posterior"
        frame = frame.f_back
    return "posterior"


def _moments(rows: Tensor, z_score: ZScore) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation (d,) by which rows (N, d) are standardised."""
    scales, structured = z_score_parser(z_score)
    if not scales:
        return rows.new_zeros(rows.shape[1]), rows.new_ones(rows.shape[1])
    mean, std = z_standardization(rows, structured)
    return mean.expand(rows.shape[1]), std.expand(rows.shape[1])


@torch.no_grad()
def _embedded(embedding: nn.Module, conditions: Tensor) -> Tensor:
    """Returns conditions (N, ...) as they enter the flow (N, c), without a trace of it in the embedding."""
    modes = {module: module.training for module in embedding.modules()}
    embedding.eval()  # batches of one must do, and no statistics change
    try:
        return torch.cat([embedding(part).flatten(1) for part in conditions.split(EMBEDDED_AT_ONCE)])
    finally:
        for module, training in modes.items():
            module.training = training


def _free_block(
    flow: JKOFlow, context: Tensor, hidden: Sequence[int], num_steps: int | Grid, activation: str, scale: float
) -> Block:
    """Returns a block that begins as the identity."""
    velocity = MLPVelocity(flow.dim, hidden, activation, context_dim=context.shape[1])
    block = Block(velocity.to(context), num_steps)
    sharpen(block, scale)
    velocity.scale_output(0.0)
    return block
