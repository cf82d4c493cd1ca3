"""Columns as they come: wild values, heavy tails, bounds and orders of magnitude, against densities that are known."""

import copy
import dataclasses
import math
import pickle
import warnings

import numpy as np
import pytest
import torch

from jkoflow import JKOFlow, TrainConfig, metrics, train
from jkoflow.data import DataError, Dataset, DataWarning, split_rows
from jkoflow.data.continuous import Scale, Treatments, choose_link, choose_links, explain, warn_of_wild_values
from jkoflow.data.edges import round_number
from jkoflow.initial_map import InitialMap, Marginals, Whiten
from jkoflow.links import Link, Links
from jkoflow.training.start import plain_flow
from jkoflow.training.state import RunError

CONFIG = TrainConfig(
    hidden=(16,), max_blocks=1, iterations_per_block=150, batch_size=500, val_rows=1000, first_layer_scale=1.0
)
LINKS = [
    Link("log", lower=-2.0),
    Link("log", lower=0.0),
    Link("reflected", upper=100.0),
    Link("logit", lower=0.1, upper=0.7),
    Link("asinh", centre=1e3, scale=0.01),
]


def generator(seed=0):
    return np.random.default_rng(seed)


def inside(link, count=200):
    """Points of a link's domain, some of them near its bounds."""
    y = torch.linspace(-12, 12, count, dtype=torch.float64)
    return link.inverse(y)[0]


# ---------------------------------------------------------------------------------------------------------- the links


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.kind)
def test_a_link_increases_and_has_the_derivative_it_says(link):
    x = inside(link).requires_grad_()
    y, slope = link.forward(x)
    assert bool((y.diff() > 0).all())
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, gradient.log(), rtol=1e-9, atol=1e-9)
    back, inverse_slope = link.inverse(y)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_slope, -slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_image_has_a_point_inside_the_bounds(link, dtype):
    y = torch.tensor([-1e30, -1e4, -300.0, -90.0, -20.0, 0.0, 20.0, 90.0, 300.0, 1e4, 1e30], dtype=dtype)
    x, slope = link.inverse(y)
    assert bool(torch.isfinite(x).all())
    assert not bool(torch.isnan(slope).any())
    assert bool((x > link.lower).all() and (x < link.upper).all())
    assert bool(torch.isfinite(link.forward(x)[1]).all())


@pytest.mark.parametrize(
    ("link", "outside"),
    [
        (Link("log", lower=2.0), [2.0, 1.0, -1e18]),
        (Link("reflected", upper=-1.0), [-1.0, 0.0, 1e18]),
        (Link("logit", lower=0.0, upper=1.0), [0.0, 1.0, -0.5, 1.5, 1e18]),
    ],
)
def test_outside_of_a_bound_there_is_no_density_and_no_nan(link, outside):
    flow = JKOFlow(2, links=Links([link, Link()]))
    points = torch.tensor([[value, 0.3] for value in outside])
    points.requires_grad_()
    log_prob = flow.log_prob(points)
    assert log_prob.tolist() == [-math.inf] * len(outside)
    log_prob.sum().backward()
    assert not bool(points.grad.isnan().any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_real_columns_stay_bit_for_bit(dtype):
    links = Links([Link(), Link("log", lower=0.0), Link()])
    x = torch.randn(50, 3, dtype=dtype) * torch.tensor([1e-30, 1.0, 1e18], dtype=dtype)
    for y in (links(x)[0], links.inverse(x)[0]):
        assert torch.equal(y[:, ::2], x[:, ::2])


def test_near_a_bound_float32_keeps_its_digits():
    for link, near in ((Link("logit", lower=0.0, upper=1.0), 1e-30), (Link("log", lower=0.0), 1e-30)):
        x = torch.tensor([near])
        (y, slope), exact = link.forward(x), link.forward(x.double())
        torch.testing.assert_close(y.double(), exact[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(slope.double(), exact[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "square"}, "kind must be one of real, log"),
        ({"kind": "log"}, "must be finite"),
        ({"kind": "logit", "lower": 1.0, "upper": 0.0}, "lower must be less than upper"),
        ({"kind": "asinh", "scale": 0.0}, "scale positive"),
    ],
)
def test_links_that_are_none_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Link(**values)


def test_a_flow_with_links_is_a_density_that_survives_its_file(tmp_path):
    links = Links([Link("log", lower=0.0), Link("logit", lower=-1.0, upper=1.0)])
    flow = JKOFlow(
        2, mean=torch.tensor([0.3, 0.1]), std=torch.tensor([1.5, 0.8]), links=links,
        context_mean=torch.zeros(1), context_std=torch.ones(1), context_links=Links([Link("asinh")]),
    )  # fmt: skip
    x, context = torch.tensor([[0.5, -0.2], [7.0, 0.99]]), torch.tensor([[1e9], [0.0]])
    for kept in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), flow.with_blocks([])):
        assert torch.equal(kept.log_prob(x, context), flow.log_prob(x, context))
    flow.save(tmp_path / "flow.safetensors")
    loaded = JKOFlow.load(tmp_path / "flow.safetensors")
    assert torch.equal(loaded.log_prob(x, context), flow.log_prob(x, context))
    z, logdet = flow(x, context)
    back, inverse_logdet = flow.inverse(z, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_logdet, -logdet)
    grid = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    density = flow.double().log_prob(
        torch.stack([grid.exp(), torch.full_like(grid, 0.1)], 1), torch.zeros(2001, 1, dtype=torch.float64)
    )
    across = flow.standardize.mean.double()
    assert torch.isfinite(density).all()
    assert across.shape == (2,)


# --------------------------------------------------------------------------------------------------------- the choice


def one_of(name, count, seed=0):
    random = generator(seed)
    normal = random.standard_normal(count)
    return {
        "gauss": lambda: normal,
        "pressure": lambda: 1000 + 5 * normal,
        "uniform": lambda: 100 * random.random(count),
        "angles": lambda: math.pi * (2 * random.random(count) - 1),
        "beta": lambda: random.beta(0.5, 0.5, count),
        "round bell": lambda: random.beta(5, 5, count),
        "lognormal": lambda: np.exp(3 * normal),
        "negative": lambda: -np.exp(3 * normal),
        "exponential": lambda: random.exponential(size=count),
        "from above": lambda: 3 - random.exponential(size=count),
        "no round edge": lambda: 0.3456 + 1.777 * random.random(count),
        "clusters": lambda: np.where(random.random(count) < 0.5, normal, 1000 + normal),
        "small cluster": lambda: np.where(random.random(count) < 0.9, normal, 1000 + normal),
        "positive clusters": lambda: np.where(random.random(count) < 0.5, 20 + normal, 1e5 + normal),
        "cauchy": lambda: random.standard_cauchy(count),
    }[name]()


@pytest.mark.parametrize(
    ("name", "kind", "scale"),
    [
        ("gauss", "real", "moments"),
        ("pressure", "real", "moments"),
        ("uniform", "logit", "moments"),
        ("angles", "logit", "moments"),
        ("beta", "logit", "moments"),
        ("round bell", "real", "moments"),
        ("lognormal", "log", "moments"),
        ("negative", "reflected", "moments"),
        ("exponential", "log", "moments"),
        ("from above", "reflected", "moments"),
        ("no round edge", "real", "ends"),
        ("clusters", "real", "moments"),
        ("small cluster", "real", "moments"),
        ("cauchy", "asinh", "quantiles"),
    ],
)
@pytest.mark.parametrize("count", [2000, 20_000, 300_000])
def test_a_column_is_treated_as_its_values_ask(name, kind, scale, count):
    choice = choose_link(one_of(name, count).astype(np.float32))
    assert (choice.link.kind, choice.scale) == (kind, scale), choice


@pytest.mark.parametrize("name", ["gauss", "pressure", "lognormal", "round bell", "clusters", "small cluster"])
def test_few_rows_mislead_about_nothing(name):
    kinds = [choose_link(one_of(name, 100, seed)).link.kind for seed in range(20)]
    assert kinds.count("log" if name == "lognormal" else "real") >= 19
    assert "asinh" not in kinds


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6, 1e9])
@pytest.mark.parametrize(
    ("count", "share"), [(100, 1e-2), (1000, 1e-3), (10_000, 1e-4), (10_000, 1e-2), (300_000, 1e-3)]
)
@pytest.mark.parametrize("sign", [-1, 1, 0])
def test_wild_values_are_found_wherever_they_are(size, count, share, sign):
    values, random = one_of("pressure", count), generator(1)
    wild = random.choice(count, max(1, round(share * count)), replace=False)
    values[wild] += 5 * size * (sign or random.choice([-1, 1], len(wild)))
    for part, others in ((values, None), (np.sort(values), None), (one_of("pressure", count, 2), values)):
        choice = choose_link(part, others)
        assert (choice.link.kind, choice.scale) == ("asinh", "core")
        assert abs(choice.link.centre - 1000) < 5
        assert 0.5 < choice.link.scale / 25 < 2
        assert choice.reason.startswith(f"{len(wild)} of ")


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_unit_of_a_column_does_not_matter(scale):
    for name in ("gauss", "lognormal", "exponential", "clusters", "cauchy"):
        choice = choose_link(scale * one_of(name, 5000))
        assert choice.link.kind == choose_link(one_of(name, 5000)).link.kind


@pytest.mark.parametrize("at", [0.0, 1.0])
def test_values_on_a_bound_are_inside(at):
    values = one_of("beta", 5000).astype(np.float32)
    values[:5] = at
    link = choose_link(values).link
    assert link.kind == "logit"
    assert abs(link.lower) < 1e-3
    assert abs(link.upper - 1) < 1e-3
    assert bool(torch.isfinite(link.forward(torch.from_numpy(values))[1]).all())


def test_some_zeros_among_positive_values_are_inside():
    values = one_of("lognormal", 5000).astype(np.float32)
    values[:20] = 0
    link = choose_link(values).link
    assert (link.kind, link.lower < 0) == ("log", True)
    assert bool(torch.isfinite(link.forward(torch.from_numpy(values))[1]).all())


def test_a_bound_that_other_rows_pass_is_none():
    values = one_of("exponential", 5000)
    assert choose_link(values, np.array([1.0, 2.0])).link.kind == "log"
    assert choose_link(values, np.array([1.0, -0.5])).link.kind != "log"


@pytest.mark.parametrize(
    ("low", "high", "number"),
    [
        (0.99, 1.0001, 1.0), (-0.01, 0.02, 0.0), (359.9, 360.1, 360.0), (4.31, 4.36, None), (100.19, 100.2, None),
        (3.1410, 3.1416, math.pi), (-1.001, -0.9999, -1.0), (0.35, 0.95, None), (9.9e8, 1e9, 1e9),
    ],
)  # fmt: skip
def test_round_numbers(low, high, number):
    assert round_number(low, high) == (None if number is None else pytest.approx(number))


def test_what_was_chosen_is_told():
    rows = torch.from_numpy(np.stack([one_of("gauss", 1000), one_of("lognormal", 1000)], 1))
    data = split_rows(rows, features=("height", "mass"), context=torch.randn(1000, 1))
    height, mass, context = explain(data)
    assert height == "column 'height': as it is; mean and deviation describe it"
    assert mass.startswith("column 'mass': logarithm of the distance from 0; positive and spread over")
    assert context.startswith("column 'c0': as it is")


# ------------------------------------------------------------------------------------------------ trained on known ones


def gap(train_rows, fresh, log_prob, **settings):
    """Mean of log_prob - flow.log_prob over fresh rows, in nats, and the flow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        flow = train(train_rows, dataclasses.replace(CONFIG, **settings))
    with torch.no_grad():
        return float((log_prob(fresh) - flow.log_prob(fresh)).double().mean()), flow


NORMAL = torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 1.0]]))


@pytest.mark.parametrize(
    ("share", "size", "columns"),
    [(1e-4, 1e2, [0]), (1e-4, 1e9, [0, 1]), (1e-3, -1e6, [1]), (1e-2, -999.0, [0]), (1e-2, 1e9, [0])],
)
def test_wild_values_do_not_decide(share, size, columns):
    rows, fresh = NORMAL.sample((10_000,)), NORMAL.sample((10_000,))
    clean, _ = gap(rows, fresh, NORMAL.log_prob)
    for column in columns:
        rows[torch.randperm(10_000)[: round(share * 10_000)], column] = size
    wild, flow = gap(rows, fresh, NORMAL.log_prob)
    assert wild - clean < 0.02
    with torch.no_grad():
        drawn = flow.sample(10_000).quantile(torch.tensor([0.25, 0.75]), 0).diff(dim=0)
    assert torch.allclose(drawn, torch.full((1, 2), 1.35), atol=0.1)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_wild_values_of_any_part_do_not_decide(part):
    parts = {name: NORMAL.sample((count,)) for name, count in (("train", 8000), ("val", 1000), ("test", 1000))}
    clean, _ = gap(Dataset("n", features=("a", "b"), **parts), parts["test"][1:], NORMAL.log_prob)
    parts[part][0, 0] = 1e9
    wild, flow = gap(Dataset("n", features=("a", "b"), **parts), parts["test"][1:], NORMAL.log_prob)
    assert wild - clean < 0.02
    assert math.isfinite(metrics.mean_nll(flow, parts[part])[0])


def test_wild_values_in_the_context_do_not_decide():
    context = torch.rand(8000, 1) * 6 - 3
    rows = (2 * context).sin() + 0.1 * torch.randn(8000, 1)
    wild = context.clone()
    wild[0] = 1e6
    x, c = rows[1:3000], context[1:3000]
    for conditions in (context, wild):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            flow = train(rows, dataclasses.replace(CONFIG, hidden=(32,), iterations_per_block=400), context=conditions)
        with torch.no_grad():
            found = float(-flow.log_prob(x, c).mean())
        if conditions is context:
            clean = found
    assert found < clean + 0.02


@pytest.mark.parametrize(
    ("distribution", "low", "high"),
    [
        (torch.distributions.LogNormal(0.0, 3.0), 0.0, math.inf),
        (torch.distributions.Uniform(torch.tensor(-1.0), torch.tensor(1.0)), -1.0, 1.0),
        (torch.distributions.Beta(torch.tensor(0.5), torch.tensor(0.5), validate_args=False), 0.0, 1.0),
        (torch.distributions.Exponential(torch.tensor(0.01)), 0.0, math.inf),
    ],
    ids=lambda value: type(value).__name__,
)
def test_bounded_and_skewed_columns_have_their_densities(distribution, low, high):
    rows, fresh = distribution.sample((8000, 1)), distribution.sample((8000, 1))
    fresh = fresh[(fresh > low) & (fresh < high)][:, None]  # float32 rounds some to the bound
    found, flow = gap(rows, fresh, lambda x: distribution.log_prob(x)[:, 0])
    assert abs(found) < 0.03
    with torch.no_grad():
        drawn = flow.sample(20_000)
    assert bool(((drawn >= low) & (drawn <= high)).all())


@pytest.mark.parametrize("freedom", [1.0, 2.0, 3.0])
def test_heavy_tails_have_their_densities(freedom):
    distribution = torch.distributions.StudentT(freedom)
    found, _ = gap(
        distribution.sample((10_000, 2)), distribution.sample((10_000, 2)), lambda x: distribution.log_prob(x).sum(1)
    )
    assert abs(found) < 0.03


def test_crowded_edges_at_no_round_number_do_not_leak():
    rows = 0.3456 + 1.777 * torch.rand(8000, 1)
    _, flow = gap(rows, rows, lambda x: torch.zeros(len(x)))
    with torch.no_grad():
        drawn = flow.sample(20_000)
        assert float(((drawn < 0.3456) | (drawn > 2.1226)).float().mean()) < 1e-3
        assert bool(torch.isfinite(flow.log_prob(torch.tensor([[0.3], [2.2], [1e6], [-1e6]]))).all())


# -------------------------------------------------------------------------------------------------------- what is told


def test_wild_values_are_named_and_heavy_tails_are_not():
    rows = torch.randn(1000, 2)
    rows[3, 1] = -1e6
    with pytest.warns(DataWarning, match=r"column 1: 1 of 1000 values lies more than 10 spreads .* scaled by its"):
        train(rows, dataclasses.replace(CONFIG, iterations_per_block=2))
    data = split_rows(torch.distributions.StudentT(1.0).sample((2000, 1)))
    warn_of_wild_values(data, choose_links(data))  # a warning would be an error


def test_clean_columns_are_whitened_alone():
    data = split_rows(torch.randn(2000, 2) @ torch.tensor([[3.0, 1.0], [0.0, 0.2]]) + 7)
    flow = plain_flow(data, CONFIG, choose_links(data))
    assert (flow.links, [type(stage) for stage in flow.initial_map.stages]) == (None, [Whiten])
    torch.testing.assert_close(flow.standardize.mean, data.train.double().mean(0).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        flow.standardize.std, data.train.double().std(0, correction=0).float(), rtol=1e-6, atol=0
    )


def test_links_that_are_given_are_taken_and_carried_along():
    rows = torch.rand(600, 3) + 0.5
    links = (Link("log", lower=0.0), Link(), Link("logit", lower=0.0, upper=2.0))
    data = dataclasses.replace(split_rows(rows), links=links).condition_on(["x1"])
    assert (data.links, data.context_links) == ((links[0], links[2]), (links[1],))
    flow = plain_flow(data, CONFIG, choose_links(data))
    assert flow.links.columns == data.links
    with pytest.raises(DataError, match="links must have a link for each of 3 columns, got 1"):
        dataclasses.replace(split_rows(rows), links=links[:1])
    wrong = dataclasses.replace(split_rows(rows), links=(Link("log", lower=1.0), Link(), Link()))
    with pytest.raises(DataError, match=r"the log link of column 0 takes values beyond 1 .* move the bound"):
        choose_links(wrong)


# ----------------------------------------------------------------------------------------------------- runs and figures


def test_figures_are_in_the_units_behind_the_links(tmp_path):
    import json

    rows = torch.randn(3000, 2).mul(3).exp()
    flow = train(rows, dataclasses.replace(CONFIG, iterations_per_block=30), run_dir=tmp_path)
    result = json.loads((tmp_path / "metrics.json").read_text())
    test = split_rows(rows).test
    behind = train(rows.log(), dataclasses.replace(CONFIG, iterations_per_block=30))
    expected = float(-behind.log_prob(test.log()).mean()) - float(behind.standardize.std.log().sum())
    assert result["test_nll"] == pytest.approx(expected, abs=2e-3)
    assert result["test_nll_data_units"] == pytest.approx(float(-flow.log_prob(test).mean()), abs=1e-3)
    assert result["inversion_error_max"] < 1e-2


class StopError(Exception):
    pass


def test_a_run_goes_on_with_the_treatments_that_it_began_with(tmp_path, monkeypatch):
    from jkoflow.training import trainer

    rows = torch.randn(1500, 2).exp()
    rows[:5, 0] = 1e6 * torch.arange(1.0, 6.0)
    config = dataclasses.replace(CONFIG, iterations_per_block=20, max_blocks=2)

    def stop(self, fit):
        self.run.save(None)
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(trainer.RoundTrainer, "_train_block", stop)
        with pytest.warns(DataWarning), pytest.raises(StopError):
            train(rows, config, run_dir=tmp_path / "run")
    monkeypatch.setattr(trainer, "choose_links", lambda data: pytest.fail("chosen anew"))
    flow = train(rows, config, run_dir=tmp_path / "run", resume=True)
    assert [link.kind for link in flow.links.columns] == ["log", "log"]
    with pytest.raises(RunError):
        train(rows, config, run_dir=tmp_path / "run")


def test_treatments_survive_their_description():
    data = split_rows(np.stack([one_of(name, 2000) for name in ("gauss", "lognormal", "cauchy", "no round edge")], 1))
    chosen = choose_links(data)
    again = Treatments.from_description(chosen.describe(), data)
    assert [choice[:2] for choice in again.columns] == [choice[:2] for choice in chosen.columns]
    before = Treatments.from_description(None, data)
    assert {(choice.link.kind, choice.scale) for choice in before.columns} == {("real", Scale.MOMENTS)}


@pytest.mark.parametrize("fit", ["fit", "fit_ends", "fit_core"])
def test_a_map_of_some_columns_leaves_the_others_and_survives_its_description(fit):
    rows = torch.randn(3000, 4).double()
    rows[0, 1] = 50
    reach = torch.stack([rows[:, [1, 3]].amin(0) - 100, rows[:, [1, 3]].amax(0) + 100])
    stage = getattr(Marginals, fit)(rows, [1, 3], reach)
    y, logdet = stage(rows)
    assert torch.equal(y[:, ::2], rows[:, ::2])
    assert float(y.abs().max()) < 5
    back, inverse_logdet = stage.inverse(y)
    torch.testing.assert_close(back, rows, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(inverse_logdet, -logdet)
    jacobian = torch.autograd.functional.jacobian(lambda x: stage(x)[0].sum(0), rows[:5])
    torch.testing.assert_close(jacobian.diagonal(dim1=0, dim2=2).log().sum(1), logdet[:5])
    whole = InitialMap([stage])
    again = InitialMap.from_description(whole.describe(), 4).double()
    again.load_state_dict(whole.state_dict())
    assert torch.equal(again(rows)[0], y)
    assert whole.recipe == "none"
    far = torch.full((1, 4), 1e6, dtype=torch.float64)
    assert bool(torch.isfinite(stage(far)[0]).all())
