"""Distances between samples against closed forms, scipy and what chance does."""

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import energy_distance as scipy_energy_distance

from jkoflow import Block, JKOFlow, MLPVelocity, metrics
from jkoflow.data import MissingExtraError, draw, split_rows
from jkoflow.training.evaluation import compared_samples, evaluate, two_sample_distances
from jkoflow.two_sample import classifier_accuracy, energy_distance, median_distance, mmd

MEASURES = {"median": mmd, "fixed": lambda x, y, **rest: mmd(x, y, 1.0, **rest), "energy": energy_distance}


def normal(n, d=2, shift=0.0, seed=0):
    return shift + torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mmd_is_the_double_sum():
    x, y = normal(30, 3), normal(40, 3, 0.5, 1)
    kernels = [np.exp(-(cdist(a, b) ** 2) / (2 * 0.7**2)).mean() for a, b in ((x, x), (y, y), (x, y))]
    assert mmd(x, y, 0.7).value == pytest.approx(kernels[0] + kernels[1] - 2 * kernels[2], rel=1e-10)


def test_median_bandwidth_is_the_median_distance():
    x, y = normal(30), normal(40, 2, 0.5, 1)
    joined = torch.cat([x, y])
    bandwidth = float(torch.pdist(joined).median())
    assert median_distance(x, y) == bandwidth
    assert mmd(x, y) == mmd(x, y, bandwidth)
    assert mmd(10 * x, 10 * y).value == pytest.approx(mmd(x, y).value, rel=1e-10)  # it goes with the units


def test_energy_distance_is_that_of_scipy_in_one_dimension():
    x, y = normal(60, 1), normal(80, 1, 0.4, 1)
    expected = scipy_energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert energy_distance(x, y).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", MEASURES)
def test_equal_samples_are_at_no_distance(name):
    x = normal(50)
    assert MEASURES[name](x, x).value == pytest.approx(0, abs=1e-13)
    assert MEASURES[name](x, x.flip(0)).value == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("name", MEASURES)
def test_threshold_is_exceeded_by_chance_in_one_case_of_twenty(name):
    exceeded = 0
    for seed in range(100):
        result = MEASURES[name](normal(60, seed=seed), normal(60, seed=1000 + seed), bootstraps=100, seed=seed)
        exceeded += result.value > result.threshold
    assert 0 < exceeded < 13  # 5 expected; more than 12 has a probability of 0.001


@pytest.mark.parametrize("name", MEASURES)
def test_a_difference_exceeds_the_threshold(name):
    result = MEASURES[name](normal(300), normal(300, 2, 0.5, 1))
    assert result.value > 2 * result.threshold
    assert result.value > 4 * result.stderr


@pytest.mark.parametrize("name", MEASURES)
def test_standard_error_is_the_spread_of_repetitions(name):
    results = [MEASURES[name](normal(80, seed=s), normal(120, 2, 1.0, 500 + s), bootstraps=1) for s in range(150)]
    spread = torch.tensor([result.value for result in results]).std().item()
    claimed = sum(result.stderr for result in results) / len(results)
    assert claimed == pytest.approx(spread, rel=0.2)


def test_seed_decides_the_threshold():
    x, y = normal(50), normal(50, seed=1)
    assert mmd(x, y) == mmd(x, y)
    assert mmd(x, y, seed=1).threshold != mmd(x, y).threshold
    assert mmd(x, y, seed=1).value == mmd(x, y).value
    assert mmd(x, y, alpha=0.5).threshold < mmd(x, y).threshold
    assert math.isnan(mmd(x[:1], y).stderr)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(0, 2), torch.zeros(3, 2)), {}, r"with at least one row, got \(0, 2\), \(3, 2\)"),
        ((torch.zeros(3, 1), torch.zeros(3, 2)), {}, r"must have shapes \(n, d\) and \(m, d\)"),
        ((torch.zeros(3, 2), torch.zeros(3, 2)), {}, "more than half of all pairs of rows are equal"),
        ((torch.zeros(3, 2), torch.zeros(3, 2), -1.0), {}, "bandwidth must be positive and finite"),
        ((torch.zeros(3, 2), torch.zeros(3, 2), 1.0), {"bootstraps": 0}, "bootstraps must be at least 1"),
        ((torch.zeros(3, 2), torch.zeros(3, 2), 1.0), {"alpha": 1.0}, "alpha between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        mmd(*arguments, **options)


def test_a_classifier_tells_samples_apart_if_it_can():
    pytest.importorskip("sklearn")
    same = classifier_accuracy(normal(400), normal(400, seed=1))
    assert same.value == pytest.approx(0.5, abs=4 * same.stderr)
    assert same.stderr == pytest.approx(0.5 / 800**0.5, rel=0.05)
    # the best rule for two Gaussians at distance 2 is right with probability Phi(1)
    apart = classifier_accuracy(normal(400, 1), normal(400, 1, 2.0, 1))
    assert 0.75 < apart.value < 0.8413 + 4 * apart.stderr
    few = classifier_accuracy(normal(400, 1), normal(40, 1, 2.0, 1))  # guessing the larger sample earns nothing
    assert few.value == pytest.approx(0.8, abs=0.15)
    with pytest.raises(ValueError, match="at least 5 rows, one per fold, got 400 and 4"):
        classifier_accuracy(normal(400), normal(4))


def test_without_scikit_learn_the_classifier_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.ensemble", None)
    with pytest.raises(MissingExtraError, match=re.escape('pip install "jkoflow[sklearn]"')):
        classifier_accuracy(normal(40), normal(40))


# ----------------------------------------------------------------------------------------------------- of a whole flow


def gaussian_flow(scale=1.0, context=False):
    velocity = MLPVelocity(2, (4,), context_dim=int(context))
    with torch.no_grad():
        for parameter in velocity.layers[-1].parameters():
            parameter.zero_()
    mean, std = torch.tensor([5.0, -1.0]), scale * torch.tensor([2.0, 0.1])
    own = (torch.tensor([3.0]), torch.tensor([10.0])) if context else (None, None)
    return JKOFlow(2, [Block(velocity)], mean, std, None, *own)


def test_samples_of_the_right_flow_cannot_be_told_apart():
    rows = torch.tensor([5.0, -1.0]) + torch.tensor([2.0, 0.1]) * normal(1000).float()
    right = two_sample_distances(*compared_samples(gaussian_flow(), rows, None))
    wrong = two_sample_distances(*compared_samples(gaussian_flow(1.5), rows, None))
    for name in ("mmd_median", "mmd_fixed", "energy_distance"):
        assert right[name] < 1.3 * right[f"{name}_threshold"]
        assert wrong[name] > 3 * wrong[f"{name}_threshold"]
    assert right["two_sample_rows"] == 1000


def test_samples_are_compared_with_their_context_beside_them():
    rows, context = normal(100).float(), 3 + 10 * normal(100, 1, seed=1).float()
    real, drawn = compared_samples(gaussian_flow(context=True), rows, context, limit=30)
    assert real.shape == drawn.shape == (30, 3)
    standardised = (context - 3) / 10
    assert set(real[:, 2].tolist()) <= set(standardised[::2, 0].tolist())
    assert set(drawn[:, 2].tolist()) <= set(standardised[1::2, 0].tolist())
    assert torch.equal(real[0, :2], (rows[0] - torch.tensor([5.0, -1.0])) / torch.tensor([2.0, 0.1]))


def test_evaluation_carries_all_with_standard_errors():
    data = split_rows(draw("moons", 2000, seed=0))
    flow = JKOFlow(2, mean=data.train.mean(0), std=data.train.std(0))
    result = evaluate(flow, data, 100)
    for name in ("test_nll", "test_bits_per_dim", "mmd_median", "mmd_fixed", "energy_distance"):
        assert 0 < result[f"{name}_stderr"] < abs(result[name])
    for name in ("inversion_error", "inversion_error_exact"):
        assert result[f"{name}_mean"] < 1e-6
        assert result[f"{name}_stderr"] < 1e-6
    nll = metrics.mean_nll(flow, data.test)
    assert result["test_bits_per_dim"] == pytest.approx(nll[0] / (2 * math.log(2)))
    assert result["test_bits_per_dim_stderr"] == pytest.approx(nll[1] / (2 * math.log(2)))
    assert result["energy_distance"] > result["energy_distance_threshold"]  # a Gaussian is no pair of moons
    assert json.loads(json.dumps(result)) == result
    few = split_rows(draw("moons", 30, seed=0))
    assert "mmd_median" not in evaluate(flow, few, 100)


def test_samples_that_overflow_are_infinitely_far():
    x = normal(20)
    found = two_sample_distances(x, torch.full_like(x, math.nan))
    assert found["mmd_fixed"] == found["energy_distance"] == math.inf
    assert math.isnan(found["energy_distance_threshold"])


def test_rows_that_are_mostly_equal_have_no_median_bandwidth():
    found = two_sample_distances(torch.ones(20, 2), torch.ones(20, 2))
    assert "mmd_median" not in found
    assert max(abs(found["mmd_fixed"]), abs(found["energy_distance"])) < 1e-30


def test_standard_errors_of_movement_and_inversion_error():
    x = normal(20_000).float()
    values = [metrics.movement(part, 0.5 * part) for part in x.split(200)]
    spread = torch.tensor([value.value for value in values]).std().item()
    assert sum(value.stderr for value in values) / len(values) == pytest.approx(spread, rel=0.2)
    assert metrics.movement(x, x) == (0.0, 0.0)
    assert math.isnan(metrics.movement(x[:1], x[1:2]).stderr)
    flow = JKOFlow(2, [Block(MLPVelocity(2, (4,)), num_steps=1, method="euler")])
    distance = (flow.inverse(flow(x[:500])[0])[0] - x[:500]).norm(dim=1).double()
    result = metrics.inversion_error(flow, x[:500])
    assert result.stderr == pytest.approx(distance.std().item() / math.sqrt(500), rel=1e-4)
