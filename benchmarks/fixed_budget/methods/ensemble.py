"""An ensemble: several flows, each trained in a part of the budget, and the mean of their densities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fixed_budget.methods.blockwise import train_blocks
from fixed_budget.model import Model, mean_nll
from fixed_budget.problem import Problem
from fixed_budget.trained import Trained
from jkoflow.metrics import CHUNK
from jkoflow.training import TrainConfig
from jkoflow.training.world import Clock


class Mixture(Model):
    """A mixture of flows with equal weights, which has a density, but no map.

    Arguments:
        members: The flows.
    """

    def __init__(self, members: Sequence[Model]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.levels = min(member.levels for member in members)
        self.val_level = max(member.val_level for member in members)

    def nll(self, x: Tensor, level: int = 0) -> Tensor:
        """Returns the negative log of the mean density, with shape (B,)."""
        members: list[Model] = list(self.members)  # type: ignore[arg-type]
        return math.log(len(members)) - torch.logsumexp(torch.stack([-member.nll(x, level) for member in members]), 0)


def train_ensemble(problem: Problem, config: TrainConfig, members: int, clock: Clock | None = None) -> Trained:
    """Trains flows with seeds of their own, one after the other, in one budget for all, and mixes them."""
    assert config.time_budget is not None
    budget, flows = config.time_budget / members, []
    for member in range(members):
        seed = members * config.seed + member
        flows.append(train_blocks(problem, dataclasses.replace(config, time_budget=budget, seed=seed), clock))
    model = Mixture([flow.model for flow in flows])
    extra = {name: [flow.extra[name] for flow in flows] for name in ("blocks", "steps_per_block")}
    return Trained(
        model,
        sum(flow.batches for flow in flows),
        sum(flow.seconds for flow in flows),
        mean_nll(model, problem.val, model.val_level, CHUNK),
        [],
        [event for flow in flows for event in flow.events],
        {"initial_map": flows[0].extra["initial_map"], **extra},
        max((flow.memory for flow in flows if flow.memory is not None), default=None),
    )
