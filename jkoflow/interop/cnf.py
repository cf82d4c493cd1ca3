"""The right-hand side of a continuous normalizing flow as torchdiffeq and FFJORD's code call it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jkoflow.interop.regularizers import REGULARIZERS, Point
from jkoflow.ops import velocity_and_divergence
from jkoflow.velocity import Velocity

State = Tensor | tuple[Tensor, ...]

_DIVERGENCES = {
    "exact": "exact",
    "hutchinson": "hutchinson",
    "none": "none",
    "brute_force": "exact",
    "approximate": "hutchinson",
}
"""What a divergence is called here and, the last two, in FFJORD's code."""


class Rows(NamedTuple):
    """The states of a flow as rows, as `jkoflow.integrate` takes them."""

    x: Tensor
    """Positions, with shape (N, d)."""
    context: Tensor | None
    """Conditioning variables, with shape (N, c)."""
    divergence: str
    """Kind of divergence, see `jkoflow.integrate`."""
    noise: Tensor | None
    """The probe of ``"hutchinson"``, with shape (N, d)."""


class CNFFunc(nn.Module):
    r"""The right-hand side of a continuous normalizing flow, by the fused kernels.

    .. math:: (t, (z, \log p, \ldots)) \mapsto (v(z, t), -\mathrm{tr}\, \partial_z v(z, t), \ldots)

    It is called as torchdiffeq calls a ``func`` and as FFJORD's code calls its ``ODEfunc``, by this package's
    `jkoflow.interop.torchdiffeq.odeint`, which fuses the whole solve where it can, and by torchdiffeq's own.

    The states are positions z (\*, d), what is added up in log p, with shape (\*) or (\*, 1), then the context if it is
    a state, then the integrals of ``regularizers``, then any others, which stay as they are. All integrals of
    regularizers may be left out. With ``divergence="none"`` z may also stand alone, as a tensor.

    Arguments:
        velocity: A velocity of `jkoflow.velocity` or any callable ``velocity(x, t, context)``, see `jkoflow.integrate`.
        divergence: ``"exact"``, ``"hutchinson"`` (:math:`\epsilon^T J \epsilon`, the probe being fixed until the next
            `before_odeint`) or ``"none"`` (log p stays as it is).
        divergence_fn: FFJORD's name of the divergence, in place of ``divergence``: ``"brute_force"`` (exact), or
            ``"approximate"`` (Hutchinson; as in FFJORD's code exact in evaluation mode for d = 2).
        sign: Sign of the divergence: -1 for the change of log p(z(t)) along the path, +1 for the log-determinant.
        context: Conditioning variables, with shape (\*, c), leading axes of z being enough; True if they are the third
            state, and None for True where the velocity has a ``context_dim``. Their derivative is zero.
        regularizers: Names of further integrals: ``"kinetic"`` (:math:`|v|^2`), ``"jacobian"`` (:math:`|J e|^2` with
            the fixed probe) or ``"frobenius"`` (:math:`|J|_F^2`). A state of shape (\*) or (\*, 1) has one for each
            row, a state without axes their mean.
        rademacher: Whether probes are of -1 and 1, not Gaussian.
        time_first: Whether a callable is called ``velocity(t, x)``, or ``velocity(t, x, context)``, as FFJORD's
            networks are.

    Raises:
        ValueError: If an argument is none of those.

    References:
        | FFJORD: Free-form continuous dynamics for scalable reversible generative models (Grathwohl et al., 2018)
        | https://arxiv.org/abs/1810.01367
        | How to train your neural ODE: the world of Jacobian and kinetic regularization (Finlay et al., 2020)
        | https://arxiv.org/abs/2002.02798

    Example:
        >>> func = CNFFunc(jkoflow.MLPVelocity(2))
        >>> v, change = func(torch.tensor(0.5), (torch.randn(5, 2), torch.zeros(5, 1)))
        >>> v.shape, change.shape
        (torch.Size([5, 2]), torch.Size([5, 1]))
    """

    _num_evals: Tensor

    def __init__(
        self,
        velocity: Callable[..., Tensor],
        divergence: str = "exact",
        *,
        divergence_fn: str | None = None,
        sign: int = -1,
        context: Tensor | bool | None = None,
        regularizers: Sequence[str] = (),
        rademacher: bool = False,
        time_first: bool = False,
    ) -> None:
        super().__init__()
        if divergence_fn is not None and divergence != "exact":
            raise ValueError(f"divergence must be left out beside divergence_fn={divergence_fn!r}, got {divergence!r}")
        name = divergence if divergence_fn is None else divergence_fn
        if name not in _DIVERGENCES:
            raise ValueError(f"divergence must be one of {', '.join(_DIVERGENCES)}, got {name!r}")
        if sign not in (-1, 1):
            raise ValueError(f"sign must be -1 or 1, got {sign!r}")
        if isinstance(regularizers, str) or not set(regularizers) <= set(REGULARIZERS):
            raise ValueError(f"regularizers must be names among {', '.join(REGULARIZERS)}, got {regularizers!r}")
        if time_first and isinstance(velocity, Velocity):
            raise ValueError(f"time_first must be False for {type(velocity).__name__}, which takes (x, t, context)")
        self.velocity = velocity
        self.divergence = name
        self.sign = sign
        self.context = context
        self.regularizers = tuple(regularizers)
        self.rademacher = rademacher
        self.time_first = time_first
        self._e: Tensor | None = None
        self.register_buffer("_num_evals", torch.zeros(()), persistent=False)

    def before_odeint(self, e: Tensor | None = None) -> None:
        """Forgets the probe and the evaluations; to be called before every solve that needs a new probe.

        Arguments:
            e: The probe to take, with the shape of z; None draws one at the next evaluation.
        """
        self._e = e
        self._num_evals.zero_()

    def num_evals(self) -> float:
        """Returns the number of evaluations since `before_odeint`, in a fused solve those of the row with the most."""
        return self._num_evals.item()

    def count(self, evaluations: Tensor | int) -> None:
        """Adds evaluations to those counted: a number, or one for each row, of which the largest counts."""
        if isinstance(evaluations, Tensor):
            if evaluations.numel() == 0:
                return
            evaluations = evaluations.max()
        self._num_evals += evaluations

    def forward(self, t: float | Tensor, states: State) -> State:
        """Returns the time derivatives of the states.

        Raises:
            ValueError: If the states are not those that the class describes.
        """
        self.count(1)
        rows = self.rows(states)
        z = states if isinstance(states, Tensor) else states[0]
        if isinstance(t, Tensor) and not t.is_floating_point():
            t = t.to(z.dtype)
        kind = {"divergence": rows.divergence, "noise": rows.noise}
        v, divergence = velocity_and_divergence(self.field, rows.x, t, rows.context, **kind)  # type: ignore[arg-type]
        if isinstance(states, Tensor):
            return v.reshape(z.shape)
        changes = [
            torch.zeros_like(logp) if rows.divergence == "none" else self.sign * divergence.reshape(logp.shape)
            for logp in states[1:2]
        ]
        first, last = self._places(states)
        integrals = []
        if last > first:
            noise = self._probe(z).reshape(rows.x.shape) if "jacobian" in self.regularizers else None
            point = Point(self.field, rows.x, t, rows.context, v, noise)
            for name, state in zip(self.regularizers, states[first:last], strict=True):
                integrand = REGULARIZERS[name](point)
                integrals.append(integrand.reshape(state.shape) if state.dim() > 0 else integrand.mean())
        context, others = ([torch.zeros_like(state) for state in part] for part in (states[2:first], states[last:]))
        return (v.reshape(z.shape), *changes, *context, *integrals, *others)

    @property
    def field(self) -> Callable[..., Tensor]:
        """Returns the velocity as a function of x, t and context."""
        if not self.time_first:
            return self.velocity
        return lambda x, t, context: self.velocity(t, x) if context is None else self.velocity(t, x, context)

    def regularizes(self, states: State) -> bool:
        """Tells whether the integrals of the regularizers are among the states."""
        first, last = (0, 0) if isinstance(states, Tensor) else self._places(states)
        return last > first

    def rows(self, states: State) -> Rows:
        """Returns the states as rows, with the probe that is fixed for them.

        Raises:
            ValueError: If the states are not those that the class describes.
        """
        z = states if isinstance(states, Tensor) else (*states, None)[0]
        if not isinstance(z, Tensor) or z.dim() == 0:
            raise ValueError(f"states must begin with positions of shape (*, d), got {_shape(z)}")
        divergence = _DIVERGENCES[self.divergence]
        if self.divergence == "approximate" and not self.training and z.shape[-1] == 2:
            divergence = "exact"
        self._check(z, states, divergence)
        context = self.context
        if self._context_is_a_state():
            context = states[2]
        x = z.reshape(-1, z.shape[-1])
        noise = self._probe(z).reshape(x.shape) if divergence == "hutchinson" else None
        return Rows(x, _spread(context, z) if isinstance(context, Tensor) else None, divergence, noise)

    def _check(self, z: Tensor, states: State, divergence: str) -> None:
        shapes = (z.shape[:-1], (*z.shape[:-1], 1))
        if isinstance(states, Tensor):
            if divergence != "none" or self._context_is_a_state():
                raise ValueError(
                    f"states must be a tuple (z, logp{', context' if self._context_is_a_state() else ''}) with "
                    f"divergence={self.divergence!r}, got one tensor; pass divergence='none' for z alone"
                )
            return
        needed = 3 if self._context_is_a_state() else 1 if divergence == "none" else 2
        if len(states) < needed:
            names = ("z", "logp", "context")[:needed]
            raise ValueError(f"states must begin with ({', '.join(names)}), got {len(states)} of them")
        if len(states) > 1 and divergence != "none" and states[1].shape not in shapes:
            raise ValueError(f"logp must have shape {tuple(shapes[0])} or {tuple(shapes[1])}, got {_shape(states[1])}")
        first, last = self._places(states)
        for name, state in zip(self.regularizers, states[first:last], strict=False):
            if state.dim() > 0 and state.shape not in shapes:
                expected = f"(), {tuple(shapes[0])} or {tuple(shapes[1])}"
                raise ValueError(f"the state of {name!r} must have shape {expected}, got {_shape(state)}")

    def _context_is_a_state(self) -> bool:
        if self.context is None:
            return isinstance(self.velocity, Velocity) and self.velocity.context_dim > 0
        return self.context is True

    def _places(self, states: tuple[Tensor, ...]) -> tuple[int, int]:
        """Returns the first place of the regularizers among the states, and the place after the last."""
        first = min(3 if self._context_is_a_state() else 2, len(states))
        count = len(self.regularizers)
        if count == 0 or len(states) == first:
            return first, first
        if len(states) < first + count:
            names = ", ".join(self.regularizers)
            raise ValueError(
                f"states must hold one integral for each of {names}, or none, got {len(states) - first} of {count}"
            )
        return first, first + count

    def _probe(self, z: Tensor) -> Tensor:
        if self._e is None:
            self._e = torch.randint_like(z, 2) * 2 - 1 if self.rademacher else torch.randn_like(z)
        if self._e.shape != z.shape or self._e.dtype != z.dtype or self._e.device != z.device:
            raise ValueError(
                f"the probe must have the shape of z, {tuple(z.shape)} ({z.dtype}, {z.device}), but the one that is "
                f"fixed has {tuple(self._e.shape)} ({self._e.dtype}, {self._e.device}); call before_odeint() before "
                "every solve"
            )
        return self._e

    def extra_repr(self) -> str:
        """Returns the arguments of the constructor, without the velocity, for ``repr``."""
        context = tuple(self.context.shape) if isinstance(self.context, Tensor) else self.context
        return (
            f"divergence={self.divergence!r}, sign={self.sign}, context={context}, regularizers={self.regularizers}, "
            f"rademacher={self.rademacher}, time_first={self.time_first}"
        )


def _spread(context: Tensor, z: Tensor) -> Tensor:
    """Returns context (N, c), one for each row of z, from context (*, c) with the first of the leading axes of z."""
    leading, given = z.shape[:-1], context.shape[:-1]
    if context.dim() == 0 or given != leading[: len(given)]:
        raise ValueError(
            f"context must have shape (*, c) with leading axes of z {tuple(leading)}, got {_shape(context)}"
        )
    columns, missing = context.shape[-1], (1,) * (len(leading) - len(given))
    return context.reshape(*given, *missing, columns).expand(*leading, columns).reshape(-1, columns)


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else value
