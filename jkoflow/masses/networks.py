"""Small networks that give the masses of a column's states from the states of earlier columns and the context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from jkoflow.masses.learner import MEMBERS, Learner, Rows

STEPS, EPOCHS, BATCH, LEARNING_RATE, CHECKS = 600, 60, 128, 0.02, 20
"""Training: at most so many steps and times that a row is seen, rows of a step, first learning rate, and
comparisons on held-out rows, the best of which stays."""

LEAST_STEPS, MOST_UPDATES = 100, 3e8
"""Steps are fewer, though not fewer than the first, where all numbers together would be updated more often."""

MOST_JUDGED = 4096
"""Rows of a comparison, at most."""


class Networks(Learner):
    """Networks of one shape; the first layer gives, beside its hidden units, a part of the logits directly.

    Arguments:
        levels: Number of states of each earlier column.
        context_dim: Number c of conditioning variables.
        hidden: Widths of the hidden layers, at least one.
        count: Number K of states of the column.
    """

    starts: Tensor

    def __init__(self, levels: Sequence[int], context_dim: int, hidden: Sequence[int], count: int) -> None:
        super().__init__(len(levels), MEMBERS * (sum(hidden) + 3 * count))
        self.inputs, self.count, first = sum(levels), count, hidden[0] + count
        starts = [sum(levels[:number]) for number in range(len(levels))]
        self.register_buffer("starts", torch.tensor(starts, dtype=torch.int64, device="cpu"), persistent=False)

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(MEMBERS, *shape, dtype=torch.float32))

        self.embedding, self.slope = zeros(self.inputs, first), zeros(context_dim, first)
        self.weights = nn.ParameterList(zeros(*shape) for shape in pairwise([*hidden, count]))
        self.biases = nn.ParameterList(zeros(1, width) for width in [*hidden, count])

    def _start(self, own: Tensor, generator: torch.Generator) -> None:
        """Draws the hidden layers' numbers; the masses begin as the shares of the column's states (N,)."""
        inputs, hidden = self.earlier + self.slope.shape[1], self.biases[0].shape[-1]
        with torch.no_grad():
            for weight in (self.embedding, self.slope):
                weight[..., :hidden].normal_(0, inputs**-0.5, generator=generator)
            for weight in self.weights[:-1]:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
            for bias in self.biases[:-1]:
                bias.normal_(0, 0.5, generator=generator)
            self.biases[-1].copy_((torch.bincount(own, minlength=self.count).double() + 0.5).div(len(own)).log())

    def forward(self, states: Tensor, context: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Returns log masses (M, B, K), see `Learner.forward`."""
        first = context.to(dtype) @ self.slope.to(dtype)
        if self.earlier > 0:
            member = torch.arange(MEMBERS, device=states.device)[:, None, None] * self.inputs
            index = states[..., : self.earlier] + self.starts + member
            table = self.embedding.flatten(0, 1)
            first = first + functional.embedding_bag(index.flatten(0, 1), table, mode="sum").view_as(first).to(dtype)
        x, direct = first.tensor_split([first.shape[-1] - self.count], -1)
        for number, weight in enumerate(self.weights):
            x = functional.silu(x + self.biases[number].to(dtype)) @ weight.to(dtype)
        return (x + direct + self.biases[-1].to(dtype)).log_softmax(-1)

    def fit(self, rows: Rows, learnt: Tensor, judged: Rows, picked: Tensor, generator: torch.Generator) -> None:
        """Trains the networks on their log-likelihoods; each keeps the numbers that are best to its judges."""
        self._start(rows.states[:, self.earlier], generator)
        batch = min(BATCH, learnt.shape[1])
        affordable = int(MOST_UPDATES / sum(parameter.numel() for parameter in self.parameters()))
        steps = min(STEPS, EPOCHS * learnt.shape[1] // batch, max(LEAST_STEPS, affordable))
        picked = picked[:, :MOST_JUDGED]
        optimizer = torch.optim.Adam(self.parameters(), LEARNING_RATE, fused=True)
        best = begin = self.judge(judged, picked).mean(1)
        kept = [parameter.detach().clone() for parameter in self.parameters()]
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * LEARNING_RATE * (1 + math.cos(math.pi * step / steps))
            drawn = torch.randint(learnt.shape[1], (MEMBERS, batch), generator=generator)
            optimizer.zero_grad()
            (-self._own(rows, learnt.gather(1, drawn)).mean(1).sum()).backward()
            optimizer.step()
            if step * CHECKS // steps > (step - 1) * CHECKS // steps:
                now = self.judge(judged, picked).mean(1)
                for old, new in zip(kept, self.parameters(), strict=True):
                    old[now > best] = new.detach()[now > best]
                best = torch.maximum(best, now)
                if 2 * step >= steps and bool((best == begin).all()):
                    break  # there is nothing to learn
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), kept, strict=True):
                parameter.copy_(value)
