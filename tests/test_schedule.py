"""Schedules are functions of numbers."""

import math
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jkoflow.schedule import (
    blocks_within,
    evaluation_seconds,
    has_converged,
    iterations_within,
    jko_step,
    learning_rate,
    peak_learning_rate,
    penalised_jko_steps,
    refined_jko_steps,
    relative_spread,
    reparametrized_jko_steps,
    seconds_for_block,
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


def test_chain_goes_on_while_blocks_move_and_gain():
    assert not has_converged([], [3.0], 0.1, 0.1)
    assert not has_converged([0.5, 0.4], [3.0, 2.0, 1.5], 0.1, 0.1)


@pytest.mark.parametrize(
    ("movements", "val_nlls"),
    [([0.5, 0.05], [3.0, 2.0, 1.0]), ([0.5, 0.5], [3.0, 2.0, 1.95]), ([0.5, 0.5], [3.0, 2.0, 2.5])],
    ids=["still", "little gain", "loss"],
)
def test_chain_ends_when_the_last_block_does_little(movements, val_nlls):
    assert has_converged(movements, val_nlls, 0.1, 0.1)


def test_only_the_last_block_counts():
    assert not has_converged([0.01, 0.5], [3.0, 3.0, 1.0], 0.1, 0.1)


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="val_nlls must have 2 entries"):
        has_converged([0.5], [3.0], 0.1, 0.1)


def test_learning_rate_warms_up_and_follows_a_cosine():
    rates = [learning_rate(i, 1000, 0.1, 100) for i in range(1000)]
    assert max(rates) == rates[100] == pytest.approx(0.1)
    assert all(a < b for a, b in pairwise(rates[:101]))
    assert all(a > b for a, b in pairwise(rates[100:]))
    assert rates[550] == pytest.approx(0.1 * (0.01 + 0.99 / 2))
    assert rates[-1] == pytest.approx(0.001, rel=1e-2)


@given(st.integers(1, 500), st.integers(0, 1000), st.integers(0, 2000))
def test_learning_rate_is_positive_and_at_most_the_peak(iterations, warmup, iteration):
    assert 0 < learning_rate(iteration, iterations, 0.1, warmup) <= 0.1


def test_warmup_takes_a_fifth_at_most():
    assert learning_rate(20, 100, 0.1, 1000) == pytest.approx(0.1)
    assert learning_rate(0, 1, 0.1, 1000) == pytest.approx(0.1)


def test_budget_is_split_equally_over_the_blocks_left():
    assert seconds_for_block(100, 20, 10, 7) == pytest.approx(10)
    assert seconds_for_block(100, 95, 10, 1) == 0


@given(positive, st.integers(1, 20), st.floats(0, 1))
def test_shares_add_up_to_the_budget(budget, blocks, reserve):
    elapsed = 0.0
    for block in range(blocks):
        elapsed += seconds_for_block(budget, elapsed, reserve * budget, blocks - block)
    assert elapsed == pytest.approx(budget * (1 - reserve), abs=1e-9 * budget)


def test_more_time_is_more_blocks_and_longer_ones():
    for n in range(1000, 200_000, 500):
        assert 2 <= blocks_within(n, 8) <= blocks_within(n + 500, 8) <= 8
        if blocks_within(4 * n, 100) > 4:
            assert blocks_within(4 * n, 100) == pytest.approx(2 * blocks_within(n, 100), abs=1)
    assert blocks_within(0.0, 6) == 2
    assert blocks_within(1e9, 1) == 1


def test_many_columns_are_learned_at_a_lower_rate():
    rates = [peak_learning_rate(columns) for columns in range(1, 200)]
    assert rates == sorted(rates, reverse=True)
    assert rates[9] == rates[0] == pytest.approx(4 * rates[159])


def test_iterations_within_a_time():
    assert iterations_within(1.0, 0.01) == 100
    assert iterations_within(0.0, 0.01) == 1
    assert iterations_within(-5.0, 0.01, least=3) == 3
    assert math.isfinite(iterations_within(1.0, 0.0))


def test_evaluation_grows_with_everything_it_does():
    base = evaluation_seconds(1e-6, 6, 4, 1000, 1000, 1000)
    assert base == pytest.approx(1e-6 * 6 * 16 * (2 + 1.5 + 2) * 1000)
    more = evaluation_seconds(1e-6, 6, 4, 1000, 1000, 1000, 500, 1000)
    assert more == pytest.approx(base + 1e-6 * 6 * 16 * (5 * 500 + 1000))
    assert evaluation_seconds(1e-6, 12, 4, 1000, 1000, 1000) == pytest.approx(2 * base)
    assert evaluation_seconds(1e-6, 6, 1, 1000, 1000, 1000) == pytest.approx(base)
    assert evaluation_seconds(1e-6, 6, 8, 1000, 1000, 1000) == pytest.approx(2 * base)


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
