"""Flows as torch.distributions: a distribution, and the transform from noise to data."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints
from torch.distributions.constraints import Constraint

from jkoflow.arrays import InputError
from jkoflow.density import Density
from jkoflow.errors import UserError
from jkoflow.inputs import Rows, in_order, take_conditions
from jkoflow.links import Link
from jkoflow.ops.grid import Steps


class DistributionError(UserError, NotImplementedError):
    """Raised if a flow cannot be a torch.distributions.Distribution; the message tells why, and what to call."""


class FlowDistribution(Distribution):
    """The density of a flow as a torch.distributions.Distribution; see `jkoflow.JKOFlow.distribution`.

    Events are points (d,) in the data's own units, and the axes of the context are batch axes. As for every
    distribution, mean, variance, entropy and the like raise NotImplementedError where nobody knows them.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}  # type: ignore[override] (of a property, as PyTorch's own do)
    has_rsample = True

    def __init__(
        self,
        flow: Density,
        context: Rows | None = None,
        num_steps: Steps | None = None,
        tol: float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        validates = type(self)._validate_args if validate_args is None else validate_args
        self.flow, self.num_steps, self.tol = flow, num_steps, tol
        self.context = _conditions(flow, context, validates)
        batch_shape = torch.Size() if self.context is None else self.context.shape[:-1]
        super().__init__(batch_shape, torch.Size((flow.dim,)), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Constraint:  # type: ignore[override]
        """Returns where the density is positive: everywhere, or within the bounds of the flow's links."""
        return support_of(self.flow)

    def expand(self, batch_shape: Sequence[int], _instance: FlowDistribution | None = None) -> FlowDistribution:
        """Returns the distribution with its batch axes expanded; no memory is taken for it."""
        new: Any = self._get_checked_instance(FlowDistribution, _instance)
        batch_shape = torch.Size(batch_shape)
        new.flow, new.num_steps, new.tol = self.flow, self.num_steps, self.tol
        if self.context is None:
            torch.empty(()).expand(self.batch_shape).expand(batch_shape)  # refuses what tensors cannot be expanded to
            new.context = None
        else:
            new.context = self.context.expand(*batch_shape, self.context.shape[-1])
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log-densities in nats of values (..., d) whose leading axes broadcast with the batch axes."""
        if self._validate_args:
            self._validate_sample(value)
        points, context, leading = _flattened(self.flow, value, self.context, "value")
        found = self.flow.log_prob(points, context, self.num_steps, validate=self._validate_args, tol=self.tol)
        return found.reshape(leading).expand(torch.broadcast_shapes(leading, self.batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws points with shape (*sample_shape, *batch_shape, d), through which gradients flow."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.flow.rsample(*self._drawing(shape), self.num_steps, validate=False, tol=self.tol).reshape(shape)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draws points as `rsample` does, and their log-densities in the same pass, with gradients through both.

        The log-densities agree with `log_prob` to the integrator's error, see `jkoflow.JKOFlow.sample_and_log_prob`.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        drawing = self._drawing(shape)
        x, log_p = self.flow.rsample_and_log_prob(*drawing, self.num_steps, validate=False, tol=self.tol)
        return x.reshape(shape), log_p.reshape(shape[:-1])

    @torch.no_grad()
    def sample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draws points and their log-densities in the same pass, without gradients."""
        return self.rsample_and_log_prob(sample_shape)

    def _drawing(self, shape: torch.Size) -> tuple[int, Tensor | None]:
        """Returns the number of points to draw for a shape (..., d), and the condition of each."""
        leading, context = shape[:-1], self.context
        if context is not None:
            context = context.expand(*leading, context.shape[-1]).reshape(-1, context.shape[-1])
        return leading.numel(), context

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self) is distribution_class():  # which may have no name to be pickled by
            return _restored, (self.__dict__,)
        return super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape: {self.batch_shape}, event_shape: {self.event_shape})"


class FlowTransform(Transform):
    """The map of a flow from noise to data as a torch.distributions.Transform; see `jkoflow.JKOFlow.transform`."""

    bijective = True
    domain = constraints.real_vector

    def __init__(
        self, flow: Density, context: Rows | None = None, num_steps: Steps | None = None, cache_size: int = 0
    ) -> None:
        super().__init__(cache_size=cache_size)
        self.flow, self.num_steps = flow, num_steps
        self.context = _conditions(flow, context, Distribution._validate_args)
        self.codomain = support_of(flow)
        self._cached_logdet: Tensor | None = None

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        """Returns the same transform with a cache for the last point, 1, or without one, 0."""
        return self if cache_size == self._cache_size else FlowTransform(*self._arguments(), cache_size)

    def _call(self, x: Tensor) -> Tensor:
        return self._carry(x, to_data=True)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._carry(y, to_data=False)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the data of noise x (..., d) and the log abs det of the Jacobian (...) in one pass, as zuko asks."""
        return self._move(x, to_data=True)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the log abs det of the Jacobian (...) at noise x (..., d), whose data are y.

        Without a cache it is integrated from y, so that a density is that of `jkoflow.JKOFlow.log_prob`.
        """
        if self._cache_size and self._cached_x_y[0] is x and self._cached_x_y[1] is y:
            assert self._cached_logdet is not None
            return self._cached_logdet
        return -self._move(y, to_data=False)[1]

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Returns the shape of the data of noise with some shape: the axes of the context come to it."""
        leading = torch.Size() if self.context is None else self.context.shape[:-1]
        return torch.broadcast_shapes(shape[:-1], leading) + shape[-1:]

    inverse_shape = forward_shape

    def _arguments(self) -> tuple[Density, Tensor | None, Steps | None]:
        return self.flow, self.context, self.num_steps

    def _carry(self, points: Tensor, to_data: bool) -> Tensor:
        if self._cache_size:  # what is asked for next is the Jacobian at this point
            moved, logdet = self._move(points, to_data)
            self._cached_logdet = logdet if to_data else -logdet
            return moved
        rows, context, leading = _flattened(self.flow, points, self.context, "x" if to_data else "y")
        moved = self.flow.carry(rows, context, self.num_steps, to_data, validate=False)
        return moved.reshape(*leading, self.flow.dim)

    def _move(self, points: Tensor, to_data: bool) -> tuple[Tensor, Tensor]:
        rows, context, leading = _flattened(self.flow, points, self.context, "x" if to_data else "y")
        move = self.flow.inverse if to_data else self.flow.forward
        moved, logdet = move(rows, context, self.num_steps, validate=False)
        return moved.reshape(*leading, self.flow.dim), logdet.reshape(leading)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.flow.dim})"


def distribution_class() -> type[FlowDistribution]:
    """Returns the class of the distributions of flows: Pyro's methods are among its own if Pyro has been imported.

    Pyro takes no distribution without them, and wraps those of PyTorch likewise.
    """
    return FlowDistribution if "pyro.distributions" not in sys.modules else _with_pyro()


@functools.cache
def _with_pyro() -> type[FlowDistribution]:
    from pyro.distributions.torch_distribution import TorchDistributionMixin

    name = FlowDistribution.__name__
    bases, members = (FlowDistribution, TorchDistributionMixin), {"__module__": __name__}
    return type(TorchDistributionMixin)(name, bases, members)  # type: ignore[call-arg] (a metaclass)


def _restored(state: dict[str, Any]) -> FlowDistribution:
    """Returns the distribution that was pickled or copied, of the class that distributions have here."""
    new = object.__new__(distribution_class())
    new.__dict__.update(state)
    return new


def support_of(flow: Density) -> Constraint:
    """Returns the set of points (d,) that a flow has a positive density at."""
    if flow.links is None:
        return constraints.real_vector
    columns = constraints.cat([_values_of(link) for link in flow.links.columns], dim=-1)
    return constraints.independent(columns, 1)


def _values_of(link: Link) -> Constraint:
    match link.kind:
        case "log":
            return constraints.greater_than(link.lower)
        case "reflected":
            return constraints.less_than(link.upper)
        case "logit":
            return constraints.interval(link.lower, link.upper)
        case _:
            return constraints.real


def no_distribution(*_: Any, **__: Any) -> NoReturn:
    """Refuses to make a distribution, or a transform, of a table's flow.

    Raises:
        DistributionError: Always.
    """
    raise DistributionError(
        "the rows of this flow have masses besides a density, or columns that are no numbers, for which "
        "torch.distributions has no form; call log_prob and sample, or train on columns that are all plain numbers"
    )


def _conditions(flow: Density, context: Rows | None, validate: bool) -> Tensor | None:
    context = in_order(context, flow.context_features, "context")
    return take_conditions(context, flow.context_dim, flow.standardize.mean, validate)


def _flattened(
    flow: Density, points: Tensor, context: Tensor | None, name: str
) -> tuple[Tensor, Tensor | None, torch.Size]:
    """Returns points (N, d) with their conditions (N, c), and the leading axes, of which N is the product."""
    if points.shape[-1:] != (flow.dim,):
        raise InputError(f"{name} must have shape (..., {flow.dim}) to match flow.dim, got {tuple(points.shape)}")
    if context is None:
        return points.reshape(-1, flow.dim), None, points.shape[:-1]
    leading = torch.broadcast_shapes(points.shape[:-1], context.shape[:-1])
    rows, conditions = (rows.expand(*leading, rows.shape[-1]) for rows in (points, context))
    return rows.reshape(-1, flow.dim), conditions.reshape(-1, context.shape[-1]), leading
