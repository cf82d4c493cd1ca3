"""The beginning of a training: a flow without blocks, the samples that enter its first block, and new blocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from jkoflow.block import Block
from jkoflow.data import Dataset
from jkoflow.data.continuous import Choice, Scale, Treatments
from jkoflow.data.ordered_values import OrderedValues
from jkoflow.data.sight import in_sight
from jkoflow.flow import JKOFlow, base_log_prob
from jkoflow.initial_map import CORE_SEARCH, Radial
from jkoflow.links import Link, Links, links_or_none
from jkoflow.mapped import empty_beside, is_mapped, parts
from jkoflow.metrics import spread_rows
from jkoflow.ops.grid import Grid
from jkoflow.training.choose_map import AUTO, FIT_ROWS, FITS, Worth, fit_columns, fit_map
from jkoflow.training.config import TrainConfig
from jkoflow.training.place import Place
from jkoflow.training.pushed import PushedSamples, generator
from jkoflow.training.world import World
from jkoflow.velocity import MLPVelocity

MOMENT_ROWS = 4096
"""Rows whose moments are summed at once."""

ENTERED_ROWS = 8192
"""Rows that go through the initial map at once, so that what lies between its stages stays in the cache."""

NEAR = 100.0
"""Distance from the mean, in deviations of a column, up to which all of its values may go through a spline."""


def plain_flow(data: Dataset, config: TrainConfig, treatments: Treatments) -> JKOFlow:
    """Returns a flow without blocks: the links, the standardisation and the initial map of the data."""
    choices, context_choices = treatments
    links = links_or_none([choice.link for choice in choices])
    context, context_links = _context_moments(data, context_choices)
    flow = JKOFlow(data.dim, (), *_moments(data.train, links, choices), None, *context, None, links, context_links)
    standardised = flow.standardized(spread_rows(data.train, FIT_ROWS))[0]
    worth = Worth(standardised)
    splines = config.initial_map == AUTO and _are_near(standardised) and worth.wants_splines
    scales = [_through_quantiles(choice).scale if splines else choice.scale for choice in choices]
    columns = {scale: found for scale in FITS if (found := [c for c, own in enumerate(scales) if own is scale])}
    first = fit_columns(standardised, columns, _reach(flow, data, choices)) if columns else []
    flow.initial_map = fit_map(standardised, config.initial_map, first, worth)
    return flow


def _through_quantiles(choice: Choice) -> Choice:
    """Returns the choice for a column with a spline of all of its quantiles in place of another treatment.

    What brings values far out near the others stays, since most quantiles say nothing of these.
    """
    return choice if choice.scale is Scale.CORE else choice._replace(scale=Scale.QUANTILES)


def settled(treatments: Treatments, data: Dataset, config: TrainConfig) -> Treatments:
    """Returns the treatments, without those of heavy tails where one radial map of all columns describes these better.

    Tails that are heavy in all columns at once, as those of patches of photographs, are no matter of single columns.
    """
    heavy = [choice.link.kind == "asinh" and choice.scale is Scale.QUANTILES for choice in treatments.columns]
    if config.initial_map != AUTO or not any(heavy):
        return treatments
    plain = Choice(Link(), Scale.MOMENTS, "its heavy tails are those of all columns, which a radial map describes")
    columns = [plain if is_heavy else choice for choice, is_heavy in zip(treatments.columns, heavy, strict=True)]
    others = treatments._replace(columns=columns)
    flow = plain_flow(data, config, others)
    if not any(isinstance(stage, Radial) for stage in flow.initial_map.stages):
        return treatments
    better = _first_nll(flow, data) < _first_nll(plain_flow(data, config, treatments), data)
    return others if better else treatments


def _first_nll(flow: JKOFlow, data: Dataset) -> float:
    """Returns the mean NLL of training and validation rows before the first block, in nats."""
    nlls = []
    for rows in (data.train, data.val):
        point, logdet = flow.enter(spread_rows(rows, FIT_ROWS))
        nlls.append(-(base_log_prob(point) + logdet).double())
    return float(torch.cat(nlls).mean().nan_to_num(math.inf))


def _are_near(rows: Tensor) -> bool:
    """Tells whether no value of standardised rows (N, d) is so far out that splines would hide it."""
    return len(rows) > 0 and float(rows.abs().max()) <= NEAR


def _reach(flow: JKOFlow, data: Dataset, choices: Sequence[Choice]) -> Tensor:
    """Returns the least and the largest value of every standardised column, with shape (2, d).

    Those of a column whose mean and deviation mislead are over the rows of all parts. Others have none far out among
    the training rows, and where another part has one, it is to be noticed.
    """
    ends = [_ends(flow, rows) for rows in (data.train, data.val, data.test)]
    own = torch.tensor([choice.scale is Scale.MOMENTS for choice in choices], device=ends[0].device)
    low, high = torch.stack([e[0] for e in ends]).amin(0), torch.stack([e[1] for e in ends]).amax(0)
    return torch.stack([torch.where(own, ends[0][0], low), torch.where(own, ends[0][1], high)])


def _ends(flow: JKOFlow, rows: Tensor) -> Tensor:
    """Returns the least and the largest value of every standardised column of rows (N, d), with shape (2, d)."""
    ends = torch.stack([torch.stack(flow.standardized(part)[0].aminmax(dim=0)) for part in parts(rows)])
    return torch.stack([ends[:, 0].amin(0), ends[:, 1].amax(0)])


def given_flow(start: JKOFlow, data: Dataset) -> JKOFlow:
    """Returns a copy of a flow to start from, after checking that it can be trained on the data.

    Raises:
        ValueError: If the flow has no blocks, other columns than the data or another dtype than float32.
    """
    if not start.stack:
        raise ValueError("start must have at least one block to train, got none; leave it out to build a chain")
    if start.dim != data.dim:
        raise ValueError(f"start must have the {data.dim} columns of the data, got a flow of {start.dim}")
    if start.context_dim != data.context_dim:
        raise ValueError(
            f"start must have the {data.context_dim} context columns of the data, got a flow with {start.context_dim}"
        )
    if start.standardize.mean.dtype != torch.float32:
        raise ValueError(
            f"start must be float32, as training is, got {start.standardize.mean.dtype}; pass start.float()"
        )
    return copy.deepcopy(start)


@torch.no_grad()
def entered_rows(flow: JKOFlow, rows: Tensor) -> Tensor:
    """Returns rows (N, d) as they enter the flow's first block, on the flow's device."""
    device = flow.standardize.mean.device
    entered = empty_beside(rows, len(rows)) if device == rows.device else torch.empty_like(rows, device=device)
    for before, after in zip(parts(rows, ENTERED_ROWS), parts(entered, ENTERED_ROWS), strict=True):
        after.copy_(flow.enter(before.to(after.device))[0])
    return entered


def entering(
    flow: JKOFlow,
    data: Dataset,
    val_rows: int,
    world: World,
    place: Place | None = None,
    train: Tensor | None = None,
) -> PushedSamples:
    """Returns the data as they enter the flow's first block, with at most ``val_rows`` validation rows.

    Arguments:
        flow: The flow.
        data: The data.
        val_rows: Largest number of validation rows.
        world: The processes that hold the samples.
        place: Which training rows are those of this process; None if they are all.
        train: The training rows of this process as they enter the block, with shape (n, d), if they are known.
    """
    own = slice(None) if place is None else slice(place.start, place.stop)
    device = flow.standardize.mean.device
    with torch.no_grad():
        train = entered_rows(flow, data.train[own]) if train is None else train
        val, logdet = flow.initial_map(flow.standardized(spread_rows(data.val, val_rows).to(device))[0])
        contexts: tuple[Tensor | None, Tensor | None] = (None, None)
        if data.train_context is not None and data.val_context is not None:
            val_context = spread_rows(data.val_context, val_rows).to(device)
            contexts = (
                _standardized_context(flow, data.train_context[own], device),
                flow.standardized_context(val_context, val.shape[0]),
            )
    return PushedSamples(train, val, logdet, *contexts, world, place)


def _standardized_context(flow: JKOFlow, context: Tensor, device: torch.device) -> Tensor | None:
    """Returns the context (N, c) of rows as the blocks take it, on a device."""
    if not is_mapped(context):
        return flow.standardized_context(context.to(device), len(context))
    taken = empty_beside(context, len(context))
    for before, after in zip(parts(context, ENTERED_ROWS), parts(taken, ENTERED_ROWS), strict=True):
        standardised = flow.standardized_context(before, len(before))
        assert standardised is not None
        after.copy_(standardised)
    return taken


def new_block(
    data: Dataset,
    config: TrainConfig,
    hidden: Sequence[int],
    grid: Grid,
    index: int,
    jko_step: float,
    before: Block | None,
) -> Block:
    """Returns a block to train, on the CPU, with the parameters of the block before it.

    Arguments:
        data: Data, of which the numbers of columns and of conditioning variables are read.
        config: Settings, of which the kind of network and the seed are read.
        hidden: Widths of the hidden layers.
        grid: Grid that its training begins with.
        index: Number of the block, from 0.
        jko_step: JKO step size h of the new block.
        before: The block before it; None for the first one, which starts as the identity.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(config.seed, index).initial_seed())
        block = block_of(config, grid, data.dim, data.context_dim, jko_step, hidden)
    if before is None:
        block.velocity.scale_output(0.0)  # an arbitrary velocity would first have to be unlearned
    else:
        block.velocity.load_state_dict(before.velocity.state_dict())
    return block


def block_of(
    config: TrainConfig,
    grid: Grid,
    dim: int,
    context_dim: int = 0,
    jko_step: float = math.inf,
    hidden: Sequence[int] | None = None,
) -> Block:
    """Returns a block with the configuration's network, whose parameters are drawn from PyTorch's generator."""
    hidden = config.first_hidden if hidden is None else hidden
    with _single_precision():
        velocity = MLPVelocity(dim, hidden, config.activation, config.time, context_dim, config.linear)
    return Block(velocity, grid, config.method, jko_step=jko_step)


@contextmanager
def _single_precision() -> Iterator[None]:
    """Makes new parameters float32, as the data are, with the same numbers whatever PyTorch's default dtype is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _context_moments(
    data: Dataset, choices: Sequence[Choice]
) -> tuple[tuple[Tensor | None, Tensor | None], Links | None]:
    """Returns location and scale of the conditioning variables, 0 and 1 if they are prepared, and their links."""
    if data.train_context is None:
        return (None, None), None
    if data.prepared:
        return (torch.zeros(data.context_dim), torch.ones(data.context_dim)), None
    links = links_or_none([choice.link for choice in choices])
    return _moments(data.train_context, links, choices), links


def _behind(links: Links, rows: Tensor) -> Tensor:
    """Returns rows (N, d) behind links."""
    if not is_mapped(rows):
        return links(rows)[0]
    linked = empty_beside(rows, len(rows))
    for before, after in zip(parts(rows, ENTERED_ROWS), parts(linked, ENTERED_ROWS), strict=True):
        after.copy_(links(before)[0])
    return linked


def _moments(rows: Tensor, links: Links | None, choices: Sequence[Choice]) -> tuple[Tensor, Tensor]:
    """Returns location and scale of every column of rows (N, d) behind links, computed in float64, with shapes (d,).

    They are mean and standard deviation; those of the values that are not wild, where these are apart from the others;
    or median and spread of the central quantiles for heavy tails.
    """
    rows = rows if links is None else _behind(links, rows)
    # in parts, since all rows in float64 would not stay in the cache; sums of their own between the parts' numbers
    # would keep the allocator from using memory again
    sums = rows.new_empty(math.ceil(len(rows) / MOMENT_ROWS), rows.shape[1], dtype=torch.float64)
    for number, part in enumerate(parts(rows, MOMENT_ROWS)):
        sums[number] = part.sum(0, dtype=torch.float64)
    mean = sums.sum(0) / len(rows)
    for number, part in enumerate(parts(rows, MOMENT_ROWS)):
        sums[number] = (part.double() - mean).square().sum(0)
    squares = sums.sum(0)
    std = (squares / len(rows)).sqrt()
    by_quantiles = [c for c, choice in enumerate(choices) if choice.scale in (Scale.QUANTILES, Scale.CORE)]
    if by_quantiles:
        some = in_sight(rows)
        for column in by_quantiles:
            values = OrderedValues.of(some[:, column].double().cpu().numpy())
            apart = choices[column].scale is Scale.CORE
            location, scale = values.moments(CORE_SEARCH) if apart else (values.quantile(0.5), values.spread)
            mean[column], std[column] = location, scale or std[column]
    return mean.float(), std.float()
