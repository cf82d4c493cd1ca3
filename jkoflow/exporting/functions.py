"""The functions of a flow that can be exported, as modules of PyTorch's own operations."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from jkoflow.composition import base_log_prob
from jkoflow.exporting.integration import Integration
from jkoflow.flow import JKOFlow
from jkoflow.initial_map import Whiten
from jkoflow.ops.grid import Fixed


class Function(nn.Module):
    """The base of the functions: the flow's layers and blocks in one direction, checked for nothing.

    Arguments:
        flow: The flow, which is copied.
        grids: The grid of every block, from the data to the noise.
    """

    inputs: ClassVar[str] = "x"
    """Name of what is carried: data x, or noise z."""

    outputs: ClassVar[tuple[str, ...]]
    """Names of the results."""

    inverse: ClassVar[bool] = False
    """Whether the function goes from noise to data."""

    def __init__(self, flow: JKOFlow, grids: Sequence[Fixed]) -> None:
        super().__init__()
        flow = copy.deepcopy(flow).requires_grad_(False).eval()
        pairs = list(zip(flow.stack, grids, strict=True))
        steps = (Integration(block, grid.num_steps, self.inverse) for block, grid in pairs)
        self.steps = nn.ModuleList(reversed(list(steps)) if self.inverse else steps)
        flow.blocks = nn.ModuleList()
        stages = flow.initial_map.stages
        flow.initial_map.stages = nn.ModuleList(_Whitened(s) if isinstance(s, Whiten) else s for s in stages)
        self.layers = flow

    def through(self, point: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Carries points (B, d) to the other side; returns them with the logdet of the whole map (B,)."""
        layers = self.layers
        if context is not None and layers.context_links is not None:
            context = layers.context_links(context)[0]
        if context is not None and layers.standardize_context is not None:
            context = layers.standardize_context(context)[0]
        if self.inverse:
            logdet = point.new_zeros(point.shape[0])
        else:
            point, logdet = layers.enter(point)
        for step in self.steps:
            point, increment = step(point, context)
            logdet = logdet + increment
        if self.inverse:
            point, increment = layers.leave(point)
            logdet = logdet + increment
        return point, logdet


class LogProb(Function):
    """Data to their log-density."""

    outputs = ("log_prob",)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Returns log-densities (B,) of data x (B, d) given context (B, c)."""
        z, logdet = self.through(x, context)
        return (base_log_prob(z) + logdet,)


class Forward(Function):
    """Data to noise."""

    outputs = ("z", "logdet")

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Returns the noise (B, d) of data x (B, d) and the log abs det of the map (B,)."""
        return self.through(x, context)


class Inverse(Function):
    """Noise to data."""

    inputs, outputs, inverse = "z", ("x", "logdet"), True

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Returns the data (B, d) of noise z (B, d) and the log abs det of the map (B,)."""
        return self.through(z, context)


class Sample(Function):
    """Noise, which the caller draws, to samples and their log-density."""

    inputs, outputs, inverse = "z", ("x", "log_prob"), True

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Returns the samples (B, d) that standard Gaussian noise z (B, d) makes, and their log-densities (B,)."""
        x, logdet = self.through(z, context)
        return x, base_log_prob(z) - logdet


FUNCTIONS: dict[str, type[LogProb | Forward | Inverse | Sample]] = {
    "log_prob": LogProb,
    "forward": Forward,
    "inverse": Inverse,
    "sample": Sample,
}
"""The functions by name."""


class _Whitened(nn.Module):
    """A `Whiten` whose inverse and determinant are numbers of the artefact and not computed by it.

    Arguments:
        whiten: The map.
    """

    mean: Tensor
    root: Tensor
    inverse_root: Tensor
    log_det: Tensor

    def __init__(self, whiten: Whiten) -> None:
        super().__init__()
        exact = whiten.root.double()
        self.register_buffer("mean", whiten.mean)
        self.register_buffer("root", whiten.root)
        self.register_buffer("inverse_root", torch.linalg.inv(exact).contiguous())  # in float64, see `Whiten.forward`
        self.register_buffer("log_det", torch.linalg.slogdet(exact)[1].to(whiten.root.dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images (B, d) and logdets (B,) of x (B, d)."""
        y = (x.double() - self.mean.double()) @ self.inverse_root.t()
        return y.to(x.dtype), -self.log_det.expand(x.shape[0])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns preimages (B, d) and logdets (B,) of the inverse map for y (B, d)."""
        return y @ self.root.t() + self.mean, self.log_det.expand(y.shape[0])
