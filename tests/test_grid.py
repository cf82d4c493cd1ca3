"""A grid is how an integration steps; everything about accuracy is asked of it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jkoflow
from jkoflow import Block, JKOFlow, integrate
from jkoflow.ops import Fixed
from jkoflow.ops.grid import as_grid, finest
from oracles import random_velocity

steps = st.integers(1, 1000)


@given(steps)
def test_refining_and_halving_undo_each_other(n):
    assert Fixed(n).refined().halved() == Fixed(n)
    assert Fixed(n).refined().cost == 2 * n
    assert Fixed(n).halved().cost == max(1, n // 2)


@given(steps, st.integers(1, 20))
def test_parts_have_enough_steps_together(n, parts):
    share = Fixed(n).split(parts).cost
    assert n <= share * parts < n + parts


@given(steps, steps, steps)
def test_a_share_keeps_the_proportion_and_a_step_at_least(n, share, whole):
    assert Fixed(n).scaled(share, whole).cost == max(1, n * share // whole)


def test_the_finest_costs_the_most():
    assert finest([Fixed(3), Fixed(8), Fixed(5)]) == Fixed(8)
    assert finest([]) == Fixed(1)


def test_numbers_stand_for_grids():
    assert as_grid(3) == as_grid(Fixed(3)) == Fixed(3)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, "3", None, True, Fixed(0), Fixed(1.5)])
def test_no_steps_are_refused(wrong):
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1"):
        as_grid(wrong)


def test_integrations_and_blocks_take_either():
    velocity, x = random_velocity(2), torch.randn(5, 2).double()
    a, b = (integrate(velocity, x, num_steps=n) for n in (4, Fixed(4)))
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.logdet, b.logdet)
    block = Block(velocity, 2)
    assert block.grid == Fixed(2)
    assert torch.equal(block(x, num_steps=4)[0], block(x, num_steps=block.grid.refined())[0])
    block.num_steps = 6
    assert block.grid == Fixed(6)
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1, got 0"):
        block.num_steps = 0


PACKAGE = Path(jkoflow.__file__).parent
BY_HAND = re.compile(r"\b\d \* (\w+\.)*num_steps|num_steps (\*|//) \d|num_steps \*= \d|-\(-(\w+\.)*num_steps")


def test_nobody_doubles_or_halves_steps_by_hand():
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).as_posix() != "ops/grid.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if BY_HAND.search(line)
    ]
    assert found == []


def test_integers_of_numpy_are_integers_and_there_is_a_largest_number():
    assert as_grid(np.int64(3)) == as_grid(Fixed(np.int32(3))) == Fixed(3)
    assert type(as_grid(np.int64(3)).num_steps) is int
    with pytest.raises(ValueError, match="num_steps must be at most 2147483647, got 3000000000"):
        integrate(random_velocity(2), torch.randn(5, 2).double(), num_steps=3_000_000_000)


def test_flows_and_blocks_hold_nothing_else_than_grids():
    flow = JKOFlow(2, [Block(random_velocity(2), 2)])
    flow.eval_num_steps = Fixed(4)
    assert flow.eval_num_steps == 4
    flow.stack[0].grid = 3
    assert flow.stack[0].grid == Fixed(3)
    for wrong in (0, "4", True):
        with pytest.raises(ValueError, match="num_steps must be an integer of at least 1"):
            flow.eval_num_steps = wrong
    with pytest.raises(ValueError, match="count must be an integer of at least 1, got 0"):
        flow.stack[0].split(0)
