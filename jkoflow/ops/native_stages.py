"""The compiled kernels in which every stage has a network of its own, called on tensors: a step, and the way back.

They stand beside `jkoflow.ops.native_rows` and like it know nothing of autograd. Networks are stacked: a `Network`
whose tensors have a leading axis, with those of the stages of one step after another. None has a linear term or a
modulation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jkoflow.ops.embedded import EMBEDDED
from jkoflow.ops.extension import C as _C
from jkoflow.ops.grid import Adaptive
from jkoflow.ops.native import (
    Settings,
    address,
    contiguous,
    dense,
    dense_like,
    describe,
    equal_steps,
    given,
)
from jkoflow.ops.network import Network
from jkoflow.ops.tableau import TABLEAUX

Bars = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Gradients of x at t1 (B, d), logdet (B,), path (S + 1, B, d), and x and logdet at the output times; None for zero."""


def stages_of(settings: Settings) -> int:
    """Returns the number of stages of a step, the last one included that only an error estimate needs."""
    return len((EMBEDDED if isinstance(settings.grid, Adaptive) else TABLEAUX)[settings.method].c)


def stage_times(settings: Settings, steps: Sequence[tuple[float, float]], stages: int) -> list[float]:
    """Returns the times of the first stages of steps, each from a time t and dt long."""
    c = (EMBEDDED if isinstance(settings.grid, Adaptive) else TABLEAUX)[settings.method].c[:stages]
    return [t + share * dt for t, dt in steps for share in c]


def equal_steps_of(settings: Settings) -> list[tuple[float, float]]:
    """Returns time and length of each step of a grid of equal ones."""
    count = equal_steps(settings.grid)
    dt = (settings.t1 - settings.t0) / count
    return [(settings.t0 + step * dt, dt) for step in range(count)]


# ---- Forward


class State(NamedTuple):
    """Where all rows stand; `x_rest` and `logdet_rest` are what rounding has cut off so far."""

    x: Tensor
    x_rest: Tensor
    logdet: Tensor
    logdet_rest: Tensor

    @classmethod
    def at(cls, x: Tensor) -> State:
        """Returns the state at the start of an integration."""
        return cls(x, torch.zeros_like(x), x.new_zeros(len(x)), x.new_zeros(len(x)))

    def new(self) -> State:
        """Returns an uninitialised state."""
        return State(*map(dense_like, self))

    def describe(self) -> Any:
        """Returns the state as the kernels take it."""
        state = _C.StepState()
        state.x, state.x_rest, state.logdet, state.logdet_rest = map(address, self)
        return state


class Stepper:
    """Carries all rows from step to step.

    Arguments:
        x: Positions at the start, with shape (B, d).
        context: Conditioning variables, with shape (B, c).
        networks: Stacked networks, which say what all have in common.
        noise: The probe of ``"hutchinson"``.
        settings: Settings of the integration; with an `Adaptive` grid steps are attempts.
    """

    def __init__(
        self, x: Tensor, context: Tensor | None, networks: Network, noise: Tensor | None, settings: Settings
    ) -> None:
        x, self._context, self._first, self._noise = contiguous(x, context, _first(networks), noise)
        self._problem = _describe(x, self._context, self._first, self._noise, settings)
        self._step, self._control, self._stages = _C.StagewiseStep(), _C.Adaptive(), stages_of(settings)
        self._step.stages = self._stages
        self.state = State.at(x)
        self._end = self.state.new()
        batch, dim = x.shape
        self.velocity = self.divergence = self._errors = x.new_empty(0)
        if isinstance(settings.grid, Adaptive):
            grid, method = settings.grid, EMBEDDED[settings.method]
            self._control = _C.Adaptive(grid.rtol, grid.atol, grid.max_steps, method.order, method.error, method.dense)
            self.velocity, self.divergence = x.new_zeros((self._stages, batch, dim)), x.new_zeros((self._stages, batch))
            self._errors = torch.zeros(batch, dtype=torch.float64)
            step = self._step
            step.velocity, step.divergence = address(self.velocity), address(self.divergence)
            step.errors, step.start_known = address(self._errors), True

    def start_with(self, velocity: Tensor, divergence: Tensor) -> None:
        """Takes the slopes at the start: velocity (B, d) and divergence (B,)."""
        self.velocity[0].copy_(velocity)
        self.divergence[0].copy_(divergence)

    def attempt(self, networks: Network, dt: float) -> float:
        """Tries a step with dense networks, one for each stage; returns the size of its error over the batch."""
        self._carry(_Places(networks, self._first, self._stages), 0, dt)
        return float(self._errors.numpy().mean()) ** 0.5

    def worst_row(self) -> int:
        """Returns the first row whose error in the last attempt is not finite, or else the largest."""
        return int(torch.nan_to_num(self._errors, nan=torch.inf).argmax())

    def accept(self) -> None:
        """Moves to the end of the step that has been tried, whose last slopes are the next one's first."""
        self.state, self._end = self._end, self.state.new()
        self.start_with(self.velocity[-1], self.divergence[-1])

    def take(self, places: _Places, step: int, dt: float) -> None:
        """Takes step number ``step`` of those that networks are stacked for."""
        self._carry(places, step, dt)
        self.state, self._end = self._end, self.state.new()

    def _carry(self, places: _Places, step: int, dt: float) -> None:
        self._step.dt, self._step.start, self._step.end = dt, self.state.describe(), self._end.describe()
        self._problem.weights, self._problem.biases = places.at(step * self._stages)
        _C.cpu_stagewise(self._problem, self._step, self._control)


def forward(
    x: Tensor, context: Tensor | None, networks: Network, noise: Tensor | None, settings: Settings, keep_path: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Integrates x (B, d) with equal steps; returns what `jkoflow.ops.native.forward` does."""
    steps = equal_steps_of(settings)
    networks = dense_networks(networks)
    stepper = Stepper(x, context, networks, noise, settings)
    places = _Places(networks, _first(networks), len(steps) * stages_of(settings))
    path = x.new_empty((len(steps) + 1 if keep_path else 0, *x.shape))
    for number, (_, dt) in enumerate(steps):
        if keep_path:
            path[number] = stepper.state.x
        stepper.take(places, number, dt)
    if keep_path:
        path[-1] = stepper.state.x
    end = stepper.state
    return end.x, end.logdet, path


# ---- Backward


def backward(
    bars: Bars,
    x: Tensor,
    context: Tensor | None,
    networks: Network,
    noise: Tensor | None,
    settings: Settings,
    steps: Tensor,
    output_times: Tensor,
    path: Tensor,
    parameters_wanted: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns the gradients of x (B, d), context and the stacked networks (`Network.new_gradient`).

    Arguments:
        bars: Gradients of the results.
        x: Positions at the start, with shape (B, d).
        context: Conditioning variables, with shape (B, c).
        networks: Networks of the stages that count, `counted_stages` for each step.
        noise: The probe of ``"hutchinson"``.
        settings: Settings of the integration.
        steps: Time and length of each step, float64 on the CPU with shape (S, 2).
        output_times: Times of outputs, as `jkoflow.ops.native_rows.adaptive` takes them.
        path: x at the start of each step, with shape (S, B, d).
        parameters_wanted: Whether the gradient of the networks is.
    """
    networks = dense_networks(networks)
    x, context, first, noise = contiguous(x, context, _first(networks), noise)
    problem, like = _describe(x, context, first, noise, settings), (x.dtype, x.device)
    taken, times = _checked_steps(steps, output_times)
    count, batch, dim = len(taken), *x.shape
    stages = counted_stages(settings, len(times))
    path = path.contiguous()
    starts = given("path", path, count * x.nbytes, *like)
    places = _Places(networks, first, count * stages)
    x_end_bar, logdet_end_bar, path_bar, x_outputs_bar, logdet_outputs_bar = map(dense, bars)
    for name, bar, shape in (
        ("x", x_end_bar, x.shape),
        ("logdet", logdet_end_bar, (batch,)),
        ("path", path_bar, (count + 1, batch, dim)),
        ("x at times", x_outputs_bar, (len(times), batch, dim)),
        ("logdet at times", logdet_outputs_bar, (len(times), batch)),
    ):
        if bar is not None and (bar.shape != shape or bar.dtype is not x.dtype or bar.device != x.device):
            raise ValueError(f"the gradient of {name} must have shape {tuple(shape)}, {x.dtype}, got {bar.shape}")
    x_bar = torch.zeros_like(x) if x_end_bar is None else x_end_bar.clone()
    logdet_bar = x.new_zeros(batch) if logdet_end_bar is None else logdet_end_bar.clone()
    context_grad = None if context is None else torch.zeros_like(context)
    gradient = networks.new_gradient() if parameters_wanted else None
    adjoint, step = _C.Adjoint(), _C.StagewiseStep()
    adjoint.x_end = adjoint.x = address(x_bar)
    adjoint.logdet, adjoint.context = address(logdet_bar), address(context_grad)
    gradients = None if gradient is None else places.of_gradient(gradient, count * stages)
    step.stages = stages
    within = outputs_within(taken, times)
    if path_bar is not None:
        x_bar += path_bar[count]
    for number in reversed(range(count)):
        t, dt = taken[number]
        state = _C.StepState()
        state.x = starts + number * x.nbytes if starts else 0
        step.start, step.dt, step.velocity, step.divergence = state, dt, 0, 0
        outputs = within[number]
        x_extra, kept = None, []
        if outputs.stop > outputs.start:
            rows = [output_shares(settings, t, dt, time) for time in times[outputs]]
            shares = torch.tensor(rows, dtype=torch.float64).to(x.dtype)
            if x_outputs_bar is not None:
                x_extra = x_outputs_bar[outputs].sum(0)
                kept.append((shares.T @ x_outputs_bar[outputs].flatten(1)).contiguous())
                step.velocity = address(kept[-1])
            if logdet_outputs_bar is not None:
                kept.append((shares.T @ logdet_outputs_bar[outputs]).contiguous())
                step.divergence = address(kept[-1])
        problem.weights, problem.biases = places.at(number * stages)
        if gradients is not None:
            adjoint.weights, adjoint.biases = gradients.at(number * stages)
        _C.cpu_stagewise_backward(problem, step, adjoint)
        if x_extra is not None:
            x_bar += x_extra
        if logdet_outputs_bar is not None and outputs.stop > outputs.start:
            logdet_bar += logdet_outputs_bar[outputs].sum(0)
        if path_bar is not None:
            x_bar += path_bar[number]
    return x_bar, context_grad, gradient


def counted_stages(settings: Settings, outputs: int) -> int:
    """Returns the stages of a step that results depend on: with an error estimate the last only for outputs within."""
    return stages_of(settings) - int(isinstance(settings.grid, Adaptive) and outputs == 0)


def outputs_within(steps: Sequence[tuple[float, float]], output_times: Sequence[float]) -> list[slice]:
    """Returns the places of the output times that lie in each step."""
    found, first = [], 0
    for t, dt in steps:
        end = first
        while end < len(output_times) and (output_times[end] - t) / dt <= 1:
            end += 1
        found.append(slice(first, end))
        first = end
    return found


def output_shares(settings: Settings, t: float, dt: float, time: float) -> list[float]:
    """Returns the weights of the slopes of a step, from t and dt long, in the position at a time within."""
    theta, shares = (time - t) / dt, []
    for row in EMBEDDED[settings.method].dense:
        total = 0.0
        for coefficient in reversed(row):
            total = theta * (total + coefficient)
        shares.append(dt * total)
    return shares


def _checked_steps(steps: Tensor, output_times: Tensor) -> tuple[list[tuple[float, float]], list[float]]:
    given("steps", steps, 16 * len(steps), torch.float64, torch.device("cpu"))
    given("output_times", output_times, 8 * len(output_times), torch.float64, torch.device("cpu"))
    if steps.dim() != 2 or output_times.dim() != 1 or not bool(torch.isfinite(steps).all()):
        raise ValueError(f"steps must be finite with shape (S, 2) and output_times with shape (T,), got {steps}")
    taken = [(t, dt) for t, dt in steps.tolist()]
    if len(output_times) and not all(dt for _, dt in taken):
        raise ValueError("steps must not be zero where there are output times")
    return taken, output_times.tolist()


# ---- What crosses over to the extension


def _describe(x: Tensor, context: Tensor | None, first: Network, noise: Tensor | None, settings: Settings) -> Any:
    if settings.time:
        raise ValueError("networks of stages must not read t, which is what they are made of")
    return describe(x, context, first, noise, settings)


def dense_networks(networks: Network) -> Network:
    """Returns stacked networks without gaps."""
    return Network([w.contiguous() for w in networks.weights], [b.contiguous() for b in networks.biases], None)


def _first(networks: Network) -> Network:
    """Returns the first of stacked networks.

    Raises:
        ValueError: If there is none, or they have what the kernels of stages do not know.
    """
    if networks.linear is not None or networks.modulation is not None:
        raise ValueError("networks of stages must have no linear term and no modulation")
    weights, biases = networks.weights, networks.biases
    if not all(w.dim() == 3 and len(w) > 0 for w in weights) or not all(b.dim() == 2 and len(b) > 0 for b in biases):
        shapes = [tuple(tensor.shape) for tensor in networks.slots]
        raise ValueError(
            f"networks of stages must be stacked, weights (N, H, H before) and biases (N, H), got {shapes}"
        )
    return Network([weight[0] for weight in weights], [bias[0] for bias in biases], None)


class _Places:
    """The addresses of a number of stacked networks, or of their gradients.

    Raises:
        ValueError: If a tensor does not hold as many of the shape that is described.
    """

    def __init__(self, networks: Network, first: Network, count: int) -> None:
        like, self._starts, self._sizes = (first.weights[0].dtype, first.weights[0].device), [], []
        for slot, one in zip(networks.slots, first.slots, strict=True):
            if slot.shape != (count, *one.shape):
                raise ValueError(f"networks of stages must have shape {(count, *one.shape)}, got {tuple(slot.shape)}")
            self._starts.append(given("networks of stages", slot, count * one.nbytes, *like))
            self._sizes.append(one.nbytes)

    def of_gradient(self, gradient: Tensor, count: int) -> _Places:
        """Returns the places of the gradients of as many networks in one tensor."""
        places = copy(self)
        sizes = [count * size for size in self._sizes]
        places._starts = list(itertools.accumulate(sizes, initial=gradient.data_ptr()))[:-1]
        return places

    def at(self, network: int) -> tuple[list[int], list[int]]:
        """Returns the addresses of weights and biases of a network."""
        found = [start + network * size for start, size in zip(self._starts, self._sizes, strict=True)]
        return found[0::2], found[1::2]
