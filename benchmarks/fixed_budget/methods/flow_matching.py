r"""Flow matching: the velocity is fitted to straight lines from data to noise, and training integrates nothing.

Time goes forward as everywhere in this package, from the data at t = 0 to the noise at t = 1; the papers count it from
the noise. With a row x, a partner y of the noise, and t uniform on [0, 1], training minimises

.. math:: E \left| v((1 - t) x + t y, t) - (y - x) \right|^2

whose minimum is the velocity that carries the distribution of x to that of y. The likelihood is that of the flow along
this velocity, by the same kernels and the same refinement as for every other continuous flow.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fixed_budget.methods.block_flow import BlockFlow
from jkoflow.data import require
from jkoflow.flow import JKOFlow
from jkoflow.initial_map import InitialMap
from jkoflow.ops.grid import Fixed
from jkoflow.training import TrainConfig
from jkoflow.training.pushed import generator
from jkoflow.training.start import block_of

FINEST_VALIDATION = 96
"""Steps per block beyond which validation does not go."""

Coupling = Literal["independent", "ot"]
"""How rows find their partners in the noise: as drawn, or such that a batch's squared distances have the least sum."""


class FlowMatching(BlockFlow):
    r"""A flow of one block that is trained by flow matching, towards the noise or a part of the way.

    Arguments:
        flow: The flow, with one block; rows enter it as they do for a likelihood.
        steps: Runge-Kutta steps of level 0. Training takes none; validation refines them if they are too few.
        seed: Seed of noise and times.
        coupling: See `Coupling`.
        time: How long the Ornstein-Uhlenbeck process runs from a row to its partner
            :math:`e^{-T} x + \sqrt{1 - e^{-2T}}\, \varepsilon`; inf stands for the noise itself.

    Raises:
        ValueError: If the coupling is unknown, or partners depend on their rows and are to be coupled anew.

    References:
        | Flow matching for generative modeling (Lipman et al., 2022)
        | https://arxiv.org/abs/2210.02747
        | Improving and generalizing flow-based generative models with minibatch optimal transport (Tong et al., 2023)
        | https://arxiv.org/abs/2302.00482
    """

    trains_on_grid = False

    def __init__(
        self, flow: JKOFlow, steps: int, seed: int, coupling: Coupling = "independent", time: float = math.inf
    ) -> None:
        super().__init__(flow, Fixed(steps), FINEST_VALIDATION)
        if coupling not in ("independent", "ot"):
            raise ValueError(f"coupling must be independent or ot, got {coupling!r}")
        if coupling == "ot" and time < math.inf:
            raise ValueError(f"coupling must be independent if time is finite, got {coupling!r} and {time}")
        self.velocity, self.coupling, self.time = flow.stack[0].velocity, coupling, time
        self._generator = generator(seed)

    def loss(self, x: Tensor) -> Tensor:
        """Returns the mean squared error of the velocity at a random time on every row's line."""
        with torch.no_grad():
            start = self.flow.enter(x)[0]
            noise = torch.randn(start.shape, generator=self._generator, dtype=start.dtype)
            if self.coupling == "ot":
                noise = noise[nearest(start, noise)]
            end = noise
            if self.time < math.inf:
                end = math.exp(-self.time) * start + math.sqrt(-math.expm1(-2 * self.time)) * noise
            # one time in each of B equal parts of [0, 1]: every one is uniform, and together they vary less
            place = torch.randperm(len(start), generator=self._generator)
            t = (place + torch.rand(len(start), generator=self._generator)) / len(start)
            between = torch.lerp(start, end, t.unsqueeze(1).to(start.dtype))
        return (self.velocity(between, t) - (end - start)).square().sum(1).mean()


def nearest(x: Tensor, y: Tensor) -> Tensor:
    """Returns the order of y (B, d) that makes the sum of squared distances to x (B, d) the smallest, shape (B,)."""
    assign = require("scipy.optimize", "the coupling ot", "test").linear_sum_assignment
    return torch.from_numpy(assign(torch.cdist(x, y).square().numpy())[1])


def single_block(
    dim: int,
    seed: int,
    config: TrainConfig,
    initial_map: InitialMap | None = None,
    steps: int = 8,
    coupling: Coupling = "independent",
) -> FlowMatching:
    """Returns a flow of one block of the configuration, to be trained by flow matching.

    Arguments:
        dim: Number d of columns.
        seed: Seed of parameters, noise and times.
        config: The block's settings.
        initial_map: The map before the block.
        steps: Runge-Kutta steps that validation begins with.
        coupling: See `Coupling`.
    """
    torch.manual_seed(seed)
    block = block_of(config, Fixed(steps), dim)
    block.velocity.scale_output(0.0)
    return FlowMatching(JKOFlow(dim, [block], initial_map=initial_map), steps, seed, coupling)
