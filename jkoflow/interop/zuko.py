"""zuko's continuous normalizing flow on the fused kernels, and flows of jkoflow among zuko's.

`CNF` takes the place of ``zuko.flows.CNF``, and `FFJTransform` that of ``zuko.flows.FFJTransform``: the same arguments,
parameters and numbers. What no kernel covers is handed on to zuko, with a `jkoflow.FallbackWarning`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Transform
from zuko import flows as zuko_flows
from zuko.distributions import DiagNormal
from zuko.lazy import Flow, LazyDistribution, UnconditionalDistribution
from zuko.transforms import FreeFormJacobianTransform

from jkoflow.block import Block
from jkoflow.distribution import FlowDistribution
from jkoflow.flow import JKOFlow
from jkoflow.interop.zuko_network import read_network
from jkoflow.interop.zuko_steps import METHOD, integrate_in_common_steps
from jkoflow.ops import Adaptive, integrate
from jkoflow.ops.checks import Divergence
from jkoflow.ops.fallback import warn_fallback
from jkoflow.ops.grid import Steps as NumSteps
from jkoflow.ops.native import unsupported
from jkoflow.velocity import MLPField, MLPVelocity

__all__ = ["CNF", "FFJTransform", "FusedTransform", "LazyJKOFlow"]

Steps = Literal["batch", "row"]
"""Whose steps the solver takes: zuko's, which are the same for all rows of a call, or those of each row."""

MAX_STEPS = 100_000
"""Largest number of steps of a row; zuko has none."""


class FusedTransform(FreeFormJacobianTransform):
    """The transformation that `FFJTransform` returns: zuko's, integrated by the kernels.

    Arguments:
        field: Weights of the velocity.
        c: Context, with shape (..., c).
        steps: Whose steps the solver takes, see `FFJTransform`.
        arguments: Arguments of zuko's transformation, which computes what no kernel covers.
    """

    def __init__(self, field: MLPField, c: Tensor | None, steps: Steps, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._field, self._context = field, c
        self._steps: Steps = steps

    @property
    def inv(self) -> Transform:
        """Returns the transformation from t1 to t0."""
        arguments = {name: getattr(self, name) for name in ("f", "phi", "atol", "rtol", "exact")}
        return FusedTransform(self._field, self._context, self._steps, t0=self.t1, t1=self.t0, **arguments)

    def _call(self, x: Tensor) -> Tensor:
        if self._is_handed_on(x):
            return super()._call(x)
        return self._integrate(x, self.t0, self.t1, "none")[0]

    def _inverse(self, y: Tensor) -> Tensor:
        if self._is_handed_on(y):
            return super()._inverse(y)
        return self._integrate(y, self.t1, self.t0, "none")[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns y = f(x) and the log abs det of the Jacobian at x."""
        if self._is_handed_on(x):
            return super().call_and_ladj(x)
        return self._integrate(x, self.t0, self.t1, "exact" if self.exact else "hutchinson")

    def _is_handed_on(self, x: Tensor) -> bool:
        """Tells, with a warning, whether no kernel can integrate such points."""
        reason = unsupported(self._field, x, "exact" if self.exact else "hutchinson", None, "auto", "auto")
        if reason is not None:
            warn_fallback(reason, "zuko's own solver")
        return reason is not None

    def _integrate(self, x: Tensor, t0: Any, t1: Any, divergence: Divergence) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(x) if divergence == "hutchinson" else None  # drawn as zuko draws it
        leading, context = x.shape[:-1], self._context
        if context is not None:
            context = context.to(torch.promote_types(context.dtype, x.dtype))
            leading = torch.broadcast_shapes(leading, context.shape[:-1])
        rows, conditions, probe = (_rows(tensor, leading) for tensor in (x, context, noise))
        assert rows is not None
        between = float(t0), float(t1)
        if self._steps == "batch":
            tolerances = self.rtol, self.atol
            y, ladj = integrate_in_common_steps(self._field, rows, conditions, probe, *between, *tolerances, divergence)
        else:
            y, ladj, _ = integrate(
                self._field,
                rows,
                context=conditions,
                t0=between[0],
                t1=between[1],
                method=METHOD,
                rtol=self.rtol,
                atol=self.atol,
                max_steps=MAX_STEPS,
                divergence=divergence,
                noise=probe,
            )
        return y.reshape(*leading, y.shape[1]), ladj.reshape(leading)


class FFJTransform(zuko_flows.FFJTransform):
    """The lazy transformation of zuko's continuous flow, on the fused kernels.

    Parameters, buffers, defaults and the directions of the map are zuko's; so are the numbers, up to rounding, since
    the kernels take the steps that zuko's solver takes. Gradients are the exact ones of these steps. As in zuko, the
    parameters get theirs in training mode only.

    Arguments:
        features: Number of features.
        context: Number of context features.
        freqs: Number of frequencies of the embedding of time.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        exact: Whether the divergence is exact, or Hutchinson's estimate with one probe for each call.
        steps: ``"batch"`` takes zuko's steps, the same for all rows of a call. With ``"row"`` every row has its own,
            see `jkoflow.integrate`: a result does not depend on the other rows, and a training step is up to 3 times
            faster still. The two differ by as much as the tolerances leave open.
        kwargs: Arguments of ``zuko.nn.MLP``: ``hidden_features``, ``activation`` and others.

    Raises:
        ValueError: If ``steps`` is neither of the two.

    Example:
        >>> transform = FFJTransform(3, 4)
        >>> transform(torch.zeros(4))(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        freqs: int = 3,
        atol: float = 1e-6,
        rtol: float = 1e-5,
        exact: bool = True,
        steps: Steps = "batch",
        **kwargs: Any,
    ) -> None:
        super().__init__(features, context, freqs, atol, rtol, exact, **kwargs)
        if steps not in ("batch", "row"):
            raise ValueError(f"steps must be batch or row, got {steps!r}")
        self.steps: Steps = steps

    def forward(self, c: Tensor | None = None) -> Transform:
        """Returns the transformation y = f(x | c)."""
        zukos = super().forward(c)
        field = read_network(self)
        if isinstance(field, str):
            warn_fallback(field, "zuko's own solver")
            return zukos
        names = ("f", "t0", "t1", "phi", "atol", "rtol", "exact")
        return FusedTransform(field, c, self.steps, **{name: getattr(zukos, name) for name in names})


class CNF(zuko_flows.CNF):
    """zuko's continuous normalizing flow on the fused kernels: a drop-in for ``zuko.flows.CNF``.

    A ``state_dict`` of the one loads into the other, and the same seed gives the same parameters.

    Arguments:
        features: Number of features.
        context: Number of context features.
        kwargs: Arguments of `FFJTransform`.

    References:
        | FFJORD: Free-form continuous dynamics for scalable reversible generative models (Grathwohl et al., 2018)
        | https://arxiv.org/abs/1810.01367

    Example:
        >>> flow = CNF(3, 5, hidden_features=(32, 32))
        >>> given = flow(torch.zeros(10, 5))
        >>> x, log_p = given.rsample_and_log_prob((7,))
        >>> x.shape, log_p.shape
        (torch.Size([7, 10, 3]), torch.Size([7, 10]))
    """

    def __init__(self, features: int, context: int = 0, **kwargs: Any) -> None:
        base = UnconditionalDistribution(DiagNormal, loc=torch.zeros(features), scale=torch.ones(features), buffer=True)
        Flow.__init__(self, FFJTransform(features, context, **kwargs), base)


class LazyJKOFlow(LazyDistribution):
    """A `jkoflow.JKOFlow` as a lazy distribution of zuko, such as lampe trains.

    Arguments:
        flow: The flow, which becomes a submodule. Its context is what zuko calls ``c``.
        num_steps: Runge-Kutta steps per block, or a grid, see `jkoflow.JKOFlow.log_prob`.
        tol: Largest error of a log-density in nats, in place of ``num_steps``.

    Example:
        >>> flow = LazyJKOFlow.of_free_blocks(3, 2, blocks=2)
        >>> flow(torch.zeros(10, 2)).sample((5,)).shape
        torch.Size([5, 10, 3])
    """

    def __init__(self, flow: JKOFlow, num_steps: NumSteps | None = None, tol: float | None = None) -> None:
        super().__init__()
        self.flow, self.num_steps, self.tol = flow, num_steps, tol

    @classmethod
    def of_free_blocks(
        cls,
        features: int,
        context: int = 0,
        blocks: int = 2,
        hidden_features: Sequence[int] = (64, 64),
        activation: str = "tanh",
        num_steps: NumSteps = Adaptive(),  # noqa: B008 (immutable)
    ) -> LazyJKOFlow:
        """Builds a flow of free blocks, which have no JKO penalty, to be trained end to end on its ``log_prob``.

        Arguments:
            features: Number of features.
            context: Number of context features.
            blocks: Number of blocks.
            hidden_features: Widths of the hidden layers of each block's velocity.
            activation: Activation, see `jkoflow.MLPVelocity`.
            num_steps: Runge-Kutta steps per block, or a grid. The default adapts them to every row: a training that
                nobody watches learns to exploit a fixed number.
        """
        velocities = (MLPVelocity(features, hidden_features, activation, context_dim=context) for _ in range(blocks))
        return cls(JKOFlow(features, map(Block, velocities)), num_steps)

    def forward(self, c: Tensor | None = None) -> FlowDistribution:
        """Returns the distribution p(X | c)."""
        return self.flow.distribution(c, self.num_steps, self.tol)


def _rows(tensor: Tensor | None, leading: torch.Size) -> Tensor | None:
    """Returns a tensor (..., k), whose axes broadcast to the leading ones, as rows (N, k)."""
    return None if tensor is None else tensor.expand(*leading, tensor.shape[-1]).reshape(-1, tensor.shape[-1])
