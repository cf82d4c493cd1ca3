"""The scale of the first layer: fine where the data have details, smooth where they have none."""

import itertools
import math

import pytest
import torch

from jkoflow import Block, MLPVelocity
from jkoflow.training.first_layer import MOST_SCALE, first_layer_scale, first_steps, sharpen


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def normal(generator, rows, columns):
    return torch.randn(rows, columns, generator=generator)


def checkerboard(generator, rows, fields):
    cell = torch.randint(0, fields // 2, (rows, 2), generator=generator).float()
    odd = torch.randint(0, 2, (rows, 1), generator=generator).float()
    place = 2 * cell + odd + torch.rand(rows, 2, generator=generator)
    return (place - fields / 2) / (fields / math.sqrt(12))


@pytest.mark.parametrize("columns", [1, 2, 3, 6, 20])
def test_a_gaussian_has_no_details_in_any_number_of_columns(generator, columns):
    assert first_layer_scale(normal(generator, 20_000, columns)) < 4.5


def test_a_smooth_column_of_another_shape_begins_smooth(generator):
    gamma = torch.distributions.Gamma(2.0, 2.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        a, b = gamma.sample((20_000, 1)), gamma.sample((20_000, 1))
    share = a / (a + b)
    assert first_layer_scale((share - share.mean()) / share.std()) < 6


def test_finer_details_begin_finer(generator):
    scales = [first_layer_scale(checkerboard(generator, 20_000, fields)) for fields in (2, 8)]
    assert scales[1] > 8
    assert scales[0] < scales[1]
    clusters = torch.randint(0, 5, (20_000, 2), generator=generator)
    found = [first_layer_scale(clusters + width * normal(generator, 20_000, 2)) for width in (0.3, 0.1, 0.03)]
    assert all(coarse < fine for coarse, fine in itertools.pairwise(found))


def test_the_scale_stays_within_bounds_and_does_not_depend_on_units(generator):
    rows = checkerboard(generator, 5000, 4)
    assert first_layer_scale(1000 * rows) == pytest.approx(first_layer_scale(rows), rel=1e-4)
    assert first_layer_scale(torch.zeros(1000, 3)) == 1.0, "equal rows"
    assert first_layer_scale(normal(generator, 40, 2)) == 1.0, "no more rows than neighbors"
    assert 1.0 <= first_layer_scale(normal(generator, 2000, 2).round()) <= MOST_SCALE, "many equal rows"
    half = torch.cat([torch.zeros(900, 1), normal(generator, 600, 1)])
    assert 1.0 <= first_layer_scale(half) <= MOST_SCALE, "more equal rows than half"


def test_context_counts_as_columns_beside_the_rows(generator):
    rows, context = checkerboard(generator, 5000, 4), normal(generator, 5000, 4)
    assert first_layer_scale(rows, context) < first_layer_scale(rows)


def test_the_first_layer_alone_is_multiplied_but_for_its_context(generator):
    block = Block(MLPVelocity(2, (8, 8), context_dim=3))
    before = [layer.weight.detach().clone() for layer in block.velocity.layers]
    sharpen(block, 5.0)
    first, *rest = (layer.weight.detach() for layer in block.velocity.layers)
    assert torch.equal(first[:, :3], 5.0 * before[0][:, :3]), "x and t"
    assert torch.equal(first[:, 3:], before[0][:, 3:]), "context"
    assert all(torch.equal(now, then) for now, then in zip(rest, before[1:], strict=True))


def test_finer_rows_begin_with_more_steps():
    steps = [first_steps(scale) for scale in (1.0, 2.0, 5.0, 30.0)]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (2, 6)
