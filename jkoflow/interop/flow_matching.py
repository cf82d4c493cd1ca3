"""The solver of flow_matching: samples and likelihoods of a velocity that flow matching has trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from flow_matching.solver import ODESolver as TheirSolver
from flow_matching.utils import ModelWrapper
from torch import Tensor

from jkoflow.ops import Integrated, integrate
from jkoflow.ops.grid import MOST_STEPS
from jkoflow.velocity import Velocity
from jkoflow.velocity.altered import altered

__all__ = ["ODESolver"]

FIXED = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun", "rk4": "rk4"}
"""Our names of the methods with steps of a given size, by torchdiffeq's, which flow_matching uses."""

ADAPTIVE = ("dopri5", "bosh3")
"""Methods that choose their steps, by the names of both."""

EQUAL = 1e-6
"""Share of the whole interval by which times may be off equal distances, which float32 cannot hold better."""


class ODESolver(TheirSolver):
    r"""flow_matching's ``ODESolver`` on the fused kernels: change the import, and keep the calls.

    Fused are velocities of jkoflow, as they are or as the ``model`` of a plain ``ModelWrapper``, on rows (B, d), with
    at most a ``context`` (B, c) beside x and t, by the methods ``"euler"``, ``"midpoint"``, ``"heun2"``, ``"rk4"``,
    ``"dopri5"`` and ``"bosh3"``. Steps are those that torchdiffeq takes: of ``step_size`` from the first time to the
    last, the last one shorter if it must be, or from each time of ``time_grid`` to the next; values at times inside a
    step are interpolated in a straight line. Adaptive methods give every row steps of its own. What else comes goes to
    flow_matching's own solver.

    In one thing the numbers differ on purpose: with ``enable_grad=True`` a likelihood has the gradient of the discrete
    map, in x, the context and the parameters, where flow_matching 1.0 leaves out what goes through the velocity.

    Arguments:
        velocity_model: Velocity or model, called as ``velocity_model(x=x, t=t, **model_extras)``.

    References:
        | Flow Matching Guide and Code (Lipman et al., 2024)
        | https://arxiv.org/abs/2412.06264

    Example:
        >>> solver = ODESolver(jkoflow.MLPVelocity(2))
        >>> solver.sample(torch.randn(5, 2), step_size=0.1, method="midpoint").shape
        torch.Size([5, 2])
    """

    def sample(
        self,
        x_init: Tensor,
        step_size: float | None,
        method: str = "euler",
        atol: float = 1e-5,
        rtol: float = 1e-5,
        time_grid: Tensor = torch.tensor([0.0, 1.0]),  # noqa: B008 (never changed)
        return_intermediates: bool = False,
        enable_grad: bool = False,
        **model_extras: Any,
    ) -> Tensor:
        """Carries points along the velocity.

        Arguments:
            x_init: Points at the first time, with shape (B, d).
            step_size: Size of the steps; None for one from each time to the next, and for adaptive methods.
            method: Runge-Kutta method, by torchdiffeq's name.
            atol: Absolute tolerance of an adaptive step.
            rtol: Relative tolerance of an adaptive step.
            time_grid: Increasing or decreasing times.
            return_intermediates: Whether to return the points at all times.
            enable_grad: Whether to keep the graph for gradients.
            model_extras: Further arguments of the model; ``context`` (B, c) for a velocity of ours.

        Returns:
            Points at the last time (B, d), or at all times (T, B, d).
        """
        with torch.set_grad_enabled(enable_grad):
            velocity = self._fused(x_init, step_size, method, (rtol, atol), time_grid, model_extras)
            if velocity is None:
                found = super().sample(
                    x_init, step_size, method, atol, rtol, time_grid, return_intermediates, enable_grad, **model_extras
                )
                return cast("Tensor", found)
            how = _Solve(method, step_size, rtol, atol, time_grid, return_intermediates)
            return how.solve(velocity, x_init, model_extras.get("context"))[0]

    def compute_likelihood(
        self,
        x_1: Tensor,
        log_p0: Callable[[Tensor], Tensor],
        step_size: float | None,
        method: str = "euler",
        atol: float = 1e-5,
        rtol: float = 1e-5,
        time_grid: Tensor = torch.tensor([1.0, 0.0]),  # noqa: B008 (never changed)
        return_intermediates: bool = False,
        exact_divergence: bool = False,
        enable_grad: bool = False,
        **model_extras: Any,
    ) -> tuple[Tensor, Tensor]:
        """Carries data back to the source, and returns their log-likelihoods.

        Arguments:
            x_1: Data, with shape (B, d).
            log_p0: Log-density of the source, a function of points (B, d).
            step_size: Size of the steps, see `sample`.
            method: Runge-Kutta method.
            atol: Absolute tolerance of an adaptive step.
            rtol: Relative tolerance of an adaptive step.
            time_grid: Decreasing times from 1 to 0.
            return_intermediates: Whether to return the points at all times.
            exact_divergence: Whether the divergence is exact, or Hutchinson's estimate with one probe of signs. The
                exact one costs our kernels little, and has no noise.
            enable_grad: Whether to keep the graph for gradients.
            model_extras: Further arguments of the model.

        Returns:
            Points at time 0 (B, d), or at all times (T, B, d), and log-likelihoods (B,).

        Raises:
            AssertionError: If the times do not go from 1 to 0.
        """
        with torch.set_grad_enabled(enable_grad):
            velocity = self._fused(x_1, step_size, method, (rtol, atol), time_grid, model_extras)
            if velocity is None:
                found = super().compute_likelihood(
                    x_1,
                    log_p0,
                    step_size,
                    method,
                    atol,
                    rtol,
                    time_grid,
                    return_intermediates,
                    exact_divergence,
                    enable_grad,
                    **model_extras,
                )
                return cast("tuple[Tensor, Tensor]", found)
            if time_grid[0] != 1.0 or time_grid[-1] != 0.0:
                raise AssertionError(f"time_grid must go from 1 to 0, got {time_grid}")
            # signs as flow_matching draws them, so that a seed gives the same numbers
            noise = None if exact_divergence else torch.where(torch.randn_like(x_1) < 0, 1.0, -1.0).to(x_1)
            how = _Solve(method, step_size, rtol, atol, time_grid, return_intermediates)
            kind = "exact" if exact_divergence else "hutchinson"
            points, logdet = how.solve(velocity, x_1, model_extras.get("context"), kind, noise)
        return points, log_p0(points[-1] if return_intermediates else points) + logdet

    def _fused(
        self,
        x: Tensor,
        step_size: float | None,
        method: str,
        tolerances: tuple[object, object],
        time_grid: Tensor,
        extras: dict[str, Any],
    ) -> Velocity | None:
        """Returns the velocity of a call that the kernels can run as it is asked for; None if flow_matching has to."""
        velocity = _velocity_of(self.velocity_model)
        if velocity is None or not set(extras) <= {"context"} or time_grid.dim() != 1 or time_grid.requires_grad:
            return None
        if method in ADAPTIVE:
            numbers = all(isinstance(tolerance, (int, float)) for tolerance in tolerances)
            known = step_size is None and numbers and tolerances[1] > 0  # type: ignore[operator]
        else:
            known = method in FIXED and (step_size is None or step_size > 0)
        steps = time_grid.diff()
        ordered = len(steps) > 0 and bool((steps > 0).all() or (steps < 0).all())
        fits = x.dim() == 2 and x.shape[1] == velocity.dim and x.is_floating_point() and time_grid.is_floating_point()
        return velocity if known and ordered and fits else None


class _Solve(NamedTuple):
    """How a call is to be solved."""

    method: str
    step_size: float | None
    rtol: float
    atol: float
    time_grid: Tensor
    intermediates: bool

    def solve(
        self,
        velocity: Velocity,
        x: Tensor,
        context: Tensor | None,
        divergence: Literal["exact", "hutchinson", "none"] = "none",
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns x at the last time, or at all times, and the logdet (B,)."""
        context = None if context is None else context.expand(len(x), -1)
        run = partial(integrate, velocity, context=context, divergence=divergence, noise=noise)
        if self.method in ADAPTIVE:
            options = {"method": self.method, "rtol": self.rtol, "atol": self.atol, "max_steps": MOST_STEPS}
            result = run(x, times=self.time_grid.tolist(), **options)
            return self._wanted(result.path, result.x), result.logdet
        run = partial(run, method=FIXED[self.method], keep_path=self.intermediates)
        if self.step_size is not None:
            return self._in_steps_of(self.step_size, run, x)
        times = self.time_grid.double()
        even = torch.linspace(float(times[0]), float(times[-1]), len(times), dtype=times.dtype, device=times.device)
        if float((times - even).abs().max()) <= EQUAL * abs(float(times[-1] - times[0])):
            result = run(x, t0=float(times[0]), t1=float(times[-1]), num_steps=len(times) - 1)
        else:
            result = run(x, times=times.tolist(), num_steps=1)
        return self._wanted(result.path, result.x), result.logdet

    def _in_steps_of(self, step_size: float, run: Callable[..., Integrated], x: Tensor) -> tuple[Tensor, Tensor]:
        """Takes equal steps from the first time, and a last one to the last time, as torchdiffeq does."""
        sign = 1.0 if self.time_grid[-1] > self.time_grid[0] else -1.0
        times = sign * self.time_grid  # increasing; what follows is in their precision, as torchdiffeq's steps are
        count = int(torch.ceil((times[-1] - times[0]) / step_size + 1))
        bounds = torch.arange(count, dtype=times.dtype, device=times.device) * step_size + times[0]
        bounds[-1] = times[-1]
        before, end, equal = (sign * float(bounds[-2])), sign * float(times[-1]), count - 2
        start = sign * float(times[0])
        last = float(times[-1] - bounds[-2])
        if abs(last - step_size) <= EQUAL * float(times[-1] - times[0]):
            before, equal = end, count - 1  # the last step is like the others
        parts, logdet = [], x.new_zeros(len(x))
        for t0, t1, steps in ((start, before, equal), (before, end, count - 1 - equal)):
            if steps > 0 and t0 != t1:
                result = run(x, t0=t0, t1=t1, num_steps=steps)
                x, logdet = result.x, logdet + result.logdet
                parts += [] if result.path is None else [result.path[1 if parts else 0 :]]
        if not self.intermediates:
            return x, logdet
        return _between(bounds, torch.cat(parts), times), logdet

    def _wanted(self, path: Tensor | None, end: Tensor) -> Tensor:
        return end if path is None or not self.intermediates else path


def _between(bounds: Tensor, path: Tensor, times: Tensor) -> Tensor:
    """Returns the values (T, B, d) at some times, on straight lines between those (S + 1, B, d) at the bounds."""
    after = torch.searchsorted(bounds, times).clamp(1, len(path) - 1)
    share = ((times - bounds[after - 1]) / (bounds[after] - bounds[after - 1])).to(path).view(-1, 1, 1)
    left, right = path[after - 1], path[after]
    # ends of steps as they are: a share of 1 would round
    inside = torch.where(share >= 1, right, left + share * (right - left))
    return torch.where(share <= 0, left, inside)


def _velocity_of(model: object) -> Velocity | None:
    """Returns the velocity that a call of a model is a call of, if it is one of ours that kernels take."""
    if type(model) is ModelWrapper and altered(model) is None:
        model = model.model
    if not isinstance(model, Velocity) or (model.field() is None and model.field_at(0.0) is None):
        return None
    return model
