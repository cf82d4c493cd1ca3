"""torchdiffeq's problems that the kernels solve as a whole, and why they do not solve the others."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jkoflow.interop.cnf import CNFFunc, State
from jkoflow.interop.fixed_grid import FixedGrid, Solution, Time, moving
from jkoflow.ops import Adaptive, Integrated, integrate, native, velocity_and_divergence
from jkoflow.ops.grid import MOST_STEPS
from jkoflow.velocity import MLPField, Velocity
from jkoflow.velocity.altered import altered, global_hook

FIXED = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun", "rk4": "rk4"}
"""Names of `jkoflow.integrate` for torchdiffeq's methods on fixed grids."""

ADAPTIVE = ("dopri5", "bosh3", "tsit5")
"""Adaptive methods, whose names are the same."""

_FIXED_OPTIONS = {"step_size", "interp", "perturb"}
_ADAPTIVE_OPTIONS = {"max_num_steps"}
_CALLBACKS = [
    f"callback_{event}{adjoint}" for event in ("step", "accept_step", "reject_step") for adjoint in ("", "_adjoint")
]


class Problem(NamedTuple):
    """An initial value problem that the kernels solve as a whole."""

    func: CNFFunc
    states: State
    times: list[Time]
    """The times, as tensors where gradients flow to them."""
    method: str
    grid: FixedGrid | Adaptive

    def solve(self) -> State:
        """Returns the states at all times, with shapes (T, *)."""
        rows = self.func.rows(self.states)
        shared: dict[str, Any] = {"context": rows.context, "divergence": rows.divergence, "noise": rows.noise}
        shared["method"] = self.method
        solution = self._solve(rows.x, shared)
        self.func.count(solution.evaluations)
        if isinstance(self.states, Tensor):
            return solution.path.reshape(len(self.times), *self.states.shape)
        z, *others = self.states
        outputs = [solution.path.reshape(len(self.times), *z.shape)]
        for place, state in enumerate(others):
            if place == 0 and rows.divergence != "none":
                outputs.append(state + self.func.sign * solution.logdet_path.reshape(len(self.times), *state.shape))
            else:
                outputs.append(torch.stack([state] * len(self.times)))
        return tuple(outputs)

    def _solve(self, x: Tensor, shared: dict[str, Any]) -> Solution:
        velocity = self.func.velocity
        if isinstance(self.grid, Adaptive):
            shared |= self.grid._asdict()
            if any(isinstance(time, Tensor) for time in self.times):
                return self._solve_between(x, shared)
            found = integrate(velocity, x, times=self.times, **shared)
            assert found.path is not None
            assert found.logdet_path is not None
            return Solution(found.path, found.logdet_path, found.evaluations)

        def steps(x: Tensor, start: Time, end: Time, number: int) -> Integrated:
            return integrate(velocity, x, t0=start, t1=end, num_steps=number, keep_path=False, **shared)

        def evaluate(x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
            kind = {name: shared[name] for name in ("context", "divergence", "noise")}
            return velocity_and_divergence(velocity, x, t, **kind)

        return self.grid.solve(steps, evaluate, x)

    def _solve_between(self, x: Tensor, settings: dict[str, Any]) -> Solution:
        """Returns the solution by adaptive steps that end at every time, so that a gradient flows to each of them."""
        logdet, evaluations = x.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        path, logdet_path = [x], [logdet]
        for start, end in itertools.pairwise(self.times):
            part = integrate(self.func.velocity, x, t0=start, t1=end, **settings)
            x, logdet, evaluations = part.x, logdet + part.logdet, evaluations + part.evaluations
            path.append(x)
            logdet_path.append(logdet)
        return Solution(torch.stack(path), torch.stack(logdet_path), evaluations)


def as_func(func: Callable[..., Any], y0: object) -> Callable[..., Any]:
    """Returns a `CNFFunc` without divergence for a velocity of this package that is to move a tensor; else func itself.

    Such a velocity could not be meant otherwise: it reads (x, t), not (t, x).

    Raises:
        ValueError: If such a velocity is to move several states.
    """
    if not isinstance(func, Velocity) or _field(func, 0.0) is None:
        return func
    if not isinstance(y0, Tensor):
        raise ValueError(
            f"func must be a CNFFunc for several states, got {type(func).__name__}; pass CNFFunc(velocity)"
        )
    return CNFFunc(func, divergence="none")


def problem(
    func: Callable[..., Any],
    y0: object,
    t: object,
    *,
    rtol: object,
    atol: object,
    method: str | None,
    options: dict[str, Any] | None,
    event_fn: Callable[..., Any] | None,
) -> Problem | str:
    """Returns the problem that a call of ``odeint`` stands for, or the reason for which the kernels cannot solve it.

    Raises:
        ValueError: If the states are not those of the `CNFFunc`.
    """
    if not isinstance(func, CNFFunc):
        return "func is no CNFFunc"
    if event_fn is not None:
        return "event_fn is given"
    if reason := _changed(func) or _unfit_states(func, y0) or _unfit_times(t):
        return reason
    assert isinstance(t, Tensor)
    method, options = method or "dopri5", dict(options or {})
    grid = _grid(y0, t, rtol, atol, method, options)
    if isinstance(grid, str):
        return grid
    states: State = y0  # type: ignore[assignment]
    if reason := _no_kernel(func, states, t):
        return reason
    return Problem(func, states, moving(t), FIXED.get(method, method), grid)


def _changed(func: CNFFunc) -> str | None:
    """Says what a call of func does besides evaluating the velocity."""
    if type(func).forward is not _FORWARD:
        return f"{type(func).__name__} has a forward of its own"
    if reason := altered(func):
        return f"func {reason}"
    for name in _CALLBACKS:
        if hasattr(func, name):
            return f"func has a {name}"
    return global_hook()


_FORWARD = CNFFunc.forward  # as it is defined: the class may be patched later


def _unfit_states(func: CNFFunc, y0: object) -> str | None:
    states = y0 if isinstance(y0, tuple) else (y0,)
    if not states or not all(isinstance(state, Tensor) for state in states):
        return f"y0 is no tensor and no tuple of tensors but {type(y0).__name__}"
    z: Tensor = states[0]  # type: ignore[assignment]
    if any(state.dtype != z.dtype or state.device != z.device for state in states):  # type: ignore[union-attr]
        return "the states differ in dtype or device"
    if func.regularizes(y0):  # type: ignore[arg-type]
        return f"the integrals of {', '.join(func.regularizers)} are among the states"
    return None


def _unfit_times(t: object) -> str | None:
    if not isinstance(t, Tensor) or t.dim() != 1 or not t.is_floating_point():
        return "t is no tensor of floating-point times"
    if len(t) < 2:
        return "t holds a single time"
    steps = t.detach().diff()
    if not bool(torch.isfinite(t).all()) or not bool((steps > 0).all() or (steps < 0).all()):
        return "t is not strictly increasing or decreasing"
    return None


def _grid(
    y0: object, t: Tensor, rtol: object, atol: object, method: str, options: dict[str, Any]
) -> FixedGrid | Adaptive | str:
    if method in FIXED:
        return _fixed_grid(t, options)
    if method not in ADAPTIVE:
        return f"the kernels have no method {method!r}"
    if unknown := options.keys() - _ADAPTIVE_OPTIONS - {"dtype"}:
        return f"the kernels have no option {', '.join(sorted(unknown))}"
    if options.get("dtype", torch.float64) is not torch.float64:
        return f"the kernels keep times in float64, not {options['dtype']}"
    relative, absolute = _tolerance(rtol, y0), _tolerance(atol, y0)
    if relative is None or not 0 <= relative < math.inf:
        return "rtol is not one number, the same for z and logp"
    if absolute is None or not 0 < absolute < math.inf:
        return "atol is not one positive number, the same for z and logp"
    # torchdiffeq counts from one of the times to the next, and steps of all rows
    most = int(options.get("max_num_steps", MOST_STEPS)) * (len(t) - 1)
    return Adaptive(relative, absolute, min(most, MOST_STEPS))


def _fixed_grid(t: Tensor, options: dict[str, Any]) -> FixedGrid | str:
    if unknown := options.keys() - _FIXED_OPTIONS:
        return f"the kernels have no option {', '.join(sorted(unknown))}"
    if options.get("perturb", False):
        return "the kernels have no option perturb"
    interp, step_size = options.get("interp", "linear"), options.get("step_size")
    if interp not in ("linear", "cubic"):
        return f"the kernels have no interp {interp!r}"
    if step_size is not None and _number(step_size) is None:
        return "step_size is not one number"
    if step_size is not None and not 0 < float(step_size) < math.inf:
        return "step_size is not positive"
    return FixedGrid.over(t, step_size, interp == "cubic")


def _tolerance(value: Any, y0: object) -> float | None:
    """Returns a tolerance as one number, also if it is one for each state and the same for the first two."""
    if (number := _number(value)) is not None or not isinstance(y0, tuple):
        return number
    each = value.unbind() if isinstance(value, Tensor) and value.dim() == 1 else value
    if not isinstance(each, (tuple, list)) or len(each) != len(y0):
        return None
    first = {_number(entry) for entry in each[:2]}
    return first.pop() if len(first) == 1 else None


def _number(value: Any) -> float | None:
    single = isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad
    return float(value) if single or (isinstance(value, numbers.Real) and not isinstance(value, bool)) else None


def _no_kernel(func: CNFFunc, states: State, t: Tensor) -> str | None:
    """Says why no kernel evaluates the velocity; None if one does."""
    rows, velocity = func.rows(states), func.velocity
    if not isinstance(velocity, Velocity):
        return "the kernels integrate the velocities of jkoflow.velocity, func has another"
    field = _field(velocity, float(t[0].detach()))
    if field is None:
        return velocity.unfused() or "the velocity has no field"
    return native.unsupported(field, rows.x, rows.divergence, rows.noise, "auto", "auto")


@torch.no_grad()
def _field(velocity: Velocity, t: float) -> MLPField | None:
    """Returns the weights of a velocity, or those at one time if they depend on it; None if it has none."""
    return velocity.field() or velocity.field_at(t)
