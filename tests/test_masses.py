"""Masses of discrete columns: exact sums, gaps to known joints, sampling, structure and errors."""

import json
import math
import re

import pytest
import torch

from jkoflow.masses import Masses
from jkoflow.masses.table import best_table, shares


def generator(seed):
    return torch.Generator().manual_seed(seed)


def draw(masses, seed):
    """One state for each row of masses (N, K)."""
    return torch.multinomial(masses, 1, generator=generator(seed)).squeeze(1)


def shared(levels, seed):
    masses = torch.rand(levels, generator=generator(seed)) + 0.05
    return masses / masses.sum()


def independent(count, seed):
    levels = (2, 3, 5, 20)
    laws = [shared(size, 10 + number) for number, size in enumerate(levels)]
    states = torch.stack([draw(law.expand(count, -1), seed + number) for number, law in enumerate(laws)], 1)
    return levels, states, None, sum(law[own].log() for law, own in zip(laws, states.T, strict=True))


def markov_chain(count, seed):
    following = (2 * torch.randn(4, 4, generator=generator(7))).softmax(1)
    states, log_prob = [torch.randint(4, (count,), generator=generator(seed))], torch.full((count,), -math.log(4))
    for number in range(1, 5):
        states.append(draw(following[states[-1]], seed + number))
        log_prob = log_prob + following[states[-2], states[-1]].log()
    return (4,) * 5, torch.stack(states, 1), None, log_prob


def exclusive_or(count, seed):
    one, other = torch.randint(2, (2, count), generator=generator(seed))
    return (2, 2, 2), torch.stack([one, other, one ^ other], 1), None, torch.full((count,), -2 * math.log(2))


def table_with_zeros(count, seed):
    law = torch.rand(48, generator=generator(3)) * (torch.rand(48, generator=generator(4)) < 0.6)
    cell = draw((law / law.sum()).expand(count, -1), seed)
    return (6, 8), torch.stack([cell // 8, cell % 8], 1), None, (law / law.sum())[cell].log()


def given(law, levels, dim=1):
    """A column whose masses are a function of standard normal conditioning variables."""

    def make(count, seed):
        context = torch.randn(count, dim, generator=generator(seed))
        masses = law(context)
        states = draw(masses, seed + 1)[:, None]
        return (levels,), states, context, masses.gather(1, states).log().squeeze(1)

    return make


logistic = given(
    lambda c: (c * torch.tensor([1.5, -1.5, 0.7, 0.0]) + torch.tensor([0.0, 0.5, -0.5, 0.2])).softmax(1), 4
)
threshold = given(lambda c: torch.where(c[:, 1:] > 0.3, torch.tensor([[0.9, 0.1]]), torch.tensor([[0.1, 0.9]])), 2, 2)
band = given(lambda c: torch.where(c.abs() < 0.5, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])), 2)


def poisson_masses(context):
    counts = torch.arange(16.0)
    return (counts * (1 + 0.6 * context) - torch.lgamma(counts + 1)).softmax(1)


poisson = given(poisson_masses, 16)


def states_and_context(count, seed):
    """The second column depends on the first and on the context together."""
    context = torch.randn(count, 3, generator=generator(seed))
    first = torch.stack([torch.zeros(count), context[:, 0] + context[:, 1]], 1).softmax(1)
    one = draw(first, seed + 1)
    second = torch.stack([context[:, 2] * (2 * one - 1), one - context[:, 0], torch.zeros(count)], 1).softmax(1)
    other = draw(second, seed + 2)
    log_prob = first.gather(1, one[:, None]).log() + second.gather(1, other[:, None]).log()
    return (2, 3), torch.stack([one, other], 1), context, log_prob.squeeze(1)


def gap(masses, case, seed=1000):
    """Mean of log P - log P_model on fresh rows, in nats."""
    _, states, context, log_prob = case(20_000, seed)
    return float((log_prob - masses.log_prob(states, context)).mean())


@pytest.mark.parametrize(
    ("case", "free"),
    [
        (independent, 26),
        (markov_chain, 3 + 4 * 12),
        (exclusive_or, 6),
        (table_with_zeros, 28),
        (logistic, 8),
        (threshold, 3),
        (band, 2),
        (poisson, 30),
        (states_and_context, 80),  # free: what a smooth function of the three variables takes
    ],
)
def test_gap_to_a_known_joint(case, free):
    levels, states, context, _ = case(8000, 0)
    assert gap(Masses.fit(states, levels, context), case) < free / 16_000 + 0.005


@pytest.mark.parametrize("case", [threshold, logistic, exclusive_or])
def test_gap_with_validation_rows(case):
    levels, states, context, _ = case(3000, 0)
    _, val_states, val_context, _ = case(1000, 50)
    masses = Masses.fit(states, levels, context, val_states, val_context)
    assert gap(masses, case) < 0.015


@pytest.mark.parametrize("count", [300, 1000, 4000])
@pytest.mark.parametrize("variables", [0, 3])
def test_what_does_not_matter_costs_nothing(count, variables):
    levels, states, _, _ = independent(count, 0)
    masses = Masses.fit(states, levels, torch.randn(count, variables, generator=generator(5)) if variables else None)
    _, fresh, _, _ = independent(20_000, 1000)
    context = torch.randn(20_000, variables, generator=generator(6)) if variables else None
    counted = sum(
        (torch.bincount(column, minlength=size) + 0.5).div(count + size / 2).log()[other]
        for column, other, size in zip(states.T, fresh.T, levels, strict=True)
    )
    assert float((counted - masses.log_prob(fresh, context)).mean()) < 0.002


@pytest.mark.parametrize("levels", [2, 20, 200])
def test_excess_of_one_column_is_that_of_its_free_parameters(levels):
    excess = []
    for seed in range(10):
        law = shared(levels, seed)
        masses = Masses.fit(draw(law.expand(4000, -1), 50 + seed)[:, None], [levels])
        own = masses.conditional_log_probs(0, torch.zeros(1, 0, dtype=torch.int64))[0]
        excess.append(float((law * (law.log() - own)).sum()))
    assert sum(excess) / 10 < 1.5 * (levels - 1) / 8000


def test_states_never_seen_have_a_small_mass():
    masses = Masses.fit(torch.zeros(1000, 1, dtype=torch.int64), [50])
    log_masses = masses.log_prob(torch.arange(50)[:, None])
    assert bool(log_masses.isfinite().all())
    assert float(log_masses[0]) > -0.002
    assert bool((log_masses[1:] > -20).all())


@pytest.mark.parametrize("levels", [(3, 1, 4, 2), (12, 9), (1, 1), (1, 7)])
@pytest.mark.parametrize("dim", [0, 2])
def test_masses_of_all_states_sum_to_one(levels, dim):
    count = 500
    states = torch.stack([torch.randint(size, (count,), generator=generator(size)) for size in levels], 1)
    states[:, -1] = (states.sum(1) % levels[-1]) * (torch.rand(count, generator=generator(1)) < 0.9)
    context = torch.randn(count, dim, generator=generator(2)) if dim else None
    masses = Masses.fit(states, levels, context)
    every = torch.cartesian_prod(*(torch.arange(size) for size in levels)).view(-1, len(levels))
    for row in (0.0, 3.0, -1e6, 1e30):
        log_prob = masses.log_prob(every, torch.full((len(every), dim), row) if dim else None)
        assert float(log_prob.double().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_joint_is_the_product_of_the_conditionals():
    levels, states, context, _ = states_and_context(500, 0)
    masses = Masses.fit(states, levels, context)
    factors = [
        masses.conditional_log_probs(number, states[:, :number], context).gather(1, states[:, number, None])[:, 0]
        for number in range(2)
    ]
    torch.testing.assert_close(masses.log_prob(states, context), sum(factors), atol=1e-5, rtol=0)
    changed = states.clone()
    changed[:, 1] = 2
    assert torch.equal(
        masses.conditional_log_probs(1, states, context), masses.conditional_log_probs(1, changed, context)
    )


def test_a_row_does_not_depend_on_its_neighbours(monkeypatch):
    levels, states, context, _ = states_and_context(700, 0)
    masses = Masses.fit(states, levels, context)
    together = masses.log_prob(states, context)
    alone = torch.cat([masses.log_prob(states[row : row + 1], context[row : row + 1]) for row in range(100)])
    torch.testing.assert_close(alone, together[:100], atol=1e-6, rtol=0)
    monkeypatch.setattr("jkoflow.masses.column.CHUNK", 5000)
    torch.testing.assert_close(masses.log_prob(states, context), together, atol=1e-6, rtol=0)


def test_columns_of_one_state_contribute_nothing():
    states = torch.zeros(50, 2, dtype=torch.int64)
    masses = Masses.fit(states, [1, 1], torch.randn(50, 2))
    assert torch.equal(masses.log_prob(states, torch.randn(50, 2)), torch.zeros(50))
    assert torch.equal(masses.sample(7, torch.randn(7, 2)), torch.zeros(7, 2, dtype=torch.int64))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 99, 100, 103])
def test_few_rows(count):
    states = torch.stack([torch.arange(count) % 3, torch.arange(count) % 2], 1)
    masses = Masses.fit(states, [3, 2], torch.randn(count, 1))
    assert bool(masses.log_prob(states, torch.randn(count, 1)).isfinite().all())


def test_no_columns():
    masses = Masses.fit(torch.zeros(9, 0, dtype=torch.int64), [])
    assert torch.equal(masses.log_prob(torch.zeros(4, 0, dtype=torch.int64)), torch.zeros(4))
    assert masses.sample(3).shape == (3, 0)


def test_no_rows_in():
    masses = Masses.fit(torch.tensor([[0, 1], [1, 0]]), [2, 2])
    assert masses.log_prob(torch.zeros(0, 2, dtype=torch.int64)).shape == (0,)
    assert masses.conditional_log_probs(1, torch.zeros(0, 1, dtype=torch.int64)).shape == (0, 2)
    assert masses.sample(0).shape == (0, 2)


def test_samples_follow_the_masses():
    levels, states, context, _ = states_and_context(1000, 0)
    masses = Masses.fit(states, levels, context)
    here = torch.tensor([[0.5, -1.0, 2.0]]).expand(40_000, -1)
    drawn = masses.sample(40_000, here, generator(3))
    every = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    expected = masses.log_prob(every, here[:6]).exp()
    shares_drawn = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=6) / 40_000
    assert float((shares_drawn - expected).abs().max()) < 0.01
    assert torch.equal(drawn, masses.sample(40_000, here, generator(3)))
    assert not torch.equal(drawn, masses.sample(40_000, here, generator(4)))


@pytest.mark.parametrize("case", [states_and_context, threshold, exclusive_or])
def test_description_and_numbers_build_the_same_masses(case):
    levels, states, context, _ = case(500, 0)
    masses = Masses.fit(states, levels, context)
    again = Masses.from_description(json.loads(json.dumps(masses.describe())))
    assert not torch.equal(again.log_prob(states, context), masses.log_prob(states, context))
    again.load_state_dict(masses.state_dict())
    assert torch.equal(again.log_prob(states, context), masses.log_prob(states, context))
    assert torch.equal(again.sample(500, context, generator(1)), masses.sample(500, context, generator(1)))


def test_parts_are_those_that_the_data_need():
    described = {case: Masses.fit(*_arguments(case, 1000)).describe() for case in (exclusive_or, threshold, logistic)}
    assert described[exclusive_or]["parents"] == [[], [], [0, 1]]
    assert described[threshold]["learners"] == [["trees"]]
    assert described[logistic]["learners"] == [["networks"]]


def _arguments(case, count):
    levels, states, context, _ = case(count, 0)
    return states, levels, context


def test_same_seed_same_masses_and_the_global_generator_is_left_alone():
    states, levels, context = _arguments(states_and_context, 500)
    before = torch.get_rng_state()
    one, other = (Masses.fit(states, levels, context, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.log_prob(states, context), other.log_prob(states, context))
    assert not torch.equal(
        Masses.fit(states, levels, context, seed=4).log_prob(states, context), one.log_prob(states, context)
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_of_autograd_change_nothing(mode):
    states, levels, context = _arguments(states_and_context, 500)
    usual = Masses.fit(states, levels, context).log_prob(states, context)
    with mode():
        masses = Masses.fit(states.clone(), levels, context.clone())
        inside = masses.log_prob(states, context)
    assert torch.equal(inside, usual)
    assert torch.equal(masses.log_prob(states, context), usual)


def test_default_dtype_changes_nothing():
    states, levels, context = _arguments(states_and_context, 500)
    usual = Masses.fit(states, levels, context).log_prob(states, context)
    torch.set_default_dtype(torch.float64)
    try:
        masses = Masses.fit(states, levels, context)
        again = Masses.from_description(masses.describe())
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(parameter.dtype == torch.float32 for part in (masses, again) for parameter in part.parameters())
    assert torch.equal(masses.log_prob(states, context), usual)


def test_fitted_masses_are_frozen_and_differentiable_in_the_context():
    states, levels, context = _arguments(logistic, 500)
    masses = Masses.fit(states, levels, context)
    assert not masses.training
    assert not any(parameter.requires_grad for parameter in masses.parameters())
    assert not masses.log_prob(states, context).requires_grad
    asked = context.clone().requires_grad_()
    masses.log_prob(states, asked).sum().backward()
    assert bool(asked.grad.abs().max() > 0)


@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e8])
@pytest.mark.parametrize("outlier", [None, 1e6, -1e30])
def test_units_and_outliers_of_the_context_do_not_matter(magnitude, outlier):
    levels, states, context, _ = logistic(1000, 0)
    context = 1e7 * magnitude + magnitude * context.double()
    if outlier is not None:
        context[3] = magnitude * outlier
    masses = Masses.fit(states, levels, context)
    _, fresh, where, log_prob = logistic(20_000, 1000)
    where = 1e7 * magnitude + magnitude * where.double()
    assert float((log_prob - masses.log_prob(fresh, where)).mean()) < 0.015


def test_a_context_that_is_mostly_one_value():
    context = torch.randn(2000, 1, generator=generator(0)) * (torch.rand(2000, 1, generator=generator(1)) < 0.2)
    law = torch.cat([context, -context], 1).mul(3).softmax(1)
    context[5] = 1e9
    masses = Masses.fit(draw(law, 2)[:, None], [2], context)
    where = torch.tensor([[0.0], [1.0], [-1.0]])
    own = masses.conditional_log_probs(0, torch.zeros(3, 0, dtype=torch.int64), where).exp()[:, 0]
    torch.testing.assert_close(own, torch.tensor([0.5, 0.9975, 0.0025]), atol=0.05, rtol=0)


def test_a_constant_context_is_harmless():
    states = draw(torch.tensor([[0.2, 0.8]]).expand(1000, -1), 0)[:, None]
    context = torch.full((1000, 2), 5.0)
    masses = Masses.fit(states, [2], context)
    own = masses.conditional_log_probs(0, states[:1], context[:1]).exp()
    assert float(own[0, 1]) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("columns", "levels"), [(4, 200), (30, 3)])
def test_many_states_and_many_columns(columns, levels):
    count = 300
    states = torch.randint(levels, (count, columns), generator=generator(0))
    states[:, 1] = levels - 1 - states[:, 0]
    states[:, -1] = states[:, 0]
    masses = Masses.fit(states, [levels] * columns, hidden=(8,))
    fresh = masses.sample(2000, generator=generator(1))
    assert float((fresh[:, 1] == levels - 1 - fresh[:, 0]).double().mean()) > 0.6
    assert float((fresh[:, -1] == fresh[:, 0]).double().mean()) > 0.6
    assert bool(masses.log_prob(fresh).isfinite().all())


def test_left_out_masses_are_those_of_a_table_without_the_row():
    levels, states, _, _ = table_with_zeros(60, 0)
    whole = shares(states, levels)
    counts = torch.bincount(states[:, 1], minlength=8).double()
    pseudo = float((60 * whole.masses[0, 0] - counts[0]) / (1 / 8 - whole.masses[0, 0]))
    assert pseudo == pytest.approx(2 ** round(math.log2(pseudo)))
    score = 0.0
    for row in range(60):
        rest = torch.bincount(torch.cat([states[:row, 1], states[row + 1 :, 1]]), minlength=8).double()
        own = ((rest + pseudo / 8) / (59 + pseudo))[states[row, 1]]
        assert float(whole.left_out[0, states[row, 1]]) == pytest.approx(float(own))
        score += math.log(own)
    assert whole.score == pytest.approx(score)
    assert best_table(states, levels).score >= score


def test_deeper_networks():
    states, levels, context = _arguments(logistic, 1000)
    masses = Masses.fit(states, levels, context, hidden=(16, 16))
    assert masses.describe()["hidden"] == [16, 16]
    assert gap(masses, logistic) < 0.02


STATES = torch.tensor([[0, 1], [1, 2], [0, 0]])
CONTEXT = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Masses.fit(STATES, [2, 2]), "states must be from 0 to 1 in column 1, got 2 in row 1 (1 such values)"),
        (
            lambda: Masses.fit(-STATES, [2, 3]),
            "states must be from 0 to 2 in column 1, got -1 in row 0 (3 such values)",
        ),
        (lambda: Masses.fit(STATES, [2]), "states must be int64 with shape (B, 1), got torch.int64 (3, 2)"),
        (
            lambda: Masses.fit(STATES.float(), [2, 3]),
            "states must be int64 with shape (B, 2), got torch.float32 (3, 2)",
        ),
        (lambda: Masses.fit(STATES[:0], [2, 3]), "states must have at least one row, got none"),
        (lambda: Masses.fit(STATES, [2, 0]), "levels must be at least 1 in every column, got [2, 0]"),
        (lambda: Masses.fit(STATES, [2, 3], hidden=()), "hidden must be one or more widths of at least 1, got []"),
        (lambda: Masses.fit(STATES, [2, 3], CONTEXT[:2]), "context must have shape (3, 2), got (2, 2)"),
        (lambda: Masses.fit(STATES, [2, 3], CONTEXT / 0), "context must be finite, got nan in row 0, column 0"),
        (lambda: Masses.fit(STATES, [2, 3], CONTEXT[:, 0]), "context must have shape (3, c), got (3,)"),
        (lambda: Masses.fit(STATES, [2, 3], CONTEXT, STATES), "val_context must have shape (3, 2), got None"),
        (
            lambda: Masses.fit(STATES, [2, 3], None, STATES + 1),
            "val_states must be from 0 to 1 in column 0, got 2 in row 1 (2 such values)",
        ),
        (lambda: Masses.fit(STATES, [2, 3], None, STATES[:0]), "val_states must have at least one row, got none"),
        (
            lambda: Masses([2, 3]).log_prob(STATES, CONTEXT),
            "context must be None without conditioning variables, got (3, 2)",
        ),
        (lambda: Masses([2, 3], 2).log_prob(STATES), "context must have shape (3, 2), got None"),
        (lambda: Masses([2, 3], 2).sample(4, CONTEXT), "context must have shape (4, 2), got (3, 2)"),
        (lambda: Masses([2, 3]).conditional_log_probs(2, STATES), "column must be from 0 to 1, got 2"),
        (
            lambda: Masses([2, 3]).conditional_log_probs(1, STATES + 1),
            "states must be from 0 to 1 in column 0, got 2 in row 1 (1 such values)",
        ),
        (lambda: Masses([2, 3], parents=[[], [1]]), "parents must be earlier columns, got [[], [1]]"),
        (
            lambda: Masses([2, 3], learners=[[], ["forest"]]),
            "learners must be of networks, trees, got [[], ['forest']]",
        ),
    ],
)
def test_errors_name_what_was_expected_and_what_came(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
