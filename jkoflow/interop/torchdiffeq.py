"""torchdiffeq's ``odeint`` and ``odeint_adjoint``, by the fused kernels where func is a `CNFFunc`.

Every argument is torchdiffeq's own. The kernels solve the whole problem, with its gradient, if func is a `CNFFunc`
over a velocity of `jkoflow.velocity`, the method is ``"euler"``, ``"midpoint"``, ``"heun2"``, ``"rk4"``, ``"dopri5"``,
``"bosh3"`` or ``"tsit5"``, and nothing is asked for that only torchdiffeq has: `unfused` says what. Every other call
goes to torchdiffeq as it is, which then must be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

from jkoflow.data.optional import require
from jkoflow.interop.cnf import CNFFunc, State
from jkoflow.interop.fused_odeint import Problem, as_func, problem

__all__ = ["CNFFunc", "odeint", "odeint_adjoint", "odeint_dense", "odeint_event", "unfused"]

Tolerance = float | Tensor | Sequence[float | Tensor]


def odeint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> Any:
    r"""Solves :math:`dy/dt = \mathrm{func}(t, y)` from :math:`y(t_0) = y_0`, as ``torchdiffeq.odeint`` does.

    Fixed methods take torchdiffeq's steps. Adaptive steps of the kernels are a row's own, which keeps the tolerances by
    itself, and end at the last time; torchdiffeq's are those of the whole batch. Gradients are the exact derivatives of
    the discrete map, those of adaptive steps with the accepted steps held fixed.

    Arguments:
        func: A `CNFFunc`, or any function of time and state; a velocity of `jkoflow.velocity` may move a tensor y0 as
            it is.
        y0: State at the first time: a tensor, or a tuple of tensors.
        t: Times, increasing or decreasing, with shape (T,).
        rtol: Relative tolerance, in torchdiffeq also one for each state.
        atol: Absolute tolerance.
        method: Name of torchdiffeq's method; None means ``"dopri5"``.
        options: Options of the method.
        event_fn: Function of time and state whose zero ends the solve.

    Returns:
        The state at all times, with shapes (T, \*); with ``event_fn`` the time of the event, too.

    Raises:
        ValueError: If the states are not those of the `CNFFunc`.
        jkoflow.ops.IntegrationError: If adaptive steps do not carry a row to the last time.
        jkoflow.errors.UserError: If torchdiffeq has to solve the problem and is not installed.

    References:
        | torchdiffeq (Chen, 2018)
        | https://github.com/rtqichen/torchdiffeq

    Example:
        >>> func = CNFFunc(jkoflow.MLPVelocity(2))
        >>> z, change = odeint(func, (torch.randn(5, 2), torch.zeros(5, 1)), torch.tensor([1.0, 0.5, 0.0]))
        >>> z.shape, change.shape
        (torch.Size([3, 5, 2]), torch.Size([3, 5, 1]))
    """
    settings = {"rtol": rtol, "atol": atol, "method": method, "options": options, "event_fn": event_fn}
    func = as_func(func, y0)
    found = problem(func, y0, t, **settings)
    if isinstance(found, Problem):
        return found.solve()
    return _torchdiffeq(found).odeint(func, y0, t, **settings)


def odeint_adjoint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: Tolerance | None = None,
    adjoint_atol: Tolerance | None = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
) -> Any:
    """Solves as `odeint` does; what torchdiffeq solves has its gradient from the adjoint equation.

    What the kernels solve has the gradient of `odeint`: the exact derivative of the discrete map through the accepted
    steps, which the adjoint equation approximates. It needs no second solve, so that ``adjoint_rtol``,
    ``adjoint_atol``, ``adjoint_method`` and ``adjoint_options`` have no meaning there; its memory is that of the
    accepted steps. All parameters of func get their gradients; calls with other ``adjoint_params`` go to torchdiffeq.

    Arguments:
        func: See `odeint`; for torchdiffeq a module, unless ``adjoint_params`` are given.
        y0: See `odeint`.
        t: See `odeint`.
        rtol: See `odeint`.
        atol: See `odeint`.
        method: See `odeint`.
        options: See `odeint`.
        event_fn: See `odeint`.
        adjoint_rtol: Relative tolerance of the adjoint equation; None means ``rtol``.
        adjoint_atol: Absolute tolerance of the adjoint equation; None means ``atol``.
        adjoint_method: Method for the adjoint equation; None means ``method``.
        adjoint_options: Options of that method.
        adjoint_params: Parameters that get a gradient; None means those of func.

    Returns:
        See `odeint`.

    Raises:
        ValueError: See `odeint`.
        jkoflow.ops.IntegrationError: See `odeint`.
        jkoflow.errors.UserError: See `odeint`.
    """
    settings = {"rtol": rtol, "atol": atol, "method": method, "options": options, "event_fn": event_fn}
    adjoint = {
        "adjoint_rtol": adjoint_rtol,
        "adjoint_atol": adjoint_atol,
        "adjoint_method": adjoint_method,
        "adjoint_options": adjoint_options,
    }
    func = as_func(func, y0)
    params = None if adjoint_params is None else tuple(adjoint_params)
    found = _other_parameters(func, params) or problem(func, y0, t, **settings)
    if isinstance(found, Problem):
        return found.solve()
    return _torchdiffeq(found).odeint_adjoint(func, y0, t, **settings, **adjoint, adjoint_params=params)


def odeint_event(func: Callable[..., Any], y0: State, *args: Any, **settings: Any) -> Any:
    """Solves until an event, whose time gets a gradient: ``torchdiffeq.odeint_event``, which must be installed."""
    return _torchdiffeq("it ends at an event").odeint_event(as_func(func, y0), y0, *args, **settings)


def odeint_dense(func: Callable[..., Any], y0: State, *args: Any, **settings: Any) -> Any:
    """Returns a solution as a function of time: ``torchdiffeq.odeint_dense``, which must be installed."""
    return _torchdiffeq("its solution is a function").odeint_dense(as_func(func, y0), y0, *args, **settings)


def unfused(
    func: Callable[..., Any],
    y0: State,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> str | None:
    """Says why torchdiffeq, and not the kernels, solves what `odeint` is called with; None if the kernels do.

    Example:
        >>> func, states = CNFFunc(jkoflow.MLPVelocity(2)), (torch.randn(5, 2), torch.zeros(5))
        >>> unfused(func, states, torch.tensor([0.0, 1.0]), method="dopri8")
        "the kernels have no method 'dopri8'"
        >>> unfused(func, states, torch.tensor([0.0, 1.0]), method="rk4", options={"step_size": 0.3})
    """
    settings = {"rtol": rtol, "atol": atol, "method": method, "options": options, "event_fn": event_fn}
    found = problem(as_func(func, y0), y0, t, **settings)
    return found if isinstance(found, str) else None


def _other_parameters(func: Callable[..., Any], params: tuple[Tensor, ...] | None) -> str:
    """Says that the parameters that are to get gradients are not those of func; empty if they are."""
    if params is None or not isinstance(func, CNFFunc):
        return ""
    wanted, own = ({id(p) for p in group if p.requires_grad} for group in (params, func.parameters()))
    return "" if wanted == own else "adjoint_params are not the parameters of func"


def _torchdiffeq(reason: str) -> ModuleType:
    """Returns torchdiffeq.

    Raises:
        jkoflow.errors.UserError: If it is not installed.
    """
    return require("torchdiffeq", f"a solve that the kernels do not cover ({reason})", extra="interop")
