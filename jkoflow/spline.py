"""A smooth increasing function of every column, with its derivative and its inverse in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class MonotoneSpline(nn.Module):
    r"""Monotone rational-quadratic splines through knots, one per column; straight lines beyond the outer knots.

    Arguments:
        x: Abscissae of the knots, increasing along the last axis, with shape (d, K), K at least 2.
        y: Ordinates of the knots, increasing along the last axis, with shape (d, K).

    Raises:
        ValueError: If the shapes differ or the knots do not increase.

    References:
        | Piecewise rational quadratic interpolation to monotonic data (Gregory and Delbourgo, 1982)
        | https://doi.org/10.1093/imanum/2.2.123
        | Neural spline flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032

    Example:
        >>> spline = MonotoneSpline(torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[0.0, 2.0, 3.0]]))
        >>> spline(torch.tensor([[1.0]]))[0]
        tensor([[2.]])
    """

    x: Tensor
    y: Tensor
    slope: Tensor

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        if x.dim() != 2 or x.shape != y.shape or x.shape[1] < 2:
            raise ValueError(f"knots must have one shape (d, K), K >= 2, got {tuple(x.shape)} and {tuple(y.shape)}")
        self.register_buffer("x", x.clone())
        self.register_buffer("y", y.clone())
        self.register_buffer("slope", _slopes(x, y))
        if not x.is_meta:  # what is read from a file gets its numbers later
            self.check_numbers()

    def check_numbers(self) -> None:
        """Refuses knots that are no increasing function.

        Raises:
            ValueError: If the knots are not finite or do not increase, or a slope is not positive and finite.
        """
        x, y, slope = self.x, self.y, self.slope
        if not bool((x.diff() > 0).all() and (y.diff() > 0).all()):
            raise ValueError("the knots' x and y must increase along the last axis")
        if not bool(x.isfinite().all() and y.isfinite().all() and slope.isfinite().all() and (slope > 0).all()):
            raise ValueError("the knots must be finite and their slopes finite and positive")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the values at x (B, d) and the logarithms of the derivatives at x, both with shape (B, d)."""
        piece = self._piece(x, self.x)
        part = ((x - piece.x) / piece.width).clamp(0, 1)
        both = part * (1 - part)
        rise = (piece.mean * part.square() + piece.first * both) / (piece.mean + piece.bend * both)
        beyond = x - x.clamp(self.x[:, 0], self.x[:, -1])
        y = piece.y + piece.height * rise + beyond * torch.where(beyond < 0, self.slope[:, 0], self.slope[:, -1])
        return y, piece.log_derivative(part)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns values of the inverse at y (B, d) and the logarithms of its derivatives, both with shape (B, d)."""
        piece = self._piece(y, self.y)
        height = torch.minimum((y - piece.y).clamp(min=0), piece.height)
        # the root in [0, 1] of a quadratic, in the form without cancellation
        a = piece.height * (piece.mean - piece.first) + height * piece.bend
        b = piece.height * piece.first - height * piece.bend
        c = -piece.mean * height
        part = (2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())).clamp(0, 1)
        beyond = y - y.clamp(self.y[:, 0], self.y[:, -1])
        x = piece.x + piece.width * part + beyond / torch.where(beyond < 0, self.slope[:, 0], self.slope[:, -1])
        return x, -piece.log_derivative(part)

    def _piece(self, at: Tensor, knots: Tensor) -> _Piece:
        """Returns the pieces that hold the values (B, d), the outermost pieces for values beyond all knots."""
        index = torch.searchsorted(knots, at.T.contiguous(), right=True).sub_(1).clamp(0, knots.shape[1] - 2)

        def pick(values: Tensor, offset: int = 0) -> Tensor:
            return values.gather(1, index + offset).T

        x, y, first, last = pick(self.x), pick(self.y), pick(self.slope), pick(self.slope, 1)
        width, height = pick(self.x, 1) - x, pick(self.y, 1) - y
        mean = height / width
        return _Piece(x, y, width, height, mean, first, first + last - 2 * mean, last)


class _Piece(NamedTuple):
    """The piece of a spline between two knots, for each of the values (B, d)."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    mean: Tensor
    first: Tensor
    bend: Tensor
    last: Tensor

    def log_derivative(self, part: Tensor) -> Tensor:
        both = part * (1 - part)
        numerator = self.last * part.square() + 2 * self.mean * both + self.first * (1 - part).square()
        return 2 * (self.mean.log() - (self.mean + self.bend * both).log()) + numerator.log()


def _slopes(x: Tensor, y: Tensor) -> Tensor:
    """Returns derivatives at the knots: weighted harmonic means of the secants on both sides, and secants at the ends.

    The weights follow from the widths of the pieces.
    """
    width, secant = x.diff(), y.diff() / x.diff()
    before, after = width[:, :-1] + 2 * width[:, 1:], 2 * width[:, :-1] + width[:, 1:]
    inner = (before + after) / (before / secant[:, :-1] + after / secant[:, 1:])
    return torch.cat([secant[:, :1], inner, secant[:, -1:]], 1)
