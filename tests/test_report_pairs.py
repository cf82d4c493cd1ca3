"""The pairs of columns that a report shows are those that differ most and those that depend most, beyond chance."""

import math

import numpy as np
import pytest

from jkoflow.report import pair_choice
from jkoflow.report.column_views import plain_views
from jkoflow.report.pair_choice import choose_pairs
from jkoflow.report.table_sections import pairs


def correlated(random, count, rho):
    rows = random.normal(size=(count, 6))
    rows[:, 4] = rho * rows[:, 1] + math.sqrt(1 - rho**2) * rows[:, 4]
    return rows


def views_of(data, drawn):
    return plain_views([f"c{k}" for k in range(data.shape[1])], data, drawn)


def test_a_dependence_that_samples_lack_is_the_first_mismatch():
    random = np.random.default_rng(0)
    choice = choose_pairs(views_of(correlated(random, 2000, 0.7), random.normal(size=(2000, 6))))
    first = choice.pairs[0]
    assert (first.first, first.second, first.quantity) == (1, 4, "mismatch")
    assert first.value > choice.chance > 0
    assert [pair.quantity for pair in choice.pairs[1:]] == ["dependence"] * 5
    assert len({(pair.first, pair.second) for pair in choice.pairs}) == 6


def test_samples_of_the_same_distribution_hardly_ever_mismatch():
    found = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        choice = choose_pairs(views_of(correlated(random, 400, 0.7), correlated(random, 400, 0.7)))
        found += any(pair.quantity == "mismatch" for pair in choice.pairs)
        assert (choice.pairs[0].first, choice.pairs[0].second) == (1, 4) or found
    assert found <= 4  # one of twenty is expected


def test_linear_and_other_dependence_is_found():
    random = np.random.default_rng(1)
    data = correlated(random, 3000, 0.95)
    data[:, 3] = data[:, 0] ** 2 + 0.1 * data[:, 3]
    choice = choose_pairs(views_of(data, data[random.permutation(3000)]), 2)
    assert {(pair.first, pair.second) for pair in choice.pairs} == {(1, 4), (0, 3)}
    gaussian = next(pair.value for pair in choice.pairs if pair.first == 1)
    assert 0.8 * -0.5 * math.log(1 - 0.95**2) < gaussian < -0.5 * math.log(1 - 0.95**2)  # cells lose a little


def test_the_mismatch_is_the_jensen_shannon_divergence_of_the_cells():
    random = np.random.default_rng(2)
    data, drawn = random.integers(0, 2, (900, 2)).astype(float), random.integers(0, 2, (900, 2)).astype(float)
    data[:, 1] = data[:, 0]
    pair = choose_pairs(views_of(data, drawn)).pairs[0]
    shares = [np.histogram2d(*rows.T, bins=2)[0] / 900 for rows in (data, drawn)]
    mean = (shares[0] + shares[1]) / 2

    def entropy(p):
        return -float((p[p > 0] * np.log(p[p > 0])).sum())

    divergence = entropy(mean) - (entropy(shares[0]) + entropy(shares[1])) / 2
    assert pair.quantity == "mismatch"
    assert pair.value == pytest.approx(divergence - 3 / 3600, abs=1e-9)


def test_of_many_columns_those_that_fit_worst_are_looked_at(monkeypatch):
    monkeypatch.setattr(pair_choice, "MOST_COLUMNS", 3)
    random = np.random.default_rng(3)
    data, drawn = random.normal(size=(500, 8)), random.normal(size=(500, 8))
    drawn[:, [2, 5, 7]] += 1
    choice = choose_pairs(views_of(data, drawn))
    assert {place for pair in choice.pairs for place in (pair.first, pair.second)} == {2, 5, 7}
    assert choice.looked_at == 3
    assert "the 3 columns of 8 that fit worst" in pairs(views_of(data, drawn))


def test_why_a_pair_was_chosen_is_on_the_page():
    random = np.random.default_rng(0)
    text = pairs(views_of(correlated(random, 1000, 0.9), random.normal(size=(1000, 6))))
    assert "c4 against c1, mismatch 0." in text
    assert "dependence" in text
    assert "No pair" not in text
    rows = random.normal(size=(1000, 2))
    assert "No pair&#x27;s mismatch is beyond chance." in pairs(views_of(rows, rows))


def test_few_rows_constant_columns_and_missing_values_are_taken():
    rows = np.array([[0.0, np.nan, 1.0], [0.0, 2.0, np.nan]])
    choice = choose_pairs(views_of(rows, rows[:1]))
    assert len(choice.pairs) == 3
    assert all(math.isfinite(pair.value) for pair in choice.pairs)
