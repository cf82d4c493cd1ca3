"""What holds for every flow, whatever its numbers: inversion, Jacobians, refinement, units, order of rows, files."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jkoflow
from jkoflow import Block, JKOFlow, MLPVelocity, TrainConfig
from jkoflow.data import load_dataset
from jkoflow.initial_map import RECIPES, InitialMap
from jkoflow.links import Link, Links
from jkoflow.velocity import ConcatSquashMLP, FourierTimeMLP, ResidualMLP
from soak import amount

KINDS = [MLPVelocity, MLPVelocity, ConcatSquashMLP, FourierTimeMLP, ResidualMLP]
LINKS = [Link(), Link("asinh", centre=0.1, scale=0.7), Link("log", lower=-30.0), Link("logit", lower=-40.0, upper=35.0)]


@st.composite
def flows(draw, dtype=torch.float64):
    """Flows of random shape and numbers, with rows (B, d) and conditions (B, c) for them."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    dim, context_dim = draw(st.integers(1, 4)), draw(st.sampled_from([0, 0, 2]))
    activation, hidden = (
        draw(st.sampled_from(["tanh", "silu", "softplus", "elu"])),
        draw(st.sampled_from([(7,), (8, 5)])),
    )
    rows = torch.randn(60, dim, dtype=torch.float64) * torch.rand(dim).add(0.3) + torch.randn(dim)
    links = [draw(st.sampled_from(LINKS)) for _ in range(dim)] if draw(st.booleans()) else None
    entered = rows if links is None else Links(links)(rows)[0]
    mean, std = entered.mean(0), entered.std(0)
    recipe = draw(st.sampled_from(sorted(RECIPES)))
    initial_map = InitialMap.fit((entered - mean) / std, recipe)
    blocks = []
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(KINDS))
        velocity = kind(
            dim, hidden if kind is not ResidualMLP else (6, 6), activation, context_dim=context_dim
        ).double()
        velocity.scale_output(draw(st.sampled_from([0.3, 1.0])))
        start = draw(st.sampled_from([0.0, 0.5]))
        method = draw(st.sampled_from(["rk4", "midpoint", "tsit5"]))
        blocks.append(Block(velocity, 2 * draw(st.integers(2, 5)), method, start, start + 0.8, jko_step=0.5))
    conditions = None if context_dim == 0 else torch.randn(60, 2, dtype=torch.float64)
    scale = (None, None) if conditions is None else (conditions.mean(0), conditions.std(0))
    flow = JKOFlow(dim, blocks, mean, std, None, *scale, initial_map, None if links is None else Links(links))
    flow = flow.to(dtype).requires_grad_(False).eval()
    some = slice(0, draw(st.integers(1, 9)))
    return flow, rows[some].to(dtype), None if conditions is None else conditions[some].to(dtype)


many = settings(max_examples=amount(25, 3000))


@many
@given(flows())
def test_the_exact_inverse_inverts(case):
    flow, x, context = case
    z, logdet = flow(x, context)
    back, inverse_logdet = flow.inverse(z, context, exact=True)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(inverse_logdet, -logdet, rtol=1e-7, atol=1e-7)


@many
@given(flows())
def test_densities_are_those_of_the_jacobian(case):
    flow, x, context = case

    def jacobian(steps):
        def one(row, condition):
            return flow.carry(row[None], None if condition is None else condition[None], steps, validate=False)[0]

        given = [None] * len(x) if context is None else list(context)
        return torch.stack(
            [torch.autograd.functional.jacobian(lambda r, c=c: one(r, c), row) for row, c in zip(x, given, strict=True)]
        )

    z, logdet = flow(x, context, discrete=True)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian(None))[1], logdet, rtol=1e-6, atol=1e-6)
    z, logdet = flow(x, context, 64)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian(64))[1], logdet, rtol=1e-4, atol=1e-4)
    base = -0.5 * (z.square().sum(1) + flow.dim * math.log(2 * math.pi))
    torch.testing.assert_close(flow.log_prob(x, context, 64), base + logdet, rtol=1e-12, atol=1e-12)


@many
@given(flows())
def test_samples_come_with_their_densities(case):
    flow, x, context = case
    samples, log_prob = flow.sample_and_log_prob(len(x), context, exact=True)
    torch.testing.assert_close(flow.log_prob(samples, context), log_prob, rtol=1e-6, atol=1e-6)


@many
@given(flows(), st.sampled_from([1, 2]))
def test_refinement_changes_nothing(case, factor):
    flow, x, context = case
    torch.testing.assert_close(
        flow.refine(factor).log_prob(x, context), flow.log_prob(x, context), rtol=1e-10, atol=1e-10
    )


@many
@given(flows(torch.float32), st.data())
def test_a_row_does_not_depend_on_the_others(case, data):
    flow, x, context = case
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    whole = flow.log_prob(x, context)
    moved = flow.log_prob(x[order], None if context is None else context[order])
    assert torch.equal(moved, whole[order])
    alone = [flow.log_prob(x[i : i + 1], None if context is None else context[i : i + 1]) for i in range(len(x))]
    assert torch.equal(torch.cat(alone), whole)


@many
@given(flows(), st.sampled_from([1e-3, 7.0, 1e4]))
def test_other_units_shift_the_density(case, factor):
    flow, x, context = case
    if flow.links is not None:
        return
    first = flow.standardize
    scaled = JKOFlow(
        flow.dim, flow.stack, first.mean * factor, first.std * factor, None,
        *((None, None) if context is None else (flow.standardize_context.mean, flow.standardize_context.std)),
        flow.initial_map,
    )  # fmt: skip
    expected = flow.log_prob(x, context) - flow.dim * math.log(factor)
    torch.testing.assert_close(scaled.log_prob(x * factor, context), expected, rtol=1e-9, atol=1e-9)


@many
@given(flows(torch.float32))
def test_a_file_keeps_every_bit(tmp_path_factory, case):
    flow, x, context = case
    path = tmp_path_factory.mktemp("flow") / "model"
    flow.save(path)
    again = JKOFlow.load(path)
    assert again.describe() == flow.describe()
    assert torch.equal(again.log_prob(x, context), flow.log_prob(x, context))
    again.save(path.with_name("again"))
    assert path.read_bytes() == path.with_name("again").read_bytes()


# ---- Densities sum to one

SETS = ["moons", "checkerboard", *amount([], ["rose", "rings", "pinwheel", "spirals", "fractal_tree"])]


def total(flow, low, high, cells):
    """The integral of the density over a rectangle, from a point at random in every cell: edges line up with none."""
    size = (high - low) / cells
    corner = torch.cartesian_prod(torch.arange(cells), torch.arange(cells))
    points = low + (corner + torch.rand(corner.shape, generator=torch.Generator().manual_seed(0))) * size
    return float(torch.cat([flow.log_prob(part).double().exp() for part in points.split(65536)]).sum() * size.prod())


@pytest.mark.parametrize("name", SETS)
def test_densities_of_trained_flows_sum_to_one(name):
    data = load_dataset(f"{name}:4000", 0)
    rows = torch.cat([data.train, data.val, data.test])
    config = TrainConfig(hidden=(32, 32), max_blocks=2, iterations_per_block=amount(150, 1500), batch_size=200)
    flow = jkoflow.train(data, config)
    middle, width = rows.mean(0), rows.amax(0) - rows.amin(0)
    coarse, fine = (total(flow, middle - width, middle + width, cells) for cells in (300, 400))
    assert abs(fine - coarse) < 4e-3  # the cells are small enough to tell
    assert abs(fine - 1) < 5e-3
