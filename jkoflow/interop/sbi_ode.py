"""The ordinary differential equations of sbi's FMPE and NPSE, solved by jkoflow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, get_args

import sbi.inference.potentials.vector_field_potential as sbi_potential
import sbi.samplers.ode_solvers as sbi_solvers
import torch
from sbi.inference.posteriors.posterior_parameters import VectorFieldPosteriorParameters
from sbi.neural_nets.estimators import FlowMatchingEstimator
from sbi.samplers.ode_solvers import NeuralODE, NeuralODEFunc
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import Transform
from zuko.distributions import DiagNormal, NormalizingFlow

from jkoflow.interop.sbi_fields import FoldedVelocity, folded_estimator
from jkoflow.ops import integrate

BACKEND = "jkoflow"
"""Name of the backend."""

MOST_STEPS = 100_000
"""Largest number of adaptive steps; sbi's own solver has no limit."""

PROBES = 3
"""Rows at which the weights of a recognised field are compared with a call of the estimator."""

AGREEMENT = 1e-4
"""Largest difference of the two, relative to the size of the field, that rounding may leave."""


def register_ode_backend() -> None:
    """Makes ``"jkoflow"`` a backend of sbi's neural ODEs, beside its own ``"zuko"``, until the program ends.

    sbi has no registry for them, so the function changes three things in sbi: ``build_neural_ode``, in
    `sbi.samplers.ode_solvers` and where the potentials look it up, becomes one that makes a `JKONeuralODE` for this
    name and hands every other on; and ``neural_ode_backend`` of `VectorFieldPosteriorParameters` may have this value.
    What does not ask for the backend stays as it is. The function may be called again.

    ``inference.build_posterior(posterior_parameters=VectorFieldPosteriorParameters(neural_ode_backend="jkoflow"))`` of
    FMPE or NPSE then gives a posterior with it.
    """
    theirs = sbi_potential.build_neural_ode
    if getattr(theirs, "knows_jkoflow", False):
        return

    def build_neural_ode(*args: Any, backend: str = "zuko", **kwargs: Any) -> NeuralODE:
        return JKONeuralODE(*args, **kwargs) if backend == BACKEND else theirs(*args, backend=backend, **kwargs)

    build_neural_ode.knows_jkoflow = True  # type: ignore[attr-defined]
    sbi_potential.build_neural_ode = sbi_solvers.build_neural_ode = build_neural_ode
    field = VectorFieldPosteriorParameters.__dataclass_fields__["neural_ode_backend"]
    field.type = Literal[*get_args(field.type), BACKEND]


class JKONeuralODE(NeuralODE):
    """A flow of sbi's with the solver of `jkoflow.integrate`; arguments as those of sbi's ``ZukoNeuralODE``.

    The field is recognised if it is that of a flow matching estimator (FMPE) around an `MLPVectorField`, or around
    sbi's own ``"mlp"`` without layer norm and skip connections, which is an MLP once the time is given; its weights are
    compared with what the estimator computes. Then the condition is embedded once, and every stage is a call of a
    kernel. Any other field is called as it is, with its divergence by autograd, which a `jkoflow.ops.FallbackWarning`
    tells.

    Arguments:
        f: Function of positions, conditions and times; a method of an estimator.
        net: Network of the function.
        mean_base: Mean of the base, with shape (1, d).
        std_base: Deviation of the base, with shape (1, d).
        condition_shape: Shape of a condition.
        t_min: Time of the data.
        t_max: Time of the base.
        atol: Absolute tolerance of a step.
        rtol: Relative tolerance of a step.
        exact: Whether the divergence is exact, or an unbiased estimate (Hutchinson's) with one Gaussian probe.
    """

    def __init__(
        self,
        f: NeuralODEFunc,
        net: nn.Module,
        mean_base: Tensor,
        std_base: Tensor,
        condition_shape: Size,
        t_min: float = 0.0,
        t_max: float = 1.0,
        atol: float = 1e-6,
        rtol: float = 1e-5,
        exact: bool = True,
    ) -> None:
        super().__init__(f, net, mean_base, std_base, condition_shape, t_min, t_max, atol=atol, rtol=rtol, exact=exact)

    def get_distribution(self, condition: Tensor, **kwargs: Any) -> NormalizingFlow:
        """Returns the distribution given conditions (*, *condition_shape), with ``log_prob`` and ``sample``.

        ``kwargs`` are ``atol``, ``rtol`` and ``exact``.

        Raises:
            ValueError: If the condition has another shape.
        """
        leading = condition.shape[: max(0, condition.dim() - len(self.condition_shape))]
        if condition.shape != leading + self.condition_shape:
            raise ValueError(
                f"condition must have shape (..., {', '.join(map(str, self.condition_shape))}), got "
                f"{tuple(condition.shape)}"
            )
        velocity, context = self._field(condition.reshape(-1, *self.condition_shape))
        context = context.reshape(*leading, *context.shape[1:])
        transform = ODETransform(velocity, context, len(leading), float(self.t_min), float(self.t_max), **kwargs)
        return NormalizingFlow(transform, DiagNormal(self.mean_base, self.std_base).expand(leading))

    def _field(self, conditions: Tensor) -> tuple[Callable[..., Tensor], Tensor]:
        """Returns a velocity for `jkoflow.integrate`, and the context (N, ...) of conditions (N, ...)."""
        estimator = getattr(self.f, "__self__", None)
        if type(estimator) is FlowMatchingEstimator and self.f == estimator.ode_fn and estimator.net is self.net:
            folded = folded_estimator(estimator)
            if folded is not None:
                context = estimator.embedding_net(conditions).flatten(1)
                if _agree(folded, context, self.f, conditions, (float(self.t_min), float(self.t_max))):
                    return folded, context
        return lambda x, t, context: self.f(x, context, t), conditions


class ODETransform(Transform):
    r"""The map :math:`x(t_0) \mapsto x(t_1)` along a velocity, with its logdet, as zuko's distributions take it.

    Arguments:
        velocity: What `jkoflow.integrate` takes.
        context: Its context, with leading axes that broadcast to those of the rows.
        leading: Number of these axes.
        t0: Start time.
        t1: End time.
        atol: Absolute tolerance of a step.
        rtol: Relative tolerance of a step.
        exact: Whether the divergence is exact, or Hutchinson's estimate.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self,
        velocity: Callable[..., Tensor],
        context: Tensor,
        leading: int,
        t0: float,
        t1: float,
        atol: float = 1e-6,
        rtol: float = 1e-5,
        exact: bool = True,
    ) -> None:
        super().__init__()
        self.velocity, self.context, self.leading = velocity, context, leading
        self.t0, self.t1, self.atol, self.rtol, self.exact = t0, t1, atol, rtol, exact

    @property
    def inv(self) -> ODETransform:
        """Returns the map back."""
        back = copy.copy(self)
        back.t0, back.t1 = self.t1, self.t0
        return back

    def _call(self, x: Tensor) -> Tensor:
        return self._integrate(x, "none")[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inv._call(y)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the image (*, d) of rows x (*, d) and the logdet (*) of the map there."""
        return self._integrate(x, "exact" if self.exact else "hutchinson")

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the logdet (*) of the map at rows x (*, d)."""
        return self.call_and_ladj(x)[1]

    def _integrate(self, x: Tensor, divergence: Any) -> tuple[Tensor, Tensor]:
        event = self.context.shape[self.leading :]
        leading = torch.broadcast_shapes(x.shape[:-1], self.context.shape[: self.leading])
        rows = x.expand(*leading, x.shape[-1]).reshape(-1, x.shape[-1])
        context = self.context.expand(*leading, *event).reshape(-1, *event)
        result = integrate(
            self.velocity,
            rows,
            context=context,
            t0=self.t0,
            t1=self.t1,
            method="dopri5",
            rtol=self.rtol,
            atol=self.atol,
            max_steps=MOST_STEPS,
            divergence=divergence,
            noise=torch.randn_like(rows) if divergence == "hutchinson" else None,
        )
        return result.x.reshape(*leading, x.shape[-1]), result.logdet.reshape(leading)


def _agree(
    folded: FoldedVelocity, context: Tensor, f: NeuralODEFunc, conditions: Tensor, times: tuple[float, float]
) -> bool:
    """Tells whether a folded field is what the estimator computes, at some rows and times."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(PROBES, folded.dim, generator=draw).to(context)
    context, conditions = context[:1].expand(PROBES, -1), conditions[:1].expand(PROBES, *conditions.shape[1:])
    with torch.no_grad():
        for share in (0.2, 0.7):
            t = times[0] + share * (times[1] - times[0])
            ours, theirs = folded(rows, t, context), f(rows, conditions, rows.new_full((PROBES,), t))
            if not float((ours - theirs).abs().max()) <= AGREEMENT * (1 + float(theirs.abs().max())):
                return False
    return True
