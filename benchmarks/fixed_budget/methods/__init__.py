"""The methods that are compared, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fixed_budget.model import Model
from fixed_budget.optimizers import maker
from fixed_budget.peer_training import train_peer
from fixed_budget.problem import Problem
from fixed_budget.trained import Trained
from jkoflow.training import TrainConfig
from jkoflow.training.choose_map import AUTO, Worth, fit_map
from jkoflow.training.first_layer import first_layer_scale
from jkoflow.training.world import Clock, World

OURS = "jkoflow"


def end_to_end(
    rows: Tensor,
    seed: int,
    config: TrainConfig,
    initial_map: str = "auto",
    width: int | None = None,
    **settings: Any,
) -> Model:
    """Builds an end-to-end flow of the same blocks as block-wise training has, behind the same initial map."""
    from fixed_budget.methods import block_flow

    if width is not None:
        config = dataclasses.replace(config, hidden=(width, width))
    if initial_map == AUTO and Worth(rows).wants_splines:
        initial_map = "marginals+whiten"
    entrance = fit_map(rows, initial_map)
    scale = first_layer_scale(entrance(rows)[0])
    return block_flow.end_to_end(rows.shape[1], seed, config, entrance, scale, **settings)


def ffjord(rows: Tensor, seed: int, config: TrainConfig, **settings: Any) -> Model:
    """Builds FFJORD with the hidden layers of our blocks."""
    from fixed_budget.methods.ffjord import FFJORD

    return FFJORD(rows.shape[1], seed, config.first_hidden, **settings)


def flow_matching(rows: Tensor, seed: int, config: TrainConfig, initial_map: str = "whiten", **settings: Any) -> Model:
    """Builds a flow of one of our blocks, to be trained by flow matching."""
    from fixed_budget.methods.flow_matching import single_block

    return single_block(rows.shape[1], seed, config, fit_map(rows, initial_map), **settings)


def local_flow_matching(
    rows: Tensor, seed: int, config: TrainConfig, initial_map: str = "whiten", **settings: Any
) -> Model:
    """Builds a chain of our blocks, to be trained by flow matching one after the other."""
    from fixed_budget.methods.local_flow_matching import chain_of_blocks

    return chain_of_blocks(rows.shape[1], seed, config, fit_map(rows, initial_map), **settings)


def _train_chain(*arguments: Any) -> Trained:
    from fixed_budget.methods.local_flow_matching import train_chain

    return train_chain(*arguments)


def ot_flow(rows: Tensor, seed: int, config: TrainConfig, **settings: Any) -> Model:
    """Builds OT-Flow, by default with the width of our blocks."""
    from fixed_budget.methods.ot_flow import OTFlow

    return OTFlow(rows.shape[1], seed, **{"width": config.first_hidden[0], **settings})


def maf(rows: Tensor, seed: int, config: TrainConfig, **settings: Any) -> Model:
    """Builds the library zuko's MAF."""
    from fixed_budget.methods.autoregressive import Autoregressive

    return Autoregressive(rows.shape[1], seed, "MAF", hidden=config.first_hidden, **settings)


def nsf(rows: Tensor, seed: int, config: TrainConfig, **settings: Any) -> Model:
    """Builds the library zuko's NSF."""
    from fixed_budget.methods.autoregressive import Autoregressive

    return Autoregressive(rows.shape[1], seed, "NSF", hidden=config.first_hidden, **settings)


def sospf(rows: Tensor, seed: int, config: TrainConfig, **settings: Any) -> Model:
    """Builds the library zuko's sum-of-squares polynomial flow."""
    from fixed_budget.methods.autoregressive import Autoregressive

    return Autoregressive(rows.shape[1], seed, "SOSPF", hidden=config.first_hidden, **settings)


PEERS: dict[str, Callable[..., Model]] = {
    "end_to_end": end_to_end, "flow_matching": flow_matching, "local_flow_matching": local_flow_matching,
    "ffjord": ffjord, "ot_flow": ot_flow, "maf": maf, "nsf": nsf, "sospf": sospf,
}  # fmt: skip
"""Builders of the methods that share one training loop, by name: functions of standardised training rows, seed, the
default configuration and settings."""

TRAINERS: dict[str, Callable[..., Trained]] = {"local_flow_matching": _train_chain}
"""Training loops other than `train_peer`, with its arguments."""

METHODS = (OURS, *PEERS)

FEW_ROWS = 200
"""Number of rows for a model that is built in order to load what its method needs."""


def train(
    name: str,
    problem: Problem,
    settings: Mapping[str, Any],
    budget: float,
    seed: int,
    config: TrainConfig,
    members: int = 1,
    clock: Clock | None = None,
) -> Trained:
    """Trains a method for a budget of seconds.

    Arguments:
        name: One of `METHODS`.
        problem: The rows.
        settings: Settings from `fixed_budget.settings.of`: ``learning_rate`` and arguments of the method's function;
            for peers also ``optimizer``, one of `fixed_budget.optimizers.OPTIMIZERS`, and ``batch_size`` in place of
            the configuration's.
        budget: Seconds of training.
        seed: Seed of parameters, batches and probes.
        config: Configuration, with the sizes of networks and batches and Adam's constants.
        members: Number of flows to mix; other than 1 for our method only.
        clock: Function that returns the seconds by which the budget is measured; the machine's clock if None.

    Raises:
        ValueError: If the method is unknown, or a peer's flows are to be mixed.
    """
    if name == OURS:
        from fixed_budget.methods.blockwise import train_blocks
        from fixed_budget.methods.ensemble import train_ensemble

        config = dataclasses.replace(config, time_budget=budget, seed=seed, **settings)
        if members == 1:
            return train_blocks(problem, config, clock)
        return train_ensemble(problem, config, members, clock)
    if members != 1:
        raise ValueError(f"members must be 1 for {name}, got {members}")
    if name not in PEERS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    rest = dict(settings)
    rate, make_optimizer = rest.pop("learning_rate"), maker(rest.pop("optimizer", "adam"))
    config = dataclasses.replace(config, batch_size=rest.pop("batch_size", config.batch_size))
    PEERS[name](problem.train[:FEW_ROWS], seed, config, **rest)  # imports, which the budget does not count
    world = World(clock)
    model = PEERS[name](problem.train, seed, config, **rest)
    rest_of_budget = budget - world.elapsed()
    return TRAINERS.get(name, train_peer)(model, problem, config, rate, rest_of_budget, seed, clock, make_optimizer)
