"""The shrunk covariance of few rows, against scikit-learn's, against rows truly left out and on fresh rows."""

import math

import pytest
import torch
from scipy import stats
from sklearn.covariance import ledoit_wolf as reference

from jkoflow.gain import clearly_best, errors_beyond_chance, paired_gain
from jkoflow.initial_map import InitialMap, Whiten, held_out_nll
from jkoflow.initial_map import covariance as module
from jkoflow.initial_map.covariance import FACTORS, ledoit_wolf, shrunk_covariance
from jkoflow.training.choose_map import Worth


def correlated(rows, dim, orders=3.0, seed=0):
    """Gaussian rows whose variances span orders of magnitude along random directions."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    root = basis * torch.logspace(0, -orders / 2, dim, dtype=torch.float64)
    return torch.randn(rows, dim, generator=generator, dtype=torch.float64) @ root.T


def shrinkage_of(rows):
    centred = rows - rows.mean(0)
    return float(ledoit_wolf(centred, torch.linalg.eigvalsh(centred.T @ centred / len(rows))))


def nll(mean, covariance, rows):
    gaussian = torch.distributions.MultivariateNormal(mean, covariance)
    return -gaussian.log_prob(rows)


def matrix(rows):
    variances, directions = shrunk_covariance(rows)
    return (directions * variances) @ directions.T


@pytest.mark.parametrize(("rows", "dim"), [(20, 2), (50, 8), (20, 40), (500, 16)])
@pytest.mark.parametrize("orders", [0.0, 2.0])
def test_the_first_shrinkage_is_that_of_ledoit_and_wolf(rows, dim, orders):
    x = correlated(rows, dim, orders) + 3.0
    assert shrinkage_of(x) == pytest.approx(reference(x.numpy())[1], abs=1e-9)
    assert FACTORS[0] == 1


def test_a_row_is_judged_by_the_others_alone(monkeypatch):
    x = correlated(30, 4)
    seen = []
    monkeypatch.setattr(module, "clearly_best", lambda losses: seen.extend(losses) or 0)
    shrunk_covariance(x)
    shrinkage, mean = shrinkage_of(x), float(torch.cov(x.T, correction=0).trace()) / 4
    for row in range(30):
        others = torch.cat([x[:row], x[row + 1 :]])
        shrunk = (1 - shrinkage) * torch.cov(others.T, correction=0) + shrinkage * mean * torch.eye(
            4, dtype=torch.float64
        )
        expected = float(nll(others.mean(0), shrunk, x[row])) - 2 * math.log(2 * math.pi)
        assert float(seen[0][row]) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("rows", "dim"), [(160, 2), (160, 8), (160, 64), (800, 32)])
@pytest.mark.parametrize("orders", [0.5, 3.0])
def test_fresh_rows_are_no_less_likely_than_under_ledoit_and_wolf(rows, dim, orders):
    x = correlated(rows + 4000, dim, orders)
    train, test = x[:rows], x[rows:]
    theirs = nll(train.mean(0), torch.from_numpy(reference(train.numpy())[0]), test)
    ours = nll(train.mean(0), matrix(train), test)
    gain = paired_gain(theirs, ours)
    assert gain.value > -2 * gain.stderr - 1e-12
    if orders == 3.0:
        assert gain.value > 0.1


def test_the_shrinkage_vanishes_with_many_rows():
    x = correlated(20_000, 3)
    torch.testing.assert_close(matrix(x), torch.cov(x.T), rtol=1e-3, atol=1e-4)


def doubled(x):
    return torch.cat([x, x[:, :1]], 1)


def nearly_constant(x):
    spike = torch.zeros(len(x), 1, dtype=x.dtype)
    spike[0] = 1e-5
    return torch.cat([x, spike], 1)


@pytest.mark.parametrize("spoil", [doubled, nearly_constant])
@pytest.mark.parametrize("rows", [3, 12, 300])
def test_covariances_that_are_nearly_singular_are_safe(spoil, rows):
    x = spoil(correlated(rows, 10))
    variances, directions = shrunk_covariance(x)
    assert bool((variances > 0).all())
    torch.testing.assert_close(directions.T @ directions, torch.eye(11, dtype=torch.float64))
    y, logdet = Whiten.fit(x)(x)
    assert bool(y.isfinite().all() & logdet.isfinite().all())
    torch.testing.assert_close(Whiten.fit(x).inverse(y)[0], x, atol=1e-6, rtol=1e-6)


def test_a_map_that_whitens_is_the_shrunk_gaussian():
    x = correlated(60, 5)
    y, logdet = InitialMap.fit(x, "whiten")(x)
    standard = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(-(standard.log_prob(y).sum(1) + logdet), nll(x.mean(0), matrix(x), x))


@pytest.mark.parametrize(
    ("before", "after", "clear"),
    [
        ([1.0, 2.0, 3.0], [0.0, 1.0, 2.0], True),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], False),
        ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], False),
        ([1.0, 1.0, 1.0], [0.0, 2.0, 0.9], False),
        ([1.0], [0.0], False),
        ([math.inf, 1.0], [0.0, 1.0], True),
        ([1.0, 1.0], [0.0, math.nan], False),
        ([math.inf, 1.0], [math.inf, 0.0], False),
    ],
)
def test_a_gain_is_clear_beyond_its_error(before, after, clear):
    assert paired_gain(torch.tensor(before), torch.tensor(after)).is_clear is clear


@pytest.mark.parametrize("rows", [4, 6, 20, 100, 5000])
def test_few_rows_need_more_errors_as_student_says(rows):
    expected = stats.t.ppf(stats.norm.cdf(2.0), rows - 1)
    assert errors_beyond_chance(rows) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("before", "after"), [((2,), (3,)), ((2, 1), (2, 1)), ((0,), (0,))])
def test_losses_that_do_not_fit_are_refused(before, after):
    with pytest.raises(ValueError, match="must have the same shape"):
        paired_gain(torch.zeros(before), torch.zeros(after))


def test_the_best_is_chosen_among_the_clear_gains():
    losses = [torch.tensor(x) for x in ([5.0, 6, 7, 8], [4.0, 5, 6, 7], [3.0, 4, 5, 6.1], [-40.0, 6, 7, 8])]
    assert clearly_best(losses) == 2  # the last gains most in the mean, by a single row
    assert clearly_best(losses[:1]) == 0
    assert clearly_best([losses[1], losses[0]]) == 0


@pytest.mark.parametrize("recipe", ["whiten", "marginals+whiten+radial"])
def test_a_held_out_row_is_judged_by_the_other_folds(recipe):
    x = correlated(53, 3)
    losses = held_out_nll(x, recipe)
    for fold in range(5):
        of_fold = torch.arange(53) % 5 == fold
        y, logdet = InitialMap.fit(x[~of_fold], recipe)(x[of_fold])
        expected = -(torch.distributions.Normal(0.0, 1.0).log_prob(y).sum(1) + logdet)
        torch.testing.assert_close(losses[of_fold], expected)
    with pytest.raises(ValueError, match="rows must be at least 5"):
        held_out_nll(x[:4], recipe)


def test_splines_are_wanted_where_held_out_rows_gain_from_them():
    assert not Worth(correlated(300, 8)).wants_splines
    assert Worth(standardised(correlated(2000, 8, 0.5).mul(3).exp())).wants_splines


def standardised(rows):
    return (rows - rows.mean(0)) / rows.std(0)
