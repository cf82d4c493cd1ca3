"""JKO step sizes are functions of numbers."""

import math
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jkoflow.schedule import (
    jko_step,
    penalised_jko_steps,
    refined_jko_steps,
    relative_spread,
    reparametrized_jko_steps,
)

positive = st.floats(1e-3, 1e3)


def test_step_sizes_grow_until_the_largest():
    assert [jko_step(k, 0.5, 2.0, 3.0) for k in range(5)] == pytest.approx([0.5, 1.0, 2.0, 3.0, 3.0])
    assert jko_step(7, 0.5, 1.0, 3.0) == 0.5


@given(st.integers(0, 10**6), positive, st.floats(1, 10), st.floats(1, 10))
def test_step_sizes_stay_between_first_and_largest(block, first, growth, factor):
    largest = first * factor
    h = jko_step(block, first, growth, largest)
    assert first * (1 - 1e-12) <= h <= largest * (1 + 1e-12)
    assert h <= jko_step(block + 1, first, growth, largest) * (1 + 1e-12)


# ---- Reparametrisation and refinement

chains = st.lists(st.tuples(positive, positive), min_size=1, max_size=8)


@given(st.lists(positive, min_size=1, max_size=8), st.floats(0, 100), st.floats(0.01, 1))
def test_equal_movements_change_nothing(jko_steps, movement, damping):
    assert reparametrized_jko_steps(jko_steps, [movement] * len(jko_steps), damping) == jko_steps


@given(st.lists(positive, min_size=2, max_size=8), st.floats(0.01, 1))
def test_nearly_equal_movements_change_next_to_nothing(jko_steps, damping):
    movements = [1 + 1e-9 * k for k in range(len(jko_steps))]
    assert reparametrized_jko_steps(jko_steps, movements, damping) == pytest.approx(jko_steps, rel=0, abs=1e-4)


@given(chains)
def test_blocks_would_move_equally_far_if_the_speed_were_that_of_before(chain):
    jko_steps, movements = ([pair[k] for pair in chain] for k in (0, 1))
    new = reparametrized_jko_steps(jko_steps, movements)
    assert min(new) > 0
    assert sum(new) == pytest.approx(sum(jko_steps), rel=1e-9)
    times, arc = [0, *accumulate(jko_steps)], [0, *accumulate(movements)]
    moved = np.diff(np.interp([0, *accumulate(new)], times, arc))
    assert moved == pytest.approx(np.full(len(new), sum(movements) / len(new)), rel=1e-6)


@given(chains, st.floats(0.01, 1))
def test_damping_goes_a_part_of_the_way(chain, damping):
    jko_steps, movements = ([pair[k] for pair in chain] for k in (0, 1))
    full = reparametrized_jko_steps(jko_steps, movements)
    part = reparametrized_jko_steps(jko_steps, movements, damping)
    expected = [h + damping * (target - h) for h, target in zip(jko_steps, full, strict=True)]
    assert part == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_block_that_moves_nothing_is_absorbed():
    new = reparametrized_jko_steps([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0])
    assert new == pytest.approx([0.75, 0.75, 1.75, 0.75])
    assert reparametrized_jko_steps([1.0, 2.0], [0.0, 0.0]) == [1.0, 2.0]


def test_new_step_sizes_are_bounded():
    assert reparametrized_jko_steps([1.0, 1.0], [3.0, 1.0], largest=1.0) == pytest.approx([2 / 3, 1.0])
    assert reparametrized_jko_steps([1.0, 1.0], [1.0, 1.0], largest=0.5) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0]), "movements must have 1 entries"),
        (([1.0, math.inf], [1.0, 2.0]), "jko_steps must be positive and finite"),
        (([1.0, 1.0], [1.0, math.nan]), "movements must be finite and not negative"),
        (([1.0, 1.0], [1.0, -2.0]), "movements must be finite and not negative"),
        (([1.0, 1.0], [1.0, 2.0], 0.0), "damping must be greater than 0 and at most 1, got 0.0"),
        (([1.0, 1.0], [1.0, 2.0], 1.5), "damping must be greater than 0 and at most 1, got 1.5"),
        (([1.0, 1.0], [1.0, 2.0], 1.0, 0.0), "largest must be positive, got 0.0"),
    ],
)
def test_reparametrisation_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        reparametrized_jko_steps(*arguments)


def test_children_share_their_parents_jko_step():
    assert refined_jko_steps([1.0, 3.0, math.inf], 2) == [0.5, 0.5, 1.5, 1.5, math.inf, math.inf]


def test_only_the_last_block_is_trained_free():
    assert penalised_jko_steps([1.0, math.inf, math.inf], 9.0) == [1.0, 1.0, math.inf]
    assert penalised_jko_steps([math.inf, 2.0, math.inf, 3.0], 9.0) == [9.0, 2.0, 2.0, 3.0]
    assert penalised_jko_steps([], 9.0) == []


def test_spread_is_relative():
    assert relative_spread([2.0, 2.0]) == 0
    assert relative_spread([10.0, 30.0]) == relative_spread([1.0, 3.0]) == pytest.approx(0.5)
    assert math.isnan(relative_spread([]))
    assert math.isnan(relative_spread([0.0, 0.0]))
