"""The integration of a block as one loop of PyTorch's own operations, which `torch.export` writes down."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from jkoflow.block import Block
from jkoflow.exporting.errors import ExportError
from jkoflow.ops.reference import State, beginning, mlp_rhs, one_step
from jkoflow.ops.tableau import TABLEAUX
from jkoflow.velocity import MLPField

Numbers = tuple[Tensor, ...]
"""A `State`, whose class the loop does not know."""


class Integration(nn.Module):
    """Integrates a block's velocity and its exact divergence with equal steps.

    The steps are one loop in the artefact, so that its size and the time to compile it hardly grow with their number.
    Only where weights depend on time are there numbers of every stage of it.

    Arguments:
        block: The block; its velocity must have a field, or one at every time.
        num_steps: Number of Runge-Kutta steps.
        inverse: Whether to go from the noise to the data.

    Raises:
        ExportError: If only the velocity's `forward` can evaluate it.
    """

    times: Tensor

    def __init__(self, block: Block, num_steps: int, inverse: bool = False) -> None:
        super().__init__()
        velocity, (start, end) = block.velocity, (block.t1, block.t0) if inverse else (block.t0, block.t1)
        self.tableau = TABLEAUX[block.method]
        self.dt = (end - start) / num_steps
        begins = start + self.dt * torch.arange(num_steps, dtype=torch.float64)
        times = begins[:, None] + self.dt * torch.tensor(self.tableau.c, dtype=torch.float64)  # (num_steps, stages)
        field = velocity.field()
        self.is_fixed = field is not None
        if field is None:
            field = velocity.fields_at(times.flatten())
        if field is None:
            raise ExportError(
                f"{type(velocity).__name__} cannot be exported: {velocity.unfused()}; export flows of the velocities "
                "of jkoflow.velocity, or give yours a field (docs/export.md)"
            )
        tensors, self.structure = tree_flatten(field)
        self.places = [isinstance(tensor, Tensor) for tensor in tensors]
        self.rest = [None if isinstance(tensor, Tensor) else tensor for tensor in tensors]
        self.register_buffer("times", times.to(field.weights[0].dtype))
        for place, tensor in enumerate(tensors):
            if isinstance(tensor, Tensor):
                # Copies: a loop that PyTorch exports takes no two views of one tensor.
                tensor = tensor if self.is_fixed else tensor.unflatten(0, times.shape)
                self.register_buffer(f"weights{place}", tensor.detach().clone(memory_format=torch.contiguous_format))

    def forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the image of x (B, d) and the logdet (B,), given standardised context (B, c)."""
        from torch._higher_order_ops.scan import scan  # see `jkoflow.exporting.formats.LEAST_TORCH`

        weights = list(self.buffers())[1:]
        if self.is_fixed:
            rhs = mlp_rhs(self._field(weights), context, "exact", None)

            def step(state: Numbers, times: Tensor) -> tuple[Numbers, tuple[()]]:
                return tuple(one_step(rhs, State(*state), times.unbind(), self.dt, self.tableau)), ()

            (x, logdet, *_), _ = scan(step, tuple(beginning(x)), self.times)
            return x, logdet

        def step_of(state: Numbers, weights: list[Tensor]) -> tuple[Numbers, tuple[()]]:
            def rhs(x: Tensor, stage: float | Tensor) -> tuple[Tensor, Tensor]:
                field = self._field([tensor[int(stage)] for tensor in weights])
                return mlp_rhs(field, context, "exact", None)(x, 0.0)  # whose weights are those of the stage's time

            return tuple(one_step(rhs, State(*state), range(len(self.tableau.c)), self.dt, self.tableau)), ()

        (x, logdet, *_), _ = scan(step_of, tuple(beginning(x)), weights)
        return x, logdet

    def _field(self, weights: list[Tensor]) -> MLPField:
        """Returns the field whose tensors are the given ones."""
        left = iter(weights)
        leaves = [next(left) if is_tensor else rest for is_tensor, rest in zip(self.places, self.rest, strict=True)]
        return tree_unflatten(leaves, self.structure)
