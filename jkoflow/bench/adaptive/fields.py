"""Fields that users of other libraries bring, written from their published equations in the form that is published."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GatedHypernet(nn.Module):
    r"""The field of torchdiffeq's example of a continuous flow: one hidden layer that a network makes of time.

    .. math:: v(x, t) = \frac{1}{m} \sum_{k=1}^m \tanh(w_k(t) \cdot x + b_k(t))\, u_k(t) \circ \mathrm{sigmoid}(g_k(t))

    References:
        | torchdiffeq, examples/cnf.py
        | https://github.com/rtqichen/torchdiffeq
    """

    def __init__(self, dim: int, units: int, hidden: int) -> None:
        super().__init__()
        self.dim, self.units = dim, units
        sizes = itertools.pairwise((1, hidden, hidden, units * (3 * dim + 1)))
        self.network = nn.ModuleList(nn.Linear(i, o) for i, o in sizes)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the units' weights w (m, d), outputs u sigmoid(g) (m, d) and biases b (m,) at a time."""
        first, second, last = self.network
        made = last(torch.tanh(second(torch.tanh(first(t.reshape(1, 1)))))).flatten()
        matrix = self.units * self.dim
        w, u, g, b = made.split((matrix, matrix, matrix, self.units))
        shape = self.units, self.dim
        return w.reshape(shape), u.reshape(shape) * torch.sigmoid(g.reshape(shape)), b

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Computes the velocity (B, d) at x (B, d), unit by unit as it is published."""
        w, u, b = self.at(t)
        rows = x.unsqueeze(0).repeat(self.units, 1, 1)  # (m, B, d)
        h = torch.tanh(rows @ w.unsqueeze(2) + b.reshape(-1, 1, 1))
        return (h @ u.unsqueeze(1)).mean(0)


class ConcatSquash(nn.Module):
    r"""The field of FFJORD's experiments on toy data: every layer is scaled and shifted by maps of time.

    .. math:: z = \mathrm{sigmoid}(G t + g) \circ (W h + b) + S t

    References:
        | FFJORD: Free-form continuous dynamics for scalable reversible generative models (Grathwohl et al., 2018)
        | https://arxiv.org/abs/1810.01367
    """

    def __init__(self, dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = (dim, *hidden, dim)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        self.gates = nn.ModuleList(nn.Linear(1, o) for o in widths[1:])
        self.shifts = nn.ModuleList(nn.Linear(1, o, bias=False) for o in widths[1:])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Computes the velocity (B, d) at x (B, d)."""
        t = t.reshape(1, 1)
        last = len(self.layers) - 1
        for index, (layer, gate, shift) in enumerate(zip(self.layers, self.gates, self.shifts, strict=True)):
            x = layer(x) * torch.sigmoid(gate(t)) + shift(t)
            x = x if index == last else torch.tanh(x)
        return x


class FourierTime(nn.Module):
    r"""The default field of zuko's continuous flow: an MLP of an embedding of time and of x, with ELU.

    .. math:: v(x, t) = \mathrm{MLP}([\cos(k \pi t), \sin(k \pi t), x]), \quad k = 1, \ldots, F

    References:
        | zuko
        | https://github.com/probabilists/zuko
    """

    frequencies: Tensor

    def __init__(self, dim: int, hidden: Sequence[int], frequencies: int) -> None:
        super().__init__()
        widths = (2 * frequencies + dim, *hidden, dim)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        self.register_buffer("frequencies", math.pi * torch.arange(1, frequencies + 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Computes the velocity (B, d) at x (B, d)."""
        phase = self.frequencies * t
        embedding = torch.cat([torch.cos(phase), torch.sin(phase)])
        h = torch.cat([embedding.expand(len(x), -1), x], dim=1)
        for layer in self.layers[:-1]:
            h = nn.functional.elu(layer(h))
        return self.layers[-1](h)
