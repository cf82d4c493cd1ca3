"""The sizes that are measured, and the work of solving them."""

from __future__ import annotations

from typing import Literal, NamedTuple

Direction = Literal["forward", "forward+backward"]
"""Name of a direction: solving a batch, or solving it and differentiating the loss with respect to every parameter."""

DIRECTIONS: tuple[Direction, ...] = ("forward", "forward+backward")

STAGES = 4
"""Number of evaluations of the velocity in a step of ``rk4``, the method of all measurements."""


class Shape(NamedTuple):
    """The sizes of one case: d features, hidden layers of one width, rows of the batch, Runge-Kutta steps."""

    dim: int
    width: int
    layers: int
    batch: int
    steps: int

    @property
    def text(self) -> str:
        """Returns a text such as ``d = 2, H = 128 x 2, B = 2000``; the steps are named if they are not the usual 3."""
        steps = "" if self.steps == 3 else f", {self.steps} steps"
        return f"d = {self.dim}, H = {self.width} x {self.layers}, B = {self.batch}{steps}"


SHAPES = (
    Shape(2, 128, 2, 2000, 3),
    Shape(2, 128, 3, 2000, 3),
    Shape(6, 128, 2, 10000, 3),
    Shape(43, 128, 2, 2000, 3),
    Shape(63, 256, 2, 1000, 3),
    Shape(6, 128, 2, 64, 3),
    Shape(2, 64, 2, 10000, 3),
)
"""Shapes that are measured on the CPU by default."""

_NETWORKS = (
    Shape(6, 128, 2, 10_000, 3),
    Shape(2, 128, 2, 10_000, 3),
    Shape(2, 128, 3, 10_000, 3),
    Shape(43, 128, 2, 10_000, 3),
    Shape(63, 256, 2, 10_000, 3),
    Shape(2, 64, 2, 10_000, 3),
)
CUDA_SHAPES = (*_NETWORKS, *(shape._replace(batch=100_000) for shape in _NETWORKS), Shape(6, 128, 2, 250, 3))
"""Shapes that are measured on a GPU by default: the goal's, the CPU's networks at two batch sizes, a training batch."""


def parse_shapes(text: str) -> list[Shape]:
    """Reads shapes written as ``d,H,layers,B,steps``, with spaces between shapes.

    Raises:
        ValueError: If a shape does not have five numbers, or has one that is not positive.

    Example:
        >>> parse_shapes("2,128,2,2000,3 6,128,2,64,3")[1].batch
        64
    """
    shapes = []
    for part in text.split():
        numbers = part.split(",")
        if len(numbers) != 5 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
            raise ValueError(
                f"a shape must be five positive numbers d,H,layers,B,steps such as 2,128,2,2000,3, got {part!r}"
            )
        shapes.append(Shape(*map(int, numbers)))
    if not shapes:
        raise ValueError("shapes must name at least one d,H,layers,B,steps, got none")
    return shapes


def forward_flops(shape: Shape) -> int:
    """Counts the operations of the products with weight matrices in a solve with the exact divergence.

    Per row and stage, in multiply-adds, for L hidden layers of width H:

    - the velocity: d H for the first layer (time and bias are no product), (L - 1) H^2, and H d for the last;
    - the divergence with L = 1: none (a dot product of H terms is not counted); with L = 2: H^2, the product with
      the matrix M of the closed form, whatever d; with L >= 3: d columns of the Jacobian through the layers 2 to L,
      d (L - 1) H^2, and the d H that contract them with the last layer. The first layer's columns are its weights.

    Activations, their slopes and the packing of operands are not work but overhead.
    """
    dim, width, layers = shape.dim, shape.width, shape.layers
    square = (layers - 1) * width**2
    velocity = 2 * dim * width + square
    divergence = square if layers <= 2 else dim * square + dim * width
    return 2 * shape.batch * shape.steps * STAGES * (velocity + divergence)


def flops(shape: Shape, direction: Direction, fused: bool = False) -> int:
    """Counts the operations of the products of a direction; differentiating a product costs two more products.

    The backward pass of `jkoflow.integrate` keeps the positions only and computes the stages a second time. That saves
    memory and counts as work: 4 times the forward products in all. The fused loss need not do so: 3 times.
    """
    if direction == "forward":
        return forward_flops(shape)
    return (3 if fused else 4) * forward_flops(shape)
