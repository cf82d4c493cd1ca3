"""The learning rate of every iteration."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jkoflow.training.optimizer import learning_rate, peak_learning_rate


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


def test_many_columns_are_learned_at_a_lower_rate():
    rates = [peak_learning_rate(columns) for columns in range(1, 200)]
    assert rates == sorted(rates, reverse=True)
    assert rates[9] == rates[0] == pytest.approx(4 * rates[159])
