"""Slow and independent answers that tests compare with."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jkoflow import MLPVelocity


def random_velocity(
    dim: int,
    hidden: Sequence[int] = (16, 16),
    activation: str = "tanh",
    *,
    time: bool = True,
    context_dim: int = 0,
    linear: bool = False,
    dtype: torch.dtype = torch.float64,
    scale: float = 1.0,
    seed: int = 0,
) -> MLPVelocity:
    """A velocity far from its initialisation: every parameter matters, biases and the linear term included."""
    velocity = MLPVelocity(dim, hidden, activation, time, context_dim, linear).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in velocity.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.copy_(noise * (scale / parameter.shape[-1] ** 0.5 if parameter.dim() == 2 else 0.3 * scale))
    return velocity


def autograd_jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Jacobians (B, d_out, d_in) of a function that maps (B, d_in) to (B, d_out) row by row."""
    jacobian = torch.autograd.functional.jacobian(lambda rows: function(rows).sum(0), x)
    return jacobian.movedim(0, 1)


def autograd_divergence(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Trace of the Jacobian, with shape (B,)."""
    return autograd_jacobian(function, x).diagonal(dim1=1, dim2=2).sum(1)


def torchdiffeq_solution(
    velocity: Callable[..., Tensor],
    x: Tensor,
    method: str,
    num_steps: int,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    context: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The path of x (num_steps + 1, B, d) and logdet at t1 (B,) by torchdiffeq's solver with autograd's divergence."""
    import torchdiffeq  # not on the bare machines that run test_gpu.py

    def augmented(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        def at_t(rows: Tensor) -> Tensor:
            return velocity(rows, t, context)

        return at_t(state[0]), autograd_divergence(at_t, state[0])

    times = torch.linspace(t0, t1, num_steps + 1, dtype=x.dtype)
    path, logdet = torchdiffeq.odeint(augmented, (x, x.new_zeros(x.shape[0])), times, method=method)
    return path, logdet[-1]


def assert_within_twice(got: Tensor, peer: Tensor, exact: Tensor, floor: float, what: str = "result") -> None:
    """The 2x rule: the error against float64 is at most twice that of PyTorch at the same dtype, plus a floor.

    Arguments:
        got: The result under test.
        peer: PyTorch's result at the dtype of ``got``.
        exact: The float64 result.
        floor: Absolute error that is always allowed, for results on which the peer is exact by luck.
        what: Named in the message.
    """
    assert got.dtype == peer.dtype
    assert got.shape == peer.shape == exact.shape, f"{what}: shapes {got.shape}, {peer.shape}, {exact.shape}"
    error, allowed = ((t.double() - exact).abs().max().item() if t.numel() else 0.0 for t in (got, peer))
    allowed = 2 * allowed + floor
    assert error <= allowed, f"{what}: error {error:.3e} against float64, allowed {allowed:.3e}"
