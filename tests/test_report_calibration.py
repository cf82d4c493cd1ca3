"""Coverage, calibration and what-if of the report: right for right models, and faults are named for what they are."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import jkoflow
from jkoflow import Block, JKOFlow, MLPVelocity
from jkoflow.report import calibration, draws
from jkoflow.report.calibration import distance, kolmogorov, verdict
from jkoflow.report.results import Results
from jkoflow.report.what_if import what_if
from test_table_report import every_kind, trained


def results(flow, data, context=None):
    features = tuple(f"x{k}" for k in range(data.shape[1]))
    names = () if context is None else tuple(f"c{k}" for k in range(context.shape[1]))
    return Results(Path("run"), flow, {}, [], {}, {}, data, features, context, names, {})


def identity(dim, context_dim=0):
    """A flow whose density is the standard Gaussian, whatever the context."""
    velocity = MLPVelocity(dim, (8,), context_dim=context_dim)
    with torch.no_grad():
        for parameter in velocity.parameters():
            parameter.zero_()
    return JKOFlow(dim, [Block(velocity, num_steps=1)], eval_num_steps=1).requires_grad_(False)


def rows(dim=2, context_dim=0, scale=1.0, shift=0.0, count=800, seed=0):
    generator = torch.Generator().manual_seed(seed)
    data = shift + scale * torch.randn(count, dim, generator=generator)
    context = torch.randn(count, context_dim, generator=generator) if context_dim else None
    return results(identity(dim, context_dim), data, context)


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize(
    ("scale", "says"), [(1.0, "No fault in the coverage"), (1.3, "too sure: its"), (0.8, "too unsure: its")]
)
def test_coverage_tells_a_right_model_from_one_that_is_too_sure_or_unsure(context_dim, scale, says):
    found = calibration.calibration(rows(2, context_dim, scale))
    assert says in verdict(found)[0]
    assert (distance(found.regions) <= found.margin) == (scale == 1.0)
    assert bool(found.transforms) == bool(context_dim)


@pytest.mark.parametrize(
    ("scale", "shift", "says"),
    [
        (1.0, 0.0, "as uniform as chance allows"),
        (1.6, 0.0, "x0 is predicted too sure"),
        (0.6, 0.0, "x0 is predicted too unsure"),
        (1.0, 0.5, "x0 is predicted too low"),
        (1.0, -0.5, "x0 is predicted too high"),
    ],
)
@pytest.mark.parametrize("dim", [1, 2])
def test_the_transform_of_each_column_given_its_context_tells_what_is_wrong(scale, shift, says, dim):
    assert says in verdict(calibration.calibration(rows(dim, 1, scale, shift)))[1]


def test_places_are_those_of_the_distribution_function():
    torch.manual_seed(0)
    velocity = MLPVelocity(1, (16,), context_dim=1)
    with torch.no_grad():
        for parameter in velocity.parameters():
            parameter.mul_(2)
    flow = JKOFlow(1, [Block(velocity, num_steps=8)], torch.tensor([3.0]), torch.tensor([2.0]), 8).requires_grad_(False)
    data, context = 3 + 2 * torch.randn(300, 1), torch.randn(300, 1)
    found = calibration.calibration(results(flow, data, context)).transforms["x0"]
    exact = torch.special.ndtr(flow.forward(data, context)[0][:, 0]).numpy()
    grid = torch.linspace(-30, 40, 20_001)[:, None]
    for k in (0, 1, 2):  # the map to the noise is increasing: its Gaussian probability is the integral of the density
        density = flow.log_prob(grid, context[k].expand(len(grid), 1)).exp().double()
        mass = torch.trapezoid(torch.where(grid[:, 0] <= data[k], density, 0.0), grid[:, 0])
        assert float(mass) == pytest.approx(exact[k], abs=3e-3)
    assert np.abs(found - exact).max() < 0.4
    assert np.sqrt(np.mean((found - exact) ** 2)) < 1.3 * math.sqrt(1 / 6 / 33)  # the spread of a rank among 31


def test_regions_of_a_gaussian_hold_what_they_should():
    run = rows(2, count=500)
    found = calibration.calibration(run)
    exact = 1 - np.exp(-(run.data.numpy().astype(float) ** 2) @ np.ones(2) / 2)
    assert np.abs(found.regions - exact).max() < 2 / math.sqrt(found.samples)


def test_the_work_is_bounded_and_seeded(monkeypatch):
    drawn = []
    draw = draws.draw
    monkeypatch.setattr(draws, "draw", lambda run, count, *more: drawn.append(count) or draw(run, count, *more))
    run = rows(2, 1, count=5000)
    first, second = calibration.calibration(run), calibration.calibration(run)
    np.testing.assert_array_equal(first.regions, second.regions)
    assert max(drawn) <= draws.MOST
    run.flow.eval_num_steps = 10**6
    assert draws.affordable(run) == draws.LEAST


def test_ranks_among_ties_are_uniform():
    random = np.random.default_rng(0)
    values, samples = random.poisson(0.5, 4000).astype(float), random.poisson(0.5, (4000, 9)).astype(float)
    ranks = calibration._ranks(values, samples, random)
    assert distance(ranks) < kolmogorov(4000, 0.01)
    assert calibration._ranks(np.array([-1.0, 9.0]), np.zeros((2, 9)), random) == pytest.approx([0.05, 0.95], abs=0.05)


@pytest.mark.parametrize("others", [math.inf, 300])
def test_chance_exceeds_the_margin_in_about_one_case_of_twenty(others):
    random = np.random.default_rng(0)
    found = []
    for _ in range(600):
        if math.isinf(others):
            shares = random.random(60)
        else:
            samples = np.sort(random.random(others))
            shares = (np.searchsorted(samples, random.random(60)) + random.random(60)) / (others + 1)
        found.append(distance(shares) > kolmogorov(60, 0.05, others))
    assert 0.025 <= np.mean(found) <= 0.085


# ---- What if


def test_each_variable_takes_its_quantiles_while_the_others_stay_in_the_middle(monkeypatch):
    run = rows(2, 3, count=1001)
    asked = []

    def draw(run, count, given, seed):
        asked.append({name: set(values.tolist()) for name, values in given.items()})
        noise = np.random.default_rng(seed).normal(size=count)
        return {"x0": noise + 3 * given["c1"], "x1": noise + 0.2 * given["c0"]}, noise

    monkeypatch.setattr(draws, "draw", draw)
    answers = what_if(run)
    quantiles = np.quantile(run.context.numpy(), (0.1, 0.5, 0.9), axis=0, method="nearest")
    for k in range(len(answers)):
        for place, conditions in enumerate(asked[3 * k : 3 * k + 3]):
            for other in range(3):
                (value,) = conditions[f"c{other}"]
                assert value == pytest.approx(quantiles[place if other == k else 1, other], abs=0.03)
    effects = {answer.name: answer.effects for answer in answers}
    assert effects["c1"][0] > 0.9
    assert effects["c1"][1] == effects["c2"].max() == 0
    assert 0 < effects["c0"][1] < 0.4


def test_variables_of_one_value_are_left_out_and_rare_values_are_asked():
    run = rows(1, 3, count=100)
    run.context[:, 0] = 2.0
    run.context[:, 1] = 0.0
    run.context[7, 1] = 1.0
    answers = {answer.name: answer.labels for answer in what_if(run)}
    assert list(answers) == ["c1", "c2"]
    assert answers["c1"] == ("0", "1")


def test_a_table_is_asked_by_levels_and_dates(tmp_path):
    table = every_kind()
    run = trained(tmp_path / "run", table[["visits", "income", "grade"]], context=table[["shop", "day", "sensor"]])
    found = jkoflow.report.results.read_results(run)
    answers = {answer.name: answer for answer in what_if(found)}
    assert set(answers["shop"].labels) == {"Aarhus", "<b>Berlin</b>", "Cork $x$"}
    days = [np.datetime64(label) for label in answers["day"].labels]
    assert found.columns["day"].min() <= days[0] < days[1] < days[2] <= found.columns["day"].max()
    assert [view.name for view in answers["day"].views] == ["visits", "income", "grade"]
    places = calibration.calibration(found)
    assert set(places.transforms) == {"visits", "income"}
    assert ((places.regions >= 0) & (places.regions <= 1)).all()
